"""How long each node of a graph runs, from onnxruntime's own profile of a session.

onnxruntime fuses nodes before it runs them, and names what comes out after one of those that went in, or after a value
that one of them gave. A fused node's time is told of the node that multiplies with weights among them.
"""

import json
import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
import onnxruntime as ort

from modelctl.graph.quantizing.recipe import PRODUCTS
from modelctl.graph.session import Tensors

RUNS = 30
SLOW_RUNS = 5
SLOW_MS = 20.0
MOST_HOPS = 4  # from the node that a fused one is named after, up to the one that multiplies
_ADDED = re.compile(r"(?:_nchwc|_token_\d+|/duplicated|_quant|_MatMulIntegerToFloat)+$")
_PASSES = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"})


def times(model: onnx.ModelProto, feeds: Tensors, like: onnx.ModelProto, threads: int = 1) -> dict[str, float]:
    """Microseconds of each node, the median of some runs, by the name that it has in `like`.

    `model` was made from `like` by quantizing it; what was put in beside the nodes of `like` is summed up under "".
    """
    found: dict[str, float] = defaultdict(float)
    names = _names(like)
    makers = {name: node for node in like.graph.node for name in node.output}
    for event, (kind, micros) in _measured(model, feeds, threads).items():
        base = _ADDED.sub("", event.removeprefix("fused "))
        node = None if kind in _PASSES else names.get(base)
        found[_multiplying(node, makers).name if node is not None else ""] += micros
    return dict(found)


def _names(model: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    """The nodes by what they are called and by what they give; a node's own name goes first."""
    named = {name: node for node in model.graph.node for name in node.output if name}
    return named | {node.name: node for node in model.graph.node if node.name}


def _multiplying(node: onnx.NodeProto, makers: Mapping[str, onnx.NodeProto]) -> onnx.NodeProto:
    """The node itself if it is named for itself, else the product that it was fused with, a few nodes before it."""
    before: onnx.NodeProto | None = node
    for _ in range(MOST_HOPS):
        if before is None or before.op_type in PRODUCTS:
            break
        before = makers.get(before.input[0]) if before.input else None
    return before if before is not None and before.op_type in PRODUCTS else node


def _measured(model: onnx.ModelProto, feeds: Tensors, threads: int) -> dict[str, tuple[str, float]]:
    """Operator type and microseconds by the name that onnxruntime gives a node."""
    with TemporaryDirectory() as folder:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        for _ in range(RUNS):
            session.run(None, dict(feeds))
        events = json.loads(Path(session.end_profiling()).read_bytes())
    taken: dict[str, list[float]] = defaultdict(list)
    kinds: dict[str, str] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            name = event["name"].removesuffix("_kernel_time")
            taken[name].append(event["dur"])
            kinds[name] = event["args"]["op_name"]
    return {name: (kinds[name], float(np.median(durations))) for name, durations in taken.items()}
