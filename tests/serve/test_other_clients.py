"""Clients that ask for so much that they have an environment of their own, `.venv-clients`."""

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
from servers import Running

ROOT = Path(__file__).resolve().parents[2]
PYTHON = ROOT / ".venv-clients" / "bin" / "python"
INSTALL = "python -m venv .venv-clients && .venv-clients/bin/pip install kserve==0.21.0 ovmsclient==2023.1"
X = [[1.0, 2.0, 3.0, 4.0], [0.5, -1.0, 2.5, 0.0]]

KSERVE = """
import asyncio, json, sys
import numpy as np
from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig

async def ask(url, x):
    client = InferenceRESTClient(RESTConfig(protocol="v2", timeout=30))
    told = [await client.is_server_live(url), await client.is_server_ready(url)]
    told += [await client.is_model_ready(url, "affine")]
    found = []
    for binary in (False, True):
        one = InferInput("x", list(x.shape), "FP32")
        one.set_data_from_numpy(x, binary_data=binary)
        answer = await client.infer(url, InferRequest("affine", [one]), model_name="affine")
        found.append(answer.outputs[0].as_numpy().tolist())
    return {"told": told, "found": found}

print(json.dumps(asyncio.run(ask(f"http://127.0.0.1:{sys.argv[1]}", np.array(json.loads(sys.argv[2]), np.float32)))))
"""
OVMS = """
import json, sys
import numpy as np
from ovmsclient import make_grpc_client, make_http_client

told, found = [], []
for client in (make_grpc_client(f"127.0.0.1:{sys.argv[1]}"), make_http_client(f"127.0.0.1:{sys.argv[1]}")):
    told.append(client.get_model_status("affine")[1]["state"] == "AVAILABLE")
    told.append("DT_FLOAT" in json.dumps(client.get_model_metadata("affine")))  # which has a form for each of the two
    found.append(client.predict({"x": np.array(json.loads(sys.argv[2]), np.float32)}, "affine").tolist())
print(json.dumps({"told": told, "found": found}))
"""


@pytest.mark.real_parts
@pytest.mark.skipif(not PYTHON.exists(), reason=INSTALL)
@pytest.mark.parametrize("script", [KSERVE, OVMS], ids=["kserve", "ovmsclient"])
def test_a_client_gets_what_onnxruntime_says(server: Running, script: str) -> None:
    wanted = server.ask("/predict/affine", X).json["outputs"]["y"]
    done = subprocess.run([PYTHON, "-c", script, str(server.port), json.dumps(X)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert all(answer["told"])
    for found in answer["found"]:
        np.testing.assert_allclose(found, wanted, atol=1e-6)
