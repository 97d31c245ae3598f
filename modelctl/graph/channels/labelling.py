"""What every axis of every value of a graph belongs to: the rules of all its nodes, solved together."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import numpy_helper

from modelctl.graph.channels import rules  # noqa: F401 - enters them all
from modelctl.graph.channels.dims import Dim, Reason, freeze
from modelctl.graph.channels.shapes import MAIN, Shapes
from modelctl.graph.channels.site import Axes, Notes, Outputs, Site, Unknown, opset_of, rule_of
from modelctl.graph.channels.states import without_zero_states
from modelctl.graph.straight import straight


@dataclass(frozen=True)
class Use:
    """An initializer as some of its readers have it (`readers`: node and input place), and its axes there.

    A weight that several nodes share is one use, and is cut alike for all. Vectors and tensors of one number that
    stand for many are only stored together, and are a use for each reader.
    """

    initializer: str
    dims: tuple[Dim, ...]
    readers: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Labelling:
    """A straight graph, the axes of its values by name, how its initializers are used, and what the rules noted."""

    model: onnx.ModelProto
    shapes: Shapes
    values: Mapping[str, Axes | None]
    uses: Sequence[Use]
    notes: Notes


def label(model: onnx.ModelProto, name: str = "model", sizes: Mapping[str, int] | None = None) -> Labelling:
    """Label a model, which is left as it is; `sizes` are those of its free dimensions to look at it with.

    UnsupportedError for control flow.
    """
    straightened = without_zero_states(straight(model, name))
    return _Walk(straightened, Shapes(straightened, sizes)).solved()


class _Walk:
    """One pass over the nodes in their order."""

    def __init__(self, model: onnx.ModelProto, shapes: Shapes) -> None:
        self._model, self._shapes = model, shapes
        self._held = {tensor.name: tensor for tensor in model.graph.initializer}
        self._values: dict[str, Axes | None] = {}
        self._constant = set(self._held)
        self._notes = Notes()
        self._uses: list[Use] = []
        readers = Counter(name for node in model.graph.node for name in node.input)
        out = {value.name for value in model.graph.output}
        shared = {name for name, count in readers.items() if count > 1 and name in self._held} - out
        self._loose = {name for name in shared if _is_loose(self._held[name])}
        self._readers: dict[str, list[tuple[int, int]]] = {name: [] for name in self._held if name not in self._loose}

    def solved(self) -> Labelling:
        """Visit all nodes, then freeze what goes out."""
        for name in self._readers:
            self._values[name] = [Dim(size) for size in self._held[name].dims]
        for value in self._model.graph.input:
            shape = self._shapes.shape.get(value.name)
            if value.name not in self._held:
                reason = Reason(f"come in as {value.name}")
                self._values[value.name] = None if shape is None else [Dim(size, reason) for size in shape]
        opsets = {("" if one.domain in MAIN else one.domain): one.version for one in self._model.opset_import}
        for index, node in enumerate(self._model.graph.node):
            self._visit(index, node, opset_of(opsets, node))
        for value in self._model.graph.output:
            for dim in self._values.get(value.name) or ():
                freeze(dim, Reason(f"go out as {value.name}"))
        for name, readers in self._readers.items():
            self._uses.append(Use(name, tuple(self._values[name] or ()), tuple(readers)))
        return Labelling(self._model, self._shapes, self._values, self._uses, self._notes)

    def _visit(self, index: int, node: onnx.NodeProto, opset: int) -> None:
        given = [self._given(name, index, place) for place, name in enumerate(node.input)]
        constant = [name in self._constant for name in node.input]
        site = Site(index, node, opset, given, constant, self._shapes, self._notes)
        if node.input and all(constant[place] for place, name in enumerate(node.input) if name):
            self._constant.update(node.output)
        found = rule_of(node)
        try:
            if found is None:
                raise Unknown("")
            outputs = found(site)
        except Unknown as unknown:
            outputs = self._refused(site, str(unknown))
        for name, axes in zip(node.output, outputs, strict=False):
            self._values[name] = axes
        for name in node.output:
            self._values[name] = self._agreed(self._values.get(name), name, site)

    def _given(self, name: str, index: int, place: int) -> Axes | None:
        if name in self._loose:
            dims = [Dim(size) for size in self._held[name].dims]
            self._uses.append(Use(name, tuple(dims), ((index, place),)))
            return dims
        if name in self._readers:
            self._readers[name].append((index, place))
        return self._values.get(name)

    def _refused(self, site: Site, why: str) -> Outputs:
        text = f"go through an operator that {why}:" if why else "go through the unknown operator"
        for axes in site.given:
            site.freeze(axes or (), text)
        return [self._frozen(name, site, text) for name in site.node.output]

    def _frozen(self, name: str, site: Site, text: str) -> Axes | None:
        shape = self._shapes.shape.get(name)
        return None if shape is None else site.fixed(shape, text)

    def _agreed(self, axes: Axes | None, name: str, site: Site) -> Axes | None:
        """The axes that a rule found for an output, if the output has that shape."""
        shape = self._shapes.shape.get(name)
        if axes is not None and (shape is None or shape == tuple(one.size for one in axes)):
            return axes
        text = "go through an operator whose output has another shape than expected:"
        site.freeze([one for given in (*site.given, axes) for one in given or ()], text)
        return self._frozen(name, site, text)


def _is_loose(tensor: onnx.TensorProto) -> bool:
    """Whether readers that share a tensor need not have meant to: it is a vector, or one number many times."""
    if len(tensor.dims) < 2 or math.prod(tensor.dims) < 2:
        return True
    array = numpy_helper.to_array(tensor).reshape(-1)
    return bool(np.all(array == array[0]))
