"""What the serving bench asks of every server: models, and the bodies of requests to them, with wrk's scripts.

Every model takes `x` and gives ten numbers `y`: a tiny MLP, and one convolutional net for pictures of 28×28 and one for
224×224, deep enough for about 8 ms a picture on one thread of the machine at hand.
"""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

CHANNELS = 64  # of the convolutional nets
SIDES = {"mlp": 28, "cnn": 28, "picture": 224}  # of the picture that each model takes, as one row of floats
Array = np.ndarray[Any, Any]

# Every request another picture, of another length.
VARIOUS = """
local bodies = {}
init = function()
  math.randomseed(7)
  for i = 1, 500 do
    local x = {}
    for j = 1, 784 do x[j] = string.format("%." .. math.random(1, 7) .. "f", math.random()) end
    local head = '{"inputs":[{"name":"x","shape":[1,784],"datatype":"FP32","data":['
    local headers = {["Content-Type"] = "application/json"}
    bodies[i] = wrk.format("POST", nil, headers, head .. table.concat(x, ",") .. "]}]}")
  end
end
local at = 0
request = function()
  at = at % 500 + 1
  return bodies[at]
end
"""


def write_model(path: Path, hidden: int = 32) -> None:
    """784 → hidden → 10, relu between."""
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "b"], ["y"]),
    ]
    path.write_bytes(_model(nodes, 784, {"a": (784, hidden), "b": (hidden, 10)}).SerializeToString())


def write_cnn(path: Path, side: int, layers: int) -> None:
    """A convolution to 28×28 in 64 channels, so many layers of those, their mean, and ten numbers."""
    stride = side // 28
    shapes: dict[str, tuple[int, ...]] = {"first": (CHANNELS, 1, 2 * stride + 1, 2 * stride + 1)}
    shapes |= {f"w{number}": (CHANNELS, CHANNELS, 3, 3) for number in range(layers)} | {"b": (CHANNELS, 10)}
    nodes = [
        helper.make_node("Reshape", ["x", "shape"], ["picture"]),
        helper.make_node("Conv", ["picture", "first"], ["c"], strides=[stride] * 2, pads=[stride] * 4),
        helper.make_node("Relu", ["c"], ["r0"]),
    ]
    for number in range(layers):
        nodes.append(helper.make_node("Conv", [f"r{number}", f"w{number}"], [f"c{number}"], pads=[1] * 4))
        nodes.append(helper.make_node("Relu", [f"c{number}"], [f"r{number + 1}"]))
    nodes.append(helper.make_node("GlobalAveragePool", [f"r{layers}"], ["mean"]))
    nodes += [helper.make_node("Flatten", ["mean"], ["flat"]), helper.make_node("MatMul", ["flat", "b"], ["y"])]
    model = _model(nodes, side * side, shapes)
    model.graph.initializer.append(numpy_helper.from_array(np.array([-1, 1, side, side]), "shape"))
    path.write_bytes(model.SerializeToString())


def _model(nodes: list[NodeProto], size: int, shapes: dict[str, tuple[int, ...]]) -> ModelProto:
    chance = np.random.default_rng(0)
    weights = {name: chance.standard_normal(shape) / np.sqrt(np.prod(shape[1:])) for name, shape in shapes.items()}
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", size])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 10])],
        [numpy_helper.from_array(values.astype(np.float32), name) for name, values in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def session(path: Path) -> ort.InferenceSession:
    """onnxruntime as every contender has it: one thread."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(path, options)


def pictures(side: int) -> Array:
    """One picture as a row of floats, of four digits each, so that JSON and binary say the same."""
    return np.random.default_rng(1).random((1, side * side), dtype=np.float32).round(4)


def write_models(folder: Path, run_ms: float = 8.0) -> dict[str, float]:
    """Write all models; how long one run of each takes here, in ms."""
    write_model(folder / "mlp.onnx")
    took = {"mlp": _run_ms(folder / "mlp.onnx", 28)}
    for name in ("cnn", "picture"):
        layers, path = 4, folder / f"{name}.onnx"
        write_cnn(path, SIDES[name], layers)
        for _ in range(2):
            layers = max(1, round(layers * run_ms / _run_ms(path, SIDES[name])))
            write_cnn(path, SIDES[name], layers)
        took[name] = _run_ms(path, SIDES[name])
    return took


def _run_ms(path: Path, side: int) -> float:
    opened, x, found = session(path), pictures(side), []
    for _ in range(15):
        began = time.thread_time()  # which others who use the machine do not lengthen by much
        opened.run(["y"], {"x": x})
        found.append((time.thread_time() - began) * 1e3)
    return min(found)


def write_scripts(folder: Path, names: tuple[str, ...] = ("mlp",)) -> None:
    """Bodies and wrk's scripts for models: `json` and `binary` of the first, `cnn.json` and so on of the others."""
    for name in names:
        x, front = pictures(SIDES[name]), "" if name == "mlp" else f"{name}."
        data = [round(float(one), 4) for one in x[0]]
        tensor: dict[str, Any] = {"name": "x", "shape": list(x.shape), "datatype": "FP32"}
        binary = [{**tensor, "parameters": {"binary_data_size": x.nbytes}}]
        head = json.dumps({"inputs": binary, "parameters": {"binary_data_output": True}}).encode()
        octets = {"Content-Type": "application/octet-stream"}
        bodies: dict[str, tuple[bytes, dict[str, str]]] = {
            "json": (json.dumps({"inputs": [{**tensor, "data": data}]}).encode(), {}),
            "rows": (json.dumps({"x": [data]}).encode(), {}),
            "binary": (head + x.tobytes(), octets | {"Inference-Header-Content-Length": str(len(head))}),
            "floats": (x.tobytes(), octets),
            "grpc": (call(name, x), {}),
        }
        for kind, (body, headers) in bodies.items():
            (folder / f"{front}{kind}.body").write_bytes(body)
            lines = ['wrk.method = "POST"', f'wrk.body = io.open("{folder}/{front}{kind}.body", "rb"):read("*a")']
            headers = {"Content-Type": "application/json"} | headers
            lines += [f'wrk.headers["{key}"] = "{value}"' for key, value in headers.items()]
            (folder / f"{front}{kind}.lua").write_text("\n".join(lines))
            (folder / f"{front}{kind}.headers").write_text(json.dumps(headers))
    (folder / "various.lua").write_text(VARIOUS)
    (folder / "various.body").write_bytes((folder / "json.body").read_bytes())
    (folder / "various.headers").write_bytes((folder / "json.headers").read_bytes())


def call(name: str, x: Array) -> bytes:
    """A ModelInferRequest with raw contents, in gRPC's frame of five bytes (inference.proto, PROTOCOL-HTTP2.md)."""
    shape = b"".join(_varint(size) for size in x.shape)
    tensor = _field(1, b"x") + _field(2, b"FP32") + _field(3, shape)
    message = _field(1, name.encode()) + _field(5, tensor) + _field(7, x.tobytes())
    return b"\0" + len(message).to_bytes(4, "big") + message


def _field(number: int, value: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _varint(number: int) -> bytes:
    found = bytearray()
    while number > 127:
        found.append(number & 127 | 128)
        number >>= 7
    return bytes([*found, number])
