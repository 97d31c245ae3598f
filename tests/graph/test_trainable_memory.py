"""How much memory a graph takes: its weights and the payload that they come from, and the weights once that is gone.

And that it is the same graph, to the byte, wherever its weights lay and however they were kept.
"""

import itertools
import json
import os
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from nets import convolutional
from onnx import TensorProto, helper, numpy_helper
from torch.utils._python_dispatch import TorchDispatchMode

from modelctl.formats import onnx as onnx_format
from modelctl.formats import packing
from modelctl.graph.trainable import TrainableGraph

WIDTH, LAYERS = 4096, 3  # 64 MiB each

# What it takes at most (VmHWM, which is this process's own, unlike ru_maxrss) and what stays, beyond what a first small
# graph needs; in bytes.
MEASURED = """
import json, sys
from pathlib import Path
import torch
from modelctl.formats import onnx as onnx_format
from modelctl.graph.trainable import TrainableGraph

def held(word):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(word))

def answers(graph, width):
    with torch.no_grad():
        return graph(torch.ones(1, width))

folder, width, limit = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
torch.set_num_threads(1)
small = TrainableGraph.of(onnx_format.open_model(folder / "small.onnx").load(), "small")
answers(small, 8)
small.save(folder / "saved.small.onnx")
model = onnx_format.open_model(folder / "large.onnx")
before, found = held("VmRSS"), {}
payload = model.load()
graph = TrainableGraph.of(payload, "large")
answers(graph, width)
found["built"] = held("VmHWM") - before
del payload
found["kept"] = held("VmRSS") - before
Path("/proc/self/clear_refs").write_text("5")  # the highest is now what is held
onnx_format.INLINE_LIMIT_BYTES = limit
graph.save(folder / "saved.onnx")
found["saved"] = held("VmHWM") - before
print(json.dumps(found))
"""


def perceptron(width: int, layers: int) -> onnx.ModelProto:
    """x → MatMul → Relu → MatMul … with weights that are all the same within a layer."""
    values = ["x", *(f"v{place}" for place in range(2 * layers - 1)), "y"]
    nodes = [
        helper.make_node("Relu", [a], [b]) if place % 2 else helper.make_node("MatMul", [a, f"w{place // 2}"], [b])
        for place, (a, b) in enumerate(itertools.pairwise(values))
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", width]) for name in "xy"]
    weights = [
        numpy_helper.from_array(np.full((width, width), (place + 1) / width, np.float32), f"w{place}")
        for place in range(layers)
    ]
    graph = helper.make_graph(nodes, "perceptron", ends[:1], ends[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="memory is told by Linux's /proc")
@pytest.mark.parametrize("limit", [1000, onnx_format.INLINE_LIMIT_BYTES], ids=["beside", "inline"])
def test_a_large_graph_takes_twice_its_size_at_most(
    limit: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_format, "INLINE_LIMIT_BYTES", limit)
    onnx_format.save(perceptron(8, LAYERS), tmp_path / "small.onnx")
    onnx_format.save(perceptron(WIDTH, LAYERS), tmp_path / "large.onnx")
    size = sum(file.stat().st_size for file in tmp_path.glob("large.onnx*"))
    assert (tmp_path / "large.onnx.data").exists() == (limit == 1000)
    command = [sys.executable, "-c", MEASURED, str(tmp_path), str(WIDTH), str(limit)]
    told = subprocess.run(command, capture_output=True, text=True, check=True)
    found = {when: taken / size for when, taken in json.loads(told.stdout).items()}
    assert found["built"] < 2.2
    assert found["kept"] < 1.1
    assert found["saved"] < 1.3
    for saved in tmp_path.glob("saved.onnx*"):
        assert saved.stat().st_size == (tmp_path / saved.name.replace("saved", "large")).stat().st_size
        saved.unlink()


class Alive(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts how many of the tensors that were computed are there at the same time."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.made: list[weakref.ref[torch.Tensor]] = []
        self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        self.made.append(weakref.ref(found))
        self.most = max(self.most, sum(one() is not None for one in self.made))
        return found


def test_values_are_let_go_when_nothing_reads_them_any_more() -> None:
    graph = TrainableGraph(perceptron(4, 20))
    with torch.no_grad(), Alive() as alive:
        graph(torch.ones(2, 4))
    assert len(alive.made) >= 39
    assert alive.most <= 3


def with_weights(model: onnx.ModelProto, *weights: onnx.TensorProto) -> onnx.ModelProto:
    model.graph.initializer.extend(weights)
    return model


def quantized(kind: int) -> onnx.ModelProto:
    """A perceptron one of whose weights is stored in few bits."""
    whole = np.arange(64).reshape(8, 8) % 7
    stored = numpy_helper.from_array(whole.astype(helper.tensor_dtype_to_np_dtype(kind)), "q")
    model = with_weights(perceptron(8, 2), stored, numpy_helper.from_array(np.array(0.1, np.float32), "scale"))
    model.opset_import[0].version = 21
    model.ir_version = 10
    model.graph.node.insert(0, helper.make_node("DequantizeLinear", ["q", "scale"], ["w"]))
    model.graph.node[1].input[1] = "w"
    return model


def folded() -> onnx.ModelProto:
    """A perceptron with a table of whole numbers that is computed before anything runs."""
    model = with_weights(
        perceptron(8, 2),
        numpy_helper.from_array(np.arange(8, dtype=np.int64), "table"),
        numpy_helper.from_array(np.ones(8, np.int64), "ones"),
    )
    nodes = [
        helper.make_node("Add", ["table", "ones"], ["sum"]),
        helper.make_node("Mod", ["sum", "eight"], ["order"]),
        helper.make_node("Gather", ["w0", "order"], ["w"], axis=1),
    ]
    for node in reversed(nodes):
        model.graph.node.insert(0, node)
    model.graph.node[3].input[1] = "w"
    return with_weights(model, numpy_helper.from_array(np.array([8], np.int64), "eight"))


def cast(kind: int) -> onnx.ModelProto:
    """A perceptron of another type."""
    model = perceptron(8, 2)
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor).astype(helper.tensor_dtype_to_np_dtype(kind))
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = kind
    return model


def listed() -> onnx.ModelProto:
    """A perceptron with a weight that protobuf holds as a list of numbers."""
    model = perceptron(8, 2)
    numbers = numpy_helper.to_array(model.graph.initializer[0]).flatten()
    model.graph.initializer[0].CopyFrom(helper.make_tensor("w0", TensorProto.FLOAT, [8, 8], numbers))
    return model


def packed() -> onnx.ModelProto:
    """A perceptron with a weight of zeros, packed."""
    model = perceptron(16, 2)
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.eye(16, dtype=np.float32), "w0"))
    assert packing.pack(model)
    return model


MODELS: dict[str, Callable[[], onnx.ModelProto]] = {
    "convolutional": convolutional,
    "float16": lambda: cast(TensorProto.FLOAT16),
    "bfloat16": lambda: cast(TensorProto.BFLOAT16),
    "double": lambda: cast(TensorProto.DOUBLE),
    "int8": lambda: quantized(TensorProto.INT8),
    "int4": lambda: quantized(TensorProto.INT4),
    "an unused one": lambda: with_weights(perceptron(8, 2), numpy_helper.from_array(np.eye(3), "idle")),
    "lists": listed,
    "packed": packed,
    "folded": folded,
}


@pytest.mark.parametrize("kept", ["inline", "beside", "by onnx"])
@pytest.mark.parametrize("name", MODELS)
def test_a_graph_is_the_same_wherever_its_weights_lay(
    name: str, kept: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_format, "ALIGNMENT_BYTES", 4)
    model = MODELS[name]()
    path = tmp_path / "m.onnx"
    if kept == "by onnx":
        onnx.save(model, path, save_as_external_data=True, size_threshold=0, location="w.bin")
    else:
        monkeypatch.setattr(onnx_format, "INLINE_LIMIT_BYTES", 0 if kept == "beside" else 1 << 20)
        onnx_format.save(model, path)
    payload = onnx_format.open_model(path).load()
    wanted, found = TrainableGraph(onnx_format.parse(payload)), TrainableGraph.of(payload, "m")
    del payload
    assert found.parameter_names == wanted.parameter_names
    assert found.buffer_names == wanted.buffer_names
    for graph in (wanted, found):
        with torch.no_grad():
            for weight in graph.parameters():
                weight.mul_(1.5)
    assert found.to_onnx() == wanted.to_onnx()
    folders = [tmp_path / word for word in ("found", "wanted")]
    for folder in folders:
        folder.mkdir()
    found.save(folders[0] / "m.onnx")
    onnx_format.save(wanted.to_onnx(), folders[1] / "m.onnx")
    one, other = ({file.name: file.read_bytes() for file in folder.iterdir()} for folder in folders)
    assert one == other
    assert len(one) == (2 if kept == "beside" else 1)
    assert onnx_format.parse(onnx_format.open_model(folders[0] / "m.onnx").load()) == wanted.to_onnx()
