"""A small program for each server that modelctl's is measured beside; they all import `OPENED`, which is opened.py."""

OPENED = """
import numpy as np, onnxruntime as ort

def opened(name):
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(f"{name}.onnx", options)

class Sessions(dict):
    def __missing__(self, name):
        self[name] = opened(name)
        return self[name]

SESSIONS = Sessions()

def run(name, x):
    return SESSIONS[name].run(["y"], {"x": x})[0]

def read(asked):
    one = asked["inputs"][0]
    return np.array(one["data"], dtype=np.float32).reshape(one["shape"])

def told(y):
    return {"outputs": [{"name": "y", "datatype": "FP32", "shape": list(y.shape), "data": y.ravel().tolist()}]}
"""

FASTAPI = """
import numpy as np
from fastapi import FastAPI, Request, Response
from pydantic import BaseModel
from opened import run, told

class Tensor(BaseModel):
    name: str
    shape: list[int]
    datatype: str
    data: list[float]

class Asked(BaseModel):
    inputs: list[Tensor]

app = FastAPI()

@app.post("/{model}/infer")
async def infer(model: str, asked: Asked):
    x = np.array(asked.inputs[0].data, dtype=np.float32).reshape(asked.inputs[0].shape)
    return told(run(model, x))

@app.post("/{model}/floats")
async def floats(model: str, request: Request):
    x = np.frombuffer(await request.body(), np.float32).reshape(1, -1)
    return Response(run(model, x).tobytes(), media_type="application/octet-stream")
"""

MLSERVER = """
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse
from opened import run

class Served(MLModel):
    async def load(self) -> bool:
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        y = run(self.name, NumpyCodec.decode_input(payload.inputs[0]))
        return InferenceResponse(model_name=self.name, outputs=[NumpyCodec.encode_output("y", y)])
"""
KSERVE = """
import sys
from kserve import InferOutput, InferResponse, Model, ModelServer
from opened import run

class Served(Model):
    def __init__(self, name):
        super().__init__(name)
        self.ready = True

    def load(self):
        return True

    async def predict(self, payload, headers=None, response_headers=None):
        y = run(self.name, payload.inputs[0].as_numpy())
        output = InferOutput("y", list(y.shape), "FP32")
        output.set_data_from_numpy(y, binary_data=bool(payload.use_binary_outputs) or payload.from_grpc)
        return InferResponse(
            payload.id or "1", self.name, [output], from_grpc=payload.from_grpc,
            use_binary_outputs=payload.use_binary_outputs,
        )

if __name__ == "__main__":
    port, grpc = (int(one) for one in sys.argv[1:3])
    server = ModelServer(http_port=port, grpc_port=grpc, workers=1, enable_latency_logging=False)
    server.start([Served(name) for name in ("mlp", "cnn", "picture")])
"""

LITSERVE = """
import sys
import litserve as ls

class Served(ls.LitAPI):
    def setup(self, device):
        import opened
        self.tools, self.model = opened, self.api_path.strip("/")

    def decode_request(self, request):
        return self.tools.read(request)

    def predict(self, x):
        return self.tools.run(self.model, x)

    def encode_response(self, output):
        return self.tools.told(output)

if __name__ == "__main__":
    apis = [Served(api_path=f"/{name}") for name in ("mlp", "cnn", "picture")]
    server = ls.LitServer(apis, accelerator="cpu", workers_per_device=1)
    server.run(
        host="127.0.0.1", port=int(sys.argv[1]), generate_client_file=False, log_level="warning", num_api_servers=1
    )
"""

BENTOML = """
from typing import Annotated
import bentoml, numpy as np
from bentoml.validators import DType
from opened import run

Floats = Annotated[np.ndarray, DType("float32")]

@bentoml.service(workers=1, logging={"access": {"enabled": False}}, metrics={"enabled": False})
class Served:
    @bentoml.api(route="/mlp")
    async def mlp(self, x: Floats) -> Floats:
        return run("mlp", x)

    @bentoml.api(route="/cnn")
    async def cnn(self, x: Floats) -> Floats:
        return run("cnn", x)

    @bentoml.api(route="/picture")
    async def picture(self, x: Floats) -> Floats:
        return run("picture", x)
"""

PYTRITON = """
import sys
import numpy as np
from pytriton.decorators import batch
from pytriton.model_config import ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig
from opened import run

def bound(name):
    @batch
    def infer(x):
        return {"y": run(name, x)}
    return infer

port, grpc, metrics = (int(one) for one in sys.argv[1:4])
config = TritonConfig(http_port=port, grpc_port=grpc, metrics_port=metrics, allow_metrics=False, log_verbose=0)
with Triton(config=config) as triton:
    for name, size in (("mlp", 784), ("cnn", 784), ("picture", 50176)):
        triton.bind(
            name, bound(name), [Tensor(name="x", dtype=np.float32, shape=(size,))],
            [Tensor(name="y", dtype=np.float32, shape=(10,))], config=ModelConfig(max_batch_size=32),
        )
    triton.serve()
"""

RAY = """
import signal, sys
import ray
from ray import serve

@serve.deployment(ray_actor_options={"num_cpus": 0.1}, max_ongoing_requests=100)
class Served:
    def __init__(self):
        import opened
        self.tools = opened

    async def __call__(self, request):
        x = self.tools.read(await request.json())
        return self.tools.told(self.tools.run(request.url.path.strip("/"), x))

signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
ray.init(address="local", num_cpus=2, include_dashboard=False, object_store_memory=100_000_000)
serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[1])}, logging_config={"enable_access_log": False})
serve.run(Served.bind(), route_prefix="/")
signal.pause()
"""
