"""The block of channels that this machine's kernels like: other widths cost what the next multiple of it costs.

Measured with convolutions of random weights in onnxruntime: a block pays where the width one block below a round one
runs faster in about the proportion of its channels.
"""

from functools import cache, partial

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from modelctl.formats import onnx as onnx_format
from modelctl.graph import latency
from modelctl.graph.session import Session, Tensors

BLOCKS = (4, 8, 16)  # from the finest on; the first that pays is taken
ROUND = 64  # a width that every block divides
MAP = 14  # height and width of the map that is convolved
PAYS = 0.5  # the share of the saving in proportion that must be seen
SECONDS = 0.1


@cache
def measured_block(threads: int = 1) -> int:
    """The finest of `BLOCKS` at whose multiples a convolution really becomes faster, else the coarsest."""
    whole = partial(_session, ROUND, threads)
    for block in BLOCKS:
        width = ROUND - block
        narrow = partial(_session, width, threads)
        _, _, speedup = latency.in_turns(whole, narrow, _feeds(ROUND), _feeds(width), SECONDS)
        # Inputs and outputs are both narrower, so the work is the square of the width's share.
        wanted = (ROUND / width) ** 2 - 1
        if speedup.value - 1 >= PAYS * wanted:
            return block
    return BLOCKS[-1]


def _feeds(width: int) -> Tensors:
    return {"x": np.random.default_rng(0).standard_normal((1, width, MAP, MAP)).astype(np.float32)}


def _session(width: int, threads: int) -> Session:
    """A 3 × 3 convolution from `width` channels to as many."""
    kernel = np.random.default_rng(1).standard_normal((width, width, 3, 3)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1])],
        "probe",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, width, MAP, MAP])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, width, MAP, MAP])],
        [numpy_helper.from_array(kernel, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    return Session(onnx_format.undescribed({"probe.onnx": model.SerializeToString()}), threads)
