"""How much memory a graph takes: its weights and the payload that they come from, and the weights once that is gone."""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from modelctl.formats import onnx as onnx_format

WIDTH, LAYERS = 4096, 3  # 64 MiB each

# What it takes at most (VmHWM, which is this process's own, unlike ru_maxrss) and what stays, beyond what a first small
# graph needs; in bytes.
MEASURED = """
import json, sys
from pathlib import Path
import torch
from modelctl.artifact import Artifact
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
    print(found)
    assert found["built"] < 2.2
    assert found["kept"] < 1.1
    assert found["saved"] < 1.3
    for saved in tmp_path.glob("saved.onnx*"):
        assert saved.stat().st_size == (tmp_path / saved.name.replace("saved", "large")).stat().st_size
        saved.unlink()
