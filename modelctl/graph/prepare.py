"""A float graph made ready for quantization, computing exactly the same: a new enough opset, folded, pools first.

Exported graphs keep their normalization apart, for training; here it is folded into the convolution before it. A
convolution of few inputs gains nothing from integers and stays in float; the pool that follows it goes before its Relu
(the largest of several numbers, clipped, is the largest of the clipped ones), so that onnxruntime does not draw the
quantization after them up through the pool, whose integer kernel costs ten times its float one there.
"""

import math
from collections import Counter
from collections.abc import Collection

import onnx
from onnxscript import optimizer

from modelctl.formats import onnx as onnx_format
from modelctl.graph import clean, fusing
from modelctl.graph.chatter import hushed

MIN_OPSET = 13  # below it a DequantizeLinear has no axis
FEW_CHANNELS = 3  # of a picture
FEW_INPUTS = 64  # numbers that go into one output of a convolution: at 25 int8 took 25 µs where float took 9


def prepare(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """`model`, called `name`, folded, every node with a name; UnsupportedError if its opset is too old.

    What is given may be changed, and may be what is returned: a large model is not copied. Nor is one folded that can't
    be written as one protobuf, for the folder writes it.
    """
    version = next((one.version for one in model.opset_import if one.domain in ("", "ai.onnx")), MIN_OPSET)
    model = clean.raised(model, max(version, MIN_OPSET), name)
    clean.hide_weights(model)
    del model.graph.value_info[:]  # what stands there may be stale, and shapes are inferred again
    folded = model if onnx_format.is_large(model) else _folded(model)
    maker = {name: node for node in model.graph.node for name in node.output}
    known = {node.name for node in model.graph.node}
    for place, node in enumerate(folded.graph.node):
        if node.name not in known:
            node.name = _name_before(node, maker) or node.name or f"{node.op_type}_{place}"
        del node.metadata_props[:]
        node.doc_string = ""
    del folded.graph.value_info[:]
    return folded


def _folded(model: onnx.ModelProto) -> onnx.ModelProto:
    with hushed():
        folded: onnx.ModelProto = optimizer.optimize(fusing.fold(model))
    return folded


def _name_before(node: onnx.NodeProto, maker: dict[str, onnx.NodeProto]) -> str:
    """What a node was called before something that followed it was folded into it; "" if it was not there."""
    before = maker.get(node.output[0])
    while before is not None and before.op_type != node.op_type:
        before = maker.get(before.input[0]) if before.input else None
    return before.name if before is not None else ""


def small_convolutions(model: onnx.ModelProto) -> list[str]:
    """The names of the convolutions that run faster in float: of few channels and small kernels, without groups."""
    held = {tensor.name: tensor for tensor in model.graph.initializer}
    found = []
    for node in model.graph.node:
        kernel = held.get(node.input[1]) if node.op_type == "Conv" else None
        groups = next((one.i for one in node.attribute if one.name == "group"), 1)
        if kernel is None or groups != 1:
            continue
        if kernel.dims[1] <= FEW_CHANNELS and math.prod(list(kernel.dims[1:])) < FEW_INPUTS:
            found.append(node.name)
    return found


def products(model: onnx.ModelProto) -> list[str]:
    """The names of the MatMuls of two activations, as in attention: in 8 bits together they cost 14 % of agreement."""
    held = {tensor.name for tensor in model.graph.initializer}
    return [node.name for node in model.graph.node if node.op_type == "MatMul" and not held & set(node.input)]


def pool_before_relu(model: onnx.ModelProto, convolutions: Collection[str]) -> None:
    """Turn Conv, Relu, MaxPool into Conv, MaxPool, Relu after each of `convolutions` (by name), in place.

    What is passed between the two is another value then, and has another name.
    """
    graph = model.graph
    uses = Counter(name for node in graph.node for name in node.input) + Counter(one.name for one in graph.output)
    maker = {name: node for node in graph.node for name in node.output}
    for pool in graph.node:
        relu = maker.get(pool.input[0]) if pool.op_type == "MaxPool" and len(pool.output) == 1 else None
        if relu is None or relu.op_type != "Relu" or uses[relu.output[0]] != 1:
            continue
        source = maker.get(relu.input[0])
        if source is not None and source.name in convolutions:
            kept = onnx.NodeProto()
            kept.CopyFrom(relu)
            between, last = f"{relu.output[0]}_pooled", pool.output[0]
            relu.CopyFrom(pool)
            relu.input[0], relu.output[0] = kept.input[0], between
            pool.CopyFrom(kept)
            pool.input[0], pool.output[0] = between, last
