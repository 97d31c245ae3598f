"""Attention written out as products, a softmax and transposes, found and put into one MultiHeadAttention.

What is looked for, from the end, heads apart in between ([batch, heads, length, width]):

    Reshape(Transpose(MatMul(weights, values)))          weights = Softmax(scores · scale + mask)
    scores = MatMul(queries, keys turned)                queries, keys, values = Transpose(Reshape(projected))

A scale may stand at the scores or be spread over queries and keys, as torch does it; keys may be turned at once or by
way of three axes. Where a boolean mask takes out of the softmax what it has masked already (`graph.attention`), rows
that are masked altogether are zeros, and stay so. The operator is that of onnxruntime's domain com.microsoft
(docs/ContribOperators.md), which runs on projected values [batch, length, heads · width].
"""

from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

DOMAIN = "com.microsoft"
VERSION = 1
OLDEST_OPSET = 15  # from there on, Shape gives a part of a shape
OLDEST_OPSET_OF_MASKS = 18  # from there on, ReduceMax takes its axes as an input
_APART, _TURNED_APART, _TURNED = [0, 2, 1, 3], [0, 2, 3, 1], [0, 1, 3, 2]


@dataclass(frozen=True)
class _Heads:
    """Values apart by heads: what they were before, how many heads, and a scale that was multiplied in on the way."""

    projected: ir.Value
    heads: int
    width: int
    scale: float = 1.0
    turned: bool = False  # the last two axes


@dataclass(frozen=True)
class _Found:
    """The parts of one attention."""

    query: _Heads
    key: _Heads
    value: _Heads
    scale: float
    added: ir.Value | None
    seen: ir.Value | None  # the boolean mask of those weights that are kept


def fuse(model: ir.Model) -> None:
    """Fuse, in place, every attention that is found. Shapes must have been inferred."""
    opset = model.opset_imports.get("", 0)
    for node in tuple(model.graph):
        found = _recognised(node)
        if found is not None and opset >= (OLDEST_OPSET if found.seen is None else OLDEST_OPSET_OF_MASKS):
            _replace(model, node, found)
            model.opset_imports.setdefault(DOMAIN, VERSION)


def _recognised(node: ir.Node) -> _Found | None:
    """The attention whose last node this Reshape is."""
    turned = _maker(node.inputs[0] if node.inputs else None, "Transpose") if node.op_type == "Reshape" else None
    product = _maker(turned.inputs[0], "MatMul") if turned is not None and _perm(turned) == _APART else None
    if product is None or _rank(node.outputs[0]) != 3:
        return None
    softmax, seen = _weights(product.inputs[0])
    if softmax is None or softmax.attributes.get_int("axis", -1) not in (-1, 3):
        return None
    scores, added = _scores(softmax.inputs[0])
    scores, scale = _scaled(scores)
    inner = _maker(scores, "MatMul")
    if inner is None or not all(_alone(one) for one in (product.inputs[0], softmax.inputs[0], inner.outputs[0])):
        return None
    parts = [_heads(one) for one in (*inner.inputs, product.inputs[1])]
    if any(one is None for one in parts):
        return None
    query, key, value = (one for one in parts if one is not None)
    if (query.turned, key.turned, value.turned) != (False, True, False) or value.scale != 1.0:
        return None
    if not query.heads == key.heads == value.heads or query.width != key.width:
        return None
    if added is not None and (_rank(added) not in (2, 4) or (seen is not None and _rank(seen) != 4)):
        return None
    if seen is not None and (seen.shape is None or seen.shape[1] != 1):
        return None
    return _Found(query, key, value, scale * query.scale * key.scale, added, seen)


def _weights(value: ir.Value | None) -> tuple[ir.Node | None, ir.Value | None]:
    """The softmax that gives these weights, and the mask that takes weights out behind it."""
    chosen = _maker(value, "Where")
    if chosen is None:
        return _maker(value, "Softmax"), None
    mask, weights, otherwise = chosen.inputs
    if _number(otherwise) != 0 or not _alone(weights):
        return None, None
    return _maker(weights, "Softmax"), mask


def _scores(value: ir.Value | None) -> tuple[ir.Value | None, ir.Value | None]:
    """The product of queries and keys, and what is added to it."""
    total = _maker(value, "Add")
    if total is None:
        return value, None
    first, second = total.inputs
    for scores, added in ((first, second), (second, first)):
        if _maker(_scaled(scores)[0], "MatMul") is not None:
            return scores, added
    return None, None


def _scaled(value: ir.Value | None) -> tuple[ir.Value | None, float]:
    """A value before it was multiplied with, or divided by, a single number, and that number."""
    node = _maker(value, "Mul", "Div")
    if node is None:
        return value, 1.0
    first, second = node.inputs
    number = _number(second)
    if number:
        return first, 1 / number if node.op_type == "Div" else number
    number = _number(first)
    return (second, number) if number and node.op_type == "Mul" else (value, 1.0)


def _heads(value: ir.Value | None) -> _Heads | None:
    """What a value [batch, heads, length, width] (or turned) was made of; None if it was made otherwise."""
    inner, scale = _scaled(value)
    if inner is not value:
        found = _heads(inner)
        return None if found is None else replace(found, scale=found.scale * scale)
    inner = _before_turn(value)
    if inner is not None:
        found = _heads(inner)
        return None if found is None else replace(found, turned=not found.turned)
    apart = _maker(value, "Transpose")
    split = _maker(apart.inputs[0], "Reshape") if apart is not None else None
    if apart is None or split is None or _perm(apart) not in (_APART, _TURNED_APART):
        return None
    projected, shape = split.inputs[0], split.outputs[0].shape
    if projected is None or _rank(projected) != 3 or projected.dtype != ir.DataType.FLOAT or shape is None:
        return None
    hidden = projected.shape[2] if projected.shape is not None else None
    heads, width = (_size(split, axis) for axis in (2, 3)) if len(shape) == 4 else (None, None)
    if not isinstance(hidden, int):
        hidden = heads * width if heads and width else 0
    heads, width = heads or (hidden // width if width else 0), width or (hidden // heads if heads else 0)
    if not heads or heads * width != hidden:
        return None
    return _Heads(projected, heads, width, turned=_perm(apart) == _TURNED_APART)


def _before_turn(value: ir.Value | None) -> ir.Value | None:
    """What a value was before its last two of four axes were changed, at once or with the first two taken together."""
    turn = _maker(value, "Transpose")
    if turn is not None:
        return turn.inputs[0] if _perm(turn) == _TURNED else None
    last = _maker(value, "Reshape")
    turn = _maker(last.inputs[0], "Transpose") if last is not None else None
    first = _maker(turn.inputs[0], "Reshape") if turn is not None and _perm(turn) == [0, 2, 1] else None
    return first.inputs[0] if first is not None and _rank(first.inputs[0]) == 4 else None


def _size(reshape: ir.Node, axis: int) -> int | None:
    """The size that a Reshape to four axes gives to one of them; None where that is told by the others."""
    inferred = reshape.outputs[0].shape
    size = inferred[axis] if inferred is not None else None
    if isinstance(size, int):
        return size
    asked = reshape.inputs[1]
    joined = _maker(asked, "Concat")
    if joined is not None and len(joined.inputs) == 4:
        number = _number(joined.inputs[axis])
        return int(number) if number and number > 0 else None
    return None


def _replace(model: ir.Model, last: ir.Node, found: _Found) -> None:
    """One MultiHeadAttention in place of all that ends with `last`; what it answers keeps its name."""
    made: list[ir.Node] = []

    def add(kind: str, given: list[ir.Value | None], domain: str = "", **attributes: int | float) -> ir.Value:
        made.append(ir.node(kind, given, attributes, domain=domain))
        return made[-1].outputs[0]

    def constant(number: int) -> ir.Value:
        made.append(ir.node("Constant", [], {"value": ir.tensor(np.array([number], np.int64))}))
        return made[-1].outputs[0]

    query, added = found.query.projected, found.added
    if added is not None and (added.shape is None or len(added.shape) != 4 or added.shape[2] == 1):
        length, one = add("Shape", [query], start=1, end=2), constant(1)  # the kernel wants a row for each query
        added = add("Expand", [added, add("Concat", [one, one, length, one], axis=0)])
    inputs = [query, found.key.projected, found.value.projected, *([None, None, added] if added is not None else [])]
    out = add("MultiHeadAttention", inputs, DOMAIN, num_heads=found.query.heads, scale=found.scale)
    out.shape, out.type = last.outputs[0].shape, last.outputs[0].type
    if found.seen is not None:  # a row of which nothing is seen answers zeros
        some = add("ReduceMax", [add("Cast", [found.seen], to=int(ir.DataType.FLOAT)), constant(-1)], keepdims=1)
        out = add("Mul", [out, add("Squeeze", [some, constant(1)])])
        out.shape, out.type = last.outputs[0].shape, last.outputs[0].type
    old = last.outputs[0]
    name, old.name = old.name, None
    model.graph.insert_before(last, made)
    ir.convenience.replace_all_uses_with(old, out, replace_graph_outputs=True)
    model.graph.remove(last, safe=True)
    out.name = name


def _maker(value: ir.Value | None, *kinds: str) -> ir.Node | None:
    """The node that makes a value, if it is of one of these kinds."""
    node = value.producer() if value is not None else None
    return node if node is not None and node.op_type in kinds and node.domain in ("", "ai.onnx") else None


def _perm(transpose: ir.Node) -> list[int]:
    return list(transpose.attributes.get_ints("perm", []) or [])


def _rank(value: ir.Value | None) -> int | None:
    return None if value is None or value.shape is None else len(value.shape)


def _alone(value: ir.Value | None) -> bool:
    """Whether only one node reads a value, which is no answer of the graph."""
    return value is not None and len(value.uses()) == 1 and not value.is_graph_output()


def _number(value: ir.Value | None) -> float | None:
    """A constant's only number; None where there are none or several."""
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    if tensor is None or tensor.size != 1 or tensor.dtype.is_string():
        return None
    return float(tensor.numpy().reshape(-1)[0])
