"""Sparse weights kept small inside an ONNX file that every runtime opens as it is.

A weight that is mostly zeros is stored as two initializers of equal length, the numbers that are not zero and the gaps
between them; a few nodes of the ONNX standard (opset 11, for bfloat16 13) put it together under its own name:

    gaps    uint8 [k]     → Cast → CumSum ────┐ positions, int64 [k]
    size    int64 [1]     → ConstantOfShape ──┤ zeros [size]
    values  its type [k]  ────────────────────┴→ ScatterElements → Reshape (shape, int64 [rank]) → the weight

The first gap is the position of the first number, every later one (1 to 255) its distance from the one before. A wider
gap is bridged by explicit zeros, also up to the end, so that no file stands for more than 256 numbers a stored one.
bfloat16, which ConstantOfShape has from opset 20 only, is cast to float32 and back, which holds each of its numbers. Of
8-bit integers the most frequent one is left out, whichever it is: a quantized weight has a zero of its own.

A number takes its own size and one byte: at 90 % zeros float32 comes to 0.1 · (4 + 1) = 0.5 bytes a weight in place of
4. (ONNX's own sparse initializers keep an int64 index each: 0.1 · (4 + 8) = 1.2.) All inputs are constant, so that
onnxruntime folds the nodes once, when it loads the file, and then runs what it would have run. Bits are kept: −0.0 is
stored as a number.
"""

import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Set
from dataclasses import astuple, dataclass

import numpy as np
import onnx
from google.protobuf.message import Message
from onnx import TensorProto, helper, numpy_helper

from modelctl.data.samples import Array
from modelctl.errors import ArtifactError

WIDEST_GAP = 255
MOST_AXES = 32
OLDEST_OPSET = 11
OLDEST_OPSET_OF_BFLOAT16 = 13
OLDEST_IR = 4  # before, every initializer had to be an input too
_FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16)
_BYTES = (TensorProto.INT8, TensorProto.UINT8)
_BITS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
_DATA = ("dims", "raw_data", "float_data", "double_data", "int32_data")
_DEFAULT_DOMAINS = ("", "ai.onnx")


@dataclass(frozen=True)
class _Names:
    """What is called how around one packed weight.

    `wide` is `values`, and `flat` is `scattered`, unless the values are bfloat16 and lie in between as float32.
    """

    weight: str
    values: str
    gaps: str
    axis: str
    size: str
    shape: str
    steps: str
    positions: str
    zeros: str
    wide: str
    scattered: str
    flat: str


def pack(model: onnx.ModelProto) -> int:
    """Pack, in place, each initializer that is smaller so; how many bytes that saves in all, 0 if none is.

    Left as they are: models older than opset 11 or IR 4, initializers that are inputs too, and those of subgraphs.
    Weights that lie outside the file must have been taken in.
    """
    opset = next((one.version for one in model.opset_import if one.domain in _DEFAULT_DOMAINS), 0)
    if opset < OLDEST_OPSET or model.ir_version < OLDEST_IR:
        return 0
    graph = model.graph
    prefix = _free_prefix(model)
    left = {one.name for one in graph.input}
    gaps: list[TensorProto] = []
    shared: dict[str, TensorProto] = {}
    nodes: list[onnx.NodeProto] = []
    saved = 0
    for tensor in graph.initializer:
        old = tensor.data_type == TensorProto.BFLOAT16 and opset < OLDEST_OPSET_OF_BFLOAT16
        found = None if old or tensor.name in left else _packed(tensor, prefix, len(gaps))
        if found is None:
            continue
        values, its_gaps, constants, its_nodes = found
        new = [one for one in constants if one.name not in shared]
        gain = _bytes_of(tensor) - sum(map(_bytes_of, (values, its_gaps, *new, *its_nodes)))
        if gain > 0:
            saved += gain
            gaps.append(its_gaps)
            shared |= {one.name: one for one in new}
            nodes += its_nodes
            tensor.CopyFrom(values)
    graph.initializer.extend([*gaps, *shared.values()])
    nodes += graph.node
    del graph.node[:]
    graph.node.extend(nodes)
    return saved


def unpack(model: onnx.ModelProto, name: str) -> int:
    """Put every packed weight back, in place and bit for bit; how many there were.

    What `pack` made of a model becomes that model again. ArtifactError, naming the file `name`, where such a weight
    is malformed. Nodes that are only similar to those of a packed weight stay as they are.
    """
    graph = model.graph
    packed = _found(model)
    uses = _uses(model) if packed else Counter()
    held = {tensor.name: tensor for tensor in graph.initializer}
    done: set[str] = set()
    idle: set[str] = set()
    for names, fill in packed:
        if names.weight in held:
            raise ArtifactError(f"{name}: holds the weight {names.weight!r} twice")
        try:
            dense = _dense(names, held, fill)
        except (ValueError, OverflowError) as error:
            raise ArtifactError(f"{name}: its packed weight {names.weight!r} is malformed: {error}") from error
        _put(held[names.values], dense, names.weight)
        nodes = _nodes(names, fill)
        uses.subtract(value for node in nodes for value in node.input)
        done.update(node.output[0] for node in nodes)
        idle |= {one for one in (names.gaps, names.axis, names.size, names.shape) if not uses[one]}
    if packed:
        _drop(graph, done, idle)
    return len(packed)


def is_packed(model: onnx.ModelProto) -> bool:
    """Whether any weight of a model is packed."""
    return bool(_found(model))


def _packed(
    tensor: TensorProto, prefix: str, number: int
) -> tuple[TensorProto, TensorProto, list[TensorProto], list[onnx.NodeProto]] | None:
    """The values, the gaps, the constants and the nodes that stand for a tensor; None where that can't be smaller."""
    if tensor.data_type not in _FLOATS + _BYTES or tensor.data_location == TensorProto.EXTERNAL:
        return None
    if 0 in tensor.dims or len(tensor.dims) > MOST_AXES:
        return None
    flat = numpy_helper.to_array(tensor).reshape(-1)
    bits = flat.view(_BITS[flat.itemsize])
    filled = int(np.bincount(bits).argmax()) if flat.itemsize == 1 else 0
    different = bits != filled
    if np.count_nonzero(different) * (flat.itemsize + 1) >= flat.nbytes:
        return None
    positions = _bridged(np.flatnonzero(different), flat.size)
    gaps = np.diff(positions, prepend=0).astype(np.uint8)
    own = f"{prefix}.{number}"
    wide = tensor.data_type == TensorProto.BFLOAT16
    names = _Names(
        weight=tensor.name,
        values=f"{own}.values",
        gaps=f"{own}.gaps",
        axis=f"{prefix}.axis",
        size=f"{prefix}.{flat.size}",
        shape=f"{prefix}.{'x'.join(map(str, tensor.dims))}",
        steps=f"{own}.steps",
        positions=f"{own}.positions",
        zeros=f"{own}.zeros",
        wide=f"{own}.wide" if wide else f"{own}.values",
        scattered=f"{own}.scattered",
        flat=f"{own}.flat" if wide else f"{own}.scattered",
    )
    values = TensorProto()
    values.CopyFrom(tensor)
    _put(values, flat[positions], names.values)
    fill = np.array([filled], bits.dtype).view(flat.dtype)
    constants = [
        numpy_helper.from_array(np.array(0, np.int64), names.axis),
        numpy_helper.from_array(np.array([flat.size], np.int64), names.size),
        *([numpy_helper.from_array(np.array(tensor.dims, np.int64), names.shape)] if len(tensor.dims) != 1 else []),
    ]
    nodes = _nodes(names, numpy_helper.from_array(fill.astype(np.float32) if wide else fill))
    return values, numpy_helper.from_array(gaps, names.gaps), constants, nodes


def _bytes_of(part: Message) -> int:
    """What a part of a graph takes in the file: itself, a byte that says what it is, and its length, 7 bits a byte."""
    size = part.ByteSize()
    return 1 + max(1, math.ceil(size.bit_length() / 7)) + size


def _bridged(positions: Array, size: int) -> Array:
    """The positions [k], ascending, with more of them in between so that no gap is wider than a byte tells."""
    if not positions.size:
        positions = np.zeros(1, np.int64)
    starts = np.concatenate([[0], positions])
    between = np.maximum(np.diff(starts, append=size - 1) - 1, 0) // WIDEST_GAP
    before = np.repeat(np.cumsum(between) - between, between)
    bridges = np.repeat(starts, between) + WIDEST_GAP * (1 + np.arange(len(before)) - before)
    return np.sort(np.concatenate([positions, bridges]))


def _nodes(names: _Names, fill: TensorProto) -> list[onnx.NodeProto]:
    """The nodes that put a weight together; `fill` [1] is what it holds where nothing is stored."""
    make = helper.make_node
    nodes = [
        make("Cast", [names.gaps], [names.steps], to=TensorProto.INT64),
        make("CumSum", [names.steps, names.axis], [names.positions]),
        make("ConstantOfShape", [names.size], [names.zeros], value=fill),
    ]
    if names.wide != names.values:
        nodes.append(make("Cast", [names.values], [names.wide], to=TensorProto.FLOAT))
    nodes.append(make("ScatterElements", [names.zeros, names.positions, names.wide], [names.scattered]))
    if names.flat != names.scattered:
        nodes.append(make("Cast", [names.scattered], [names.flat], to=TensorProto.BFLOAT16))
    nodes.append(make("Reshape", [names.flat, names.shape], [names.weight]))
    return nodes


def _found(model: onnx.ModelProto) -> list[tuple[_Names, TensorProto]]:
    """The packed weights of a model: what is called how, and what [1] lies where nothing is stored."""
    graph = model.graph
    if not any(node.op_type == "ScatterElements" for node in graph.node):
        return []
    maker = {output: node for node in graph.node for output in node.output}
    constant = {one.name for one in graph.initializer} - {one.name for one in graph.input} - {""}
    uses = _uses(model)
    names = [_recognised(node, maker, uses, constant) for node in graph.node]
    return [(one, maker[one.zeros].attribute[0].t) for one in names if one is not None]


def _recognised(
    reshape: onnx.NodeProto, maker: Mapping[str, onnx.NodeProto], uses: Counter[str], constant: Set[str]
) -> _Names | None:
    """The names around the packed weight that a Reshape gives; None if it is another Reshape, or no Reshape."""

    def above(value: str, *kinds: str) -> list[str]:
        """The inputs of the node of one of these kinds that makes a value, filled up with values that nothing makes."""
        node = maker.get(value)
        return [*(node.input if node is not None and node.op_type in kinds else ()), "", "", ""]

    if reshape.op_type != "Reshape" or len(reshape.input) != 2 or len(reshape.output) != 1:
        return None
    flat, shape = reshape.input
    scattered = above(flat, "Cast")[0] or flat
    zeros, positions, wide = above(scattered, "ScatterElements")[:3]
    steps, axis = above(positions, "CumSum")[:2]
    values, gaps, size = above(wide, "Cast")[0] or wide, above(steps, "Cast")[0], above(zeros, "ConstantOfShape")[0]
    names = _Names(reshape.output[0], values, gaps, axis, size, shape, steps, positions, zeros, wide, scattered, flat)
    if not names.weight or not {values, gaps, axis, size, shape} <= constant:
        return None
    if not all(isinstance(one, str) for one in astuple(names)):  # protobuf gives what is no UTF-8 as bytes
        return None
    if any(uses[one] != 1 for one in (values, gaps, steps, positions, zeros, wide, scattered, flat)):
        return None
    fill = maker[zeros].attribute
    if len(fill) != 1 or (wide == values) != (flat == scattered):
        return None
    wanted = _nodes(names, fill[0].t)
    return names if all(_alike(one, maker[one.output[0]]) for one in wanted) else None


def _alike(wanted: onnx.NodeProto, found: onnx.NodeProto) -> bool:
    """Whether two nodes do the same with the same values, whatever they are called."""
    return (
        wanted.op_type == found.op_type
        and found.domain in _DEFAULT_DOMAINS
        and list(wanted.input) == list(found.input)
        and list(wanted.output) == list(found.output)
        and list(wanted.attribute) == list(found.attribute)
    )


def _dense(names: _Names, held: Mapping[str, TensorProto], fill: TensorProto) -> Array:
    """The weight that a recognised pattern stands for; ValueError says what is wrong with it."""
    values = _array(held[names.values], _FLOATS + _BYTES, 1)
    gaps = _array(held[names.gaps], (TensorProto.UINT8,), 1)
    sizes = _array(held[names.size], (TensorProto.INT64,), 1).tolist()
    shape = _array(held[names.shape], (TensorProto.INT64,), 1).tolist()
    is_wide = names.wide != names.values
    rest = _array(fill, (TensorProto.FLOAT,) if is_wide else (held[names.values].data_type,), 1)
    if is_wide != (held[names.values].data_type == TensorProto.BFLOAT16) or rest.shape != (1,):
        raise ValueError("its values and its zeros are of different types")
    if _array(held[names.axis], (TensorProto.INT64,), 0) != 0:
        raise ValueError("its positions are summed up along another axis")
    size = math.prod(shape[:MOST_AXES])
    if sizes != [size] or min(shape, default=1) < 1 or len(shape) > MOST_AXES:
        raise ValueError("its size is not that of its shape")
    if len(values) != len(gaps) or not gaps.size or not gaps[1:].all():
        raise ValueError(f"{len(gaps)} positions, each once, were to be there for {len(values)} values")
    positions = np.cumsum(gaps, dtype=np.int64)
    if not 0 <= size - 1 - int(positions[-1]) <= WIDEST_GAP:
        raise ValueError(f"its last value lies at {positions[-1]}, and it has {size} numbers")
    dense: Array = np.full(size, rest.astype(values.dtype)[0], values.dtype)
    dense[positions] = values
    return dense.reshape(shape)


def _array(tensor: TensorProto, kinds: Collection[int], rank: int) -> Array:
    """The numbers of a tensor that has one of these types and this rank, else ValueError."""
    if tensor.data_type not in kinds or len(tensor.dims) != rank or tensor.data_location == TensorProto.EXTERNAL:
        raise ValueError(f"{tensor.name!r} is not of the type or rank that it should have")
    found = numpy_helper.to_array(tensor)
    if list(found.shape) != list(tensor.dims):
        raise ValueError(f"{tensor.name!r} does not have the size that it says")
    return found


def _put(tensor: TensorProto, array: Array, name: str) -> None:
    """Give a tensor other numbers and another name; what else is told of it stays."""
    for field in _DATA:
        tensor.ClearField(field)
    tensor.MergeFrom(numpy_helper.from_array(array, name))


def _drop(graph: onnx.GraphProto, done: Collection[str], idle: Collection[str]) -> None:
    """Take out the nodes that make the values `done`, and the initializers that lie `idle`."""
    nodes = [node for node in graph.node if not node.output or node.output[0] not in done]
    del graph.node[:]
    graph.node.extend(nodes)
    for place in reversed(range(len(graph.initializer))):
        if graph.initializer[place].name in idle:
            del graph.initializer[place]


def _graphs(model: onnx.ModelProto) -> Iterator[onnx.GraphProto]:
    """The graph and all its subgraphs."""
    waiting = [model.graph]
    while waiting:
        graph = waiting.pop()
        yield graph
        for node in graph.node:
            for attribute in node.attribute:
                waiting += [attribute.g] if attribute.HasField("g") else []
                waiting += attribute.graphs


def _uses(model: onnx.ModelProto) -> Counter[str]:
    """How often each value is read, as an output of a graph too."""
    uses: Counter[str] = Counter()
    for graph in _graphs(model):
        uses.update(one.name for one in graph.output)
        for node in graph.node:
            uses.update(node.input)
    return uses


def _free_prefix(model: onnx.ModelProto) -> str:
    """The beginning of names that no value of a model has."""
    taken: set[str] = set()
    for graph in _graphs(model):
        taken.update(one.name for values in (graph.input, graph.output, graph.initializer) for one in values)
        taken.update(one.values.name for one in graph.sparse_initializer)
        for node in graph.node:
            taken.update(node.input, node.output)
    prefix, number = "packed", 0
    while any(isinstance(name, str) and name.startswith(f"{prefix}.") for name in taken):
        number += 1
        prefix = f"packed{number}"
    return prefix
