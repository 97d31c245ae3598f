"""Outliers of activations moved into the weights that they are multiplied with, before both are rounded to integers.

SmoothQuant (Xiao et al. 2022, arXiv:2211.10438): few channels of what a transformer multiplies are far larger than
the rest, and leave the rest few of a tensor's 256 steps. With X·W = (X / s)·(s·W) and

    s_j = max|X_j|^α / max|W_j|^(1 - α)

the channels become alike, and the weights, which have a scale for each output, take the difference. The division costs
nothing where what makes X can take it in: a normalization's or another product's weight and bias, with biases, Relu
and the like in between; elsewhere it costs a Mul.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from modelctl.artifact import Payload
from modelctl.data.samples import Array
from modelctl.errors import UsageError
from modelctl.graph import weights
from modelctl.graph.session import Tensors
from modelctl.graph.watching import watch

ALPHAS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
WORTH = 0.9  # of the error as it was: what remains must be less for weights to be touched
WORTH_A_MUL = 0.5
ROWS = 256  # of each activation that are kept to try on
TOP = 255  # steps of an activation
LEVELS = 127  # of a weight, either way

KINDS = (TensorProto.FLOAT, TensorProto.DOUBLE)  # shorter ones would lose digits

# The inputs of a normalization that what it gives is proportional to, all together.
_NORMS = {
    "LayerNormalization": (1, 2),
    "RMSNormalization": (1,),
    "SimplifiedLayerNormalization": (1,),
    "SkipLayerNormalization": (2, 3),
    "SkipSimplifiedLayerNormalization": (2,),
}
_PASSING = ("Relu", "LeakyRelu", "Identity")  # f(x / s) = f(x) / s for s > 0


@dataclass(frozen=True, eq=False)
class Seen:
    """An activation [..., K] on samples: its least and largest numbers by channel, [K], and some of its rows [n, K]."""

    low: Array
    high: Array
    rows: Array


@dataclass(frozen=True, kw_only=True)
class Smoothing:
    """What was done with what some products multiply: `through` which node with which `alpha`, or why it was left.

    `before` and `after`: the relative error (root mean square) of the products in 8 bits.
    """

    value: str
    products: tuple[str, ...]
    alpha: float | None = None
    through: str = ""
    before: float = 0.0
    after: float = 0.0
    reason: str = ""


@dataclass(eq=False)
class _Site:
    """A value and the products that multiply it with constants."""

    value: str
    products: list[onnx.NodeProto] = field(default_factory=list)

    @property
    def weights(self) -> dict[str, bool]:
        """The weights' names, and whether each lies turned."""
        return {node.input[1]: _is_turned(node) for node in self.products}


def values(model: onnx.ModelProto) -> list[str]:
    """The names of the activations that are multiplied with constant weights: what `observe` should see."""
    return [site.value for site in _Graph(model).sites]


def observe(
    model: onnx.ModelProto, like: Payload, wanted: Collection[str], batches: Iterable[Tensors], threads: int = 1
) -> dict[str, Seen]:
    """Each of the activations `wanted` over all batches, in memory that does not grow; `like` names the model."""
    found: dict[str, Seen] = {}
    marks: dict[str, Array] = {}
    random = np.random.default_rng(0)

    def see(name: str, array: Array) -> None:
        rows = array.reshape(-1, array.shape[-1]).astype(np.float32)
        if not len(rows):
            return
        low, high, mark = rows.min(0), rows.max(0), random.random(len(rows))
        kept = np.sort(np.argsort(mark)[:ROWS])
        rows, mark = rows[kept], mark[kept]
        if name in found:
            was = found[name]
            low, high = np.minimum(low, was.low), np.maximum(high, was.high)
            rows, mark = np.concatenate((was.rows, rows)), np.concatenate((marks[name], mark))
            kept = np.sort(np.argsort(mark)[:ROWS])
            rows, mark = rows[kept], mark[kept]
        found[name], marks[name] = Seen(low, high, rows), mark

    watch(model, like, wanted, batches, see, threads)
    return found


def smooth(
    model: onnx.ModelProto, seen: Mapping[str, Seen], alphas: Sequence[float] = ALPHAS, insert: bool = False
) -> list[Smoothing]:
    """Smooth, in place, the activations in `seen` where that lessens the error in 8 bits; the same is computed.

    Of `alphas` (each between 0 and 1) the one with the least error is taken. `insert`: where nothing can take the
    division in, put a Mul in front of the products.
    """
    if not alphas or not all(0 <= one <= 1 for one in alphas):
        raise UsageError("alpha is between 0 and 1")
    graph = _Graph(model)
    return [graph.smoothed(site, seen[site.value], alphas, insert) for site in graph.sites if site.value in seen]


def factors(seen: Seen, largest: Array, alpha: float) -> Array:
    """s [K] of the formula above, for the weights' largest numbers by channel [K]; 1 where a channel is all zeros."""
    reach = np.maximum(np.abs(seen.low), np.abs(seen.high)).astype(np.float64)
    known = (reach > 0) & (largest > 0)
    found: Array = np.where(known, reach, 1) ** alpha / np.where(known, largest, 1) ** (1 - alpha)
    return np.where(known, found, 1.0)


def error_in_8_bits(seen: Seen, matrices: Sequence[Array], by: Array) -> float:
    """The relative error of X·W over all matrices W [K, N] when X / s and s·W are rounded to 8 bits.

    X has one scale and zero point, W a scale a column.
    """
    low, high = min(0.0, float((seen.low / by).min())), max(0.0, float((seen.high / by).max()))
    scale = (high - low) / TOP or 1.0
    zero = np.rint(-low / scale)
    rows = seen.rows / by
    stored = (np.clip(np.rint(rows / scale) + zero, 0, TOP) - zero) * scale
    error = whole = 0.0
    for matrix in matrices:
        scaled = matrix * by[:, None]
        steps = np.abs(scaled).max(0) / LEVELS
        steps[steps == 0] = 1
        wanted = seen.rows @ matrix
        error += float(np.square(stored @ (np.rint(scaled / steps) * steps) - wanted).sum())
        whole += float(np.square(wanted).sum())
    return float(np.sqrt(error / whole)) if whole else 0.0


class _Graph:
    """A graph that is smoothed: who makes and who reads each value, and the constants."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.graph = model.graph
        self.held = {tensor.name: tensor for tensor in self.graph.initializer}
        self.makers = {name: node for node in self.graph.node for name in node.output}
        self.uses = Counter(name for node in weights.nodes_of(self.graph) for name in node.input)
        self.uses.update(one.name for one in (*self.graph.output, *self.graph.input))
        self.uses.update(name for node in self.graph.node for name in _handed_out(node))
        found: dict[str, _Site] = {}
        for node in self.graph.node:
            if self._is_product(node):
                found.setdefault(node.input[0], _Site(node.input[0])).products.append(node)
        self.sites = list(found.values())

    def _is_product(self, node: onnx.NodeProto) -> bool:
        """Whether a node multiplies an activation with a constant matrix."""
        if node.domain not in ("", "ai.onnx") or node.op_type not in ("MatMul", "Gemm") or node.input[0] in self.held:
            return False
        tensor = self.held.get(node.input[1])
        turned_first = any(one.name == "transA" and one.i for one in node.attribute)
        return tensor is not None and tensor.data_type in KINDS and len(tensor.dims) == 2 and not turned_first

    def smoothed(self, site: _Site, seen: Seen, alphas: Sequence[float], insert: bool) -> Smoothing:
        products = tuple(node.name or node.output[0] for node in site.products)
        readers = Counter(node.input[1] for node in site.products)
        if len({(node.input[1], _is_turned(node)) for node in site.products}) != len(readers) or any(
            self.uses[name] != count for name, count in readers.items()
        ):
            return Smoothing(value=site.value, products=products, reason="its weight is read elsewhere too")
        route = self._route(site.value, len(site.products), len(seen.low))
        if isinstance(route, str) and not insert:
            return Smoothing(value=site.value, products=products, reason=route)
        matrices = [self._matrix(name, turned) for name, turned in site.weights.items()]
        largest = np.max([np.abs(one).max(1, initial=0) for one in matrices], 0)
        before = error_in_8_bits(seen, matrices, np.ones(len(largest)))
        tried = [(error_in_8_bits(seen, matrices, factors(seen, largest, alpha)), alpha) for alpha in alphas]
        after, alpha = min(tried)
        told = Smoothing(value=site.value, products=products, before=before, after=before)
        if not after < (WORTH_A_MUL if isinstance(route, str) else WORTH) * before:
            return replace(told, reason="has no outliers worth the change")
        by = factors(seen, largest, alpha)
        for name, turned in site.weights.items():
            self._scale(self.held[name], by if turned else by[:, None])
        through = self._insert(site, by) if isinstance(route, str) else self._divide(route, by)
        return replace(told, after=after, alpha=alpha, through=through)

    def _matrix(self, name: str, turned: bool) -> Array:
        array = numpy_helper.to_array(self.held[name]).astype(np.float64)
        return array.T if turned else array

    def _route(self, value: str, readers: int, size: int) -> list[tuple[onnx.NodeProto, int]] | str:
        """The constants, as nodes and places, by which to divide a value of `size` channels; or why there are none.

        The last node is the one that takes the division in.
        """
        found: list[tuple[onnx.NodeProto, int]] = []
        while True:
            node = self.makers.get(value)
            if node is None:
                return "is an input of the graph"
            if self.uses[value] != readers:
                return "is read by others too"
            readers = 1
            if node.op_type in _PASSING:
                value = node.input[0]
                continue
            places = self._places(node, value, size)
            if places is None:
                return f"comes out of {node.op_type}, which can't take a factor in"
            found += [(node, place) for place in places]
            if node.op_type != "Add":
                return found
            value = node.input[1 - places[0]]

    def _places(self, node: onnx.NodeProto, value: str, size: int) -> list[int] | None:
        """Which inputs of a node to divide; None if it can't be divided so."""

        def row(place: int) -> bool:
            """Whether an input is a constant with a number for each channel, or one for all."""
            tensor = self.held.get(node.input[place])
            if tensor is None or tensor.data_type not in KINDS:
                return False
            dims = list(tensor.dims)
            return all(one == 1 for one in dims[:-1]) and dims[-1:] in ([], [1], [size])

        if node.output[0] != value:
            return None
        if node.op_type in _NORMS:
            places = [place for place in _NORMS[node.op_type] if place < len(node.input) and node.input[place]]
            whole = all(row(place) and list(self.held[node.input[place]].dims) == [size] for place in places)
            return places if whole else None
        if node.op_type in ("Add", "Mul"):
            constant = [place for place in (0, 1) if row(place)]
            return constant if len(constant) == 1 else None
        if self._is_product(node) and self.uses[node.input[1]] == 1 and self._columns(node) == size:
            added = [2] if len(node.input) > 2 and node.input[2] else []
            return [1, *added] if all(row(place) for place in added) else None
        return None

    def _columns(self, product: onnx.NodeProto) -> int:
        return int(self.held[product.input[1]].dims[0 if _is_turned(product) else 1])

    def _divide(self, route: Sequence[tuple[onnx.NodeProto, int]], by: Array) -> str:
        """Divide constants along the channels, those that others read too as copies; the name of the last node."""
        for node, place in route:
            name = node.input[place]
            if self.uses[name] > 1:
                self.uses[name] -= 1
                copied = numpy_helper.from_array(
                    numpy_helper.to_array(self.held[name]), self._fresh(f"{name}_smoothed")
                )
                self.graph.initializer.append(copied)
                name = node.input[place] = copied.name
                self.held[name], self.uses[name] = self.graph.initializer[-1], 1
            turned = place == 1 and node.op_type == "Gemm" and _is_turned(node)
            self._scale(self.held[name], 1 / (by[:, None] if turned else by))
        last = route[-1][0]
        return last.name or last.output[0]

    def _insert(self, site: _Site, by: Array) -> str:
        """Put a Mul between a value and its products; its name."""
        kind = self.held[site.products[0].input[1]].data_type
        constant, given = self._fresh(f"{site.value}_smoothing"), self._fresh(f"{site.value}_smooth")
        numbers = (1 / by).astype(helper.tensor_dtype_to_np_dtype(kind))
        self.graph.initializer.append(numpy_helper.from_array(numbers, constant))
        first = min(place for place, node in enumerate(self.graph.node) if node.output[0] in _given(site.products))
        for node in site.products:
            node.input[0] = given
        self.uses[given] = len(site.products)
        self.uses[site.value] += 1 - len(site.products)
        self.graph.node.insert(first, helper.make_node("Mul", [site.value, constant], [given], given))
        self.makers[given] = self.graph.node[first]
        return given

    def _scale(self, tensor: onnx.TensorProto, by: Array) -> None:
        array = numpy_helper.to_array(tensor)
        tensor.CopyFrom(numpy_helper.from_array((array.astype(np.float64) * by).astype(array.dtype), tensor.name))

    def _fresh(self, like: str) -> str:
        number = 0
        while (name := f"{like}{number or ''}") in self.uses or name in self.makers or name in self.held:
            number += 1
        return name


def _is_turned(node: onnx.NodeProto) -> bool:
    """Whether a product reads its weight as [N, K]."""
    return any(one.name == "transB" and one.i for one in node.attribute)


def _given(nodes: Iterable[onnx.NodeProto]) -> set[str]:
    return {node.output[0] for node in nodes}


def _handed_out(node: onnx.NodeProto) -> list[str]:
    """What the subgraphs of a node hand out, which may be a value around them."""
    found: list[str] = []
    waiting = [node]
    while waiting:
        for one in waiting.pop().attribute:
            for part in (*([one.g] if one.HasField("g") else []), *one.graphs):
                found += [output.name for output in part.output]
                waiting += part.node
    return found
