"""Removing units of groups from a graph: weights sliced, and all that tells their number put right."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from modelctl.errors import UnsupportedError
from modelctl.graph.channels import removing
from modelctl.graph.channels.dims import Dim, count, mask
from modelctl.graph.channels.groups import Channels, Group, find
from modelctl.graph.channels.labelling import Use
from modelctl.graph.channels.shapes import Shapes
from modelctl.graph.channels.site import Follower

Array = np.ndarray[Any, Any]
Keep = Mapping[str, Sequence[int] | Array]


def aligned(count: float, size: int, block: int) -> int:
    """How many of `size` units to keep when about `count` are wanted: a multiple of `block`, at least one block.

    `size` itself where it is no larger than a block; the nearest multiple else, never above `size`.
    """
    if size <= block:
        return size
    return min(max(round(count / block), 1) * block, size - size % block)


def cut(model: onnx.ModelProto | Channels, keep: Keep) -> onnx.ModelProto:
    """A copy of a graph in which groups, by name, keep the units of these indices only, in their order.

    Groups that are not named stay whole. One that keeps nothing takes the residual block around it with it. Give
    `Channels` when cutting one graph many times. ValueError for a name that is no group's and for indices that are
    none of its units; UnsupportedError for an emptied group that lies in no residual block, and for a graph that
    computes a shape in a way that can't be put right.
    """
    channels = model if isinstance(model, Channels) else find(model)
    kept: dict[Dim, Array] = {}
    emptied: list[Group] = []
    for name, indices in keep.items():
        group = _group(channels, name)
        wanted = np.unique(np.asarray(indices, np.int64))
        if wanted.size and (wanted[0] < 0 or wanted[-1] >= group.size):
            raise ValueError(f"{name}: has units 0 to {group.size - 1}, not {wanted[0]} to {wanted[-1]}")
        if not wanted.size:
            emptied.append(group)
            continue
        kept[group.leaf] = np.isin(np.arange(group.size), wanted)
    made = _Cut(channels, kept).done()
    if emptied:
        made = removing.remove(made, *{removing.around(channels, group) for group in emptied})
    return made


def _group(channels: Channels, name: str) -> Group:
    try:
        return channels.group(name)
    except KeyError as error:
        raise ValueError(f"no group is called {name}") from error


class _Cut:
    """A copy of a graph while it is cut."""

    def __init__(self, channels: Channels, kept: Mapping[Dim, Array]) -> None:
        self._labelling = channels.labelling
        self._kept = kept
        self._masks: dict[Dim, Array] = {}
        self._made = onnx.ModelProto()
        self._made.CopyFrom(channels.model)
        graph = self._made.graph
        del graph.value_info[:]
        self._held = {tensor.name: tensor for tensor in graph.initializer}
        self._names = {*self._held, *(name for node in graph.node for name in (*node.input, *node.output))}
        self._makers = {name: node for node in graph.node for name in node.output}
        self._other: Shapes | None = None
        self._known: dict[str, Array | None] = {}
        self._replaced: set[str] = set()
        self._before: dict[int, list[onnx.NodeProto]] = {}

    def done(self) -> onnx.ModelProto:
        """Slice the weights, then correct attributes and shapes."""
        uses: dict[str, list[Use]] = {}
        for use in self._labelling.uses:
            if not all(self._mask(dim).all() for dim in use.dims):
                uses.setdefault(use.initializer, []).append(use)
        for name, found in uses.items():
            self._slice(name, found)
        for follower in self._labelling.notes.followers:
            self._correct(follower)
        for node in self._labelling.notes.scales:
            self._hold(node)
        self._place()
        self._tidy()
        return self._made

    def _mask(self, dim: Dim) -> Array:
        dim = dim.root()
        if dim not in self._masks:
            self._masks[dim] = mask(dim, self._kept)
        return self._masks[dim]

    def _size(self, dim: Dim) -> int:
        return count(dim, self._kept)

    def _slice(self, name: str, uses: list[Use]) -> None:
        """Cut an initializer for each way in which it is used: the first stays where it is, others get names."""
        whole = self._held[name]
        array = numpy_helper.to_array(whole)
        every = sum(use.initializer == name for use in self._labelling.uses)
        ways: dict[tuple[bytes, ...], list[Use]] = {}
        for use in uses:
            ways.setdefault(tuple(self._mask(dim).tobytes() for dim in use.dims), []).append(use)
        for place, alike in enumerate(ways.values()):
            made = array
            for axis, dim in enumerate(alike[0].dims):
                made = np.compress(self._mask(dim), made, axis)
            if place == 0 and every == len(uses):
                _store(made, whole)
                self._resize_input(name, made.shape)
                continue
            called = self._enter(made, name)
            for use in alike:
                for node, at in use.readers:
                    self._made.graph.node[node].input[at] = called

    def _resize_input(self, name: str, shape: tuple[int, ...]) -> None:
        """In old files an initializer is an input too."""
        for value in self._made.graph.input:
            if value.name == name:
                for dim, size in zip(value.type.tensor_type.shape.dim, shape, strict=False):
                    dim.dim_value = size

    def _enter(self, array: Array, near: str) -> str:
        """A new initializer, with a name like `near`."""
        name = self._new_name(near)
        tensor = self._made.graph.initializer.add()
        tensor.CopyFrom(numpy_helper.from_array(np.array(array, order="C"), name))
        self._held[name] = tensor
        if self._made.ir_version < 4:
            self._made.graph.input.append(onnx.helper.make_tensor_value_info(name, tensor.data_type, tensor.dims))
        return name

    def _new_name(self, near: str) -> str:
        name = next(name for at in itertools.count(1) if (name := f"{near}_{at}") not in self._names)
        self._names.add(name)
        return name

    def _correct(self, follower: Follower) -> None:
        """Put right what a node is told about sizes, where it is told something else after the cut."""
        node = self._made.graph.node[follower.node]
        sizes = [None if dim is None else self._size(dim) for dim in follower.dims]
        changed = [dim is not None and self._size(dim) != dim.size for dim in follower.dims]
        if isinstance(follower.where, str):
            if any(changed):
                self._correct_attribute(node, follower.where, [size for size in sizes if size is not None])
            return
        source = node.input[follower.where] if follower.where < len(node.input) else ""
        is_stored = source in self._held
        if not source and any(changed):
            self._tell_parts(node, follower.where, [size or 0 for size in sizes])
        if not source or (is_stored and not any(changed)):
            return
        found = self._numbers(source)
        if found is None or len(found) != len(sizes):
            if any(changed):
                raise _refused(node)
            return
        # A number that is computed from a channel count may have changed where it should not, too.
        wrong = np.array(
            [
                size is not None and size != told and (is_new or not is_stored)
                for size, is_new, told in zip(sizes, changed, found.tolist(), strict=True)
            ]
        )
        if not wrong.any():
            return
        right = np.where(wrong, [size or 0 for size in sizes], found).astype(found.dtype)
        if is_stored:
            node.input[follower.where] = self._enter(right, source)
            self._replaced.add(source)
        else:
            node.input[follower.where] = self._patched(follower.node, source, right, wrong)

    def _correct_attribute(self, node: onnx.NodeProto, name: str, sizes: list[int]) -> None:
        found = next((one for one in node.attribute if one.name == name), None)
        if found is None:
            if len(set(sizes)) > 1:
                node.attribute.append(onnx.helper.make_attribute(name, sizes))
        elif found.type == onnx.AttributeProto.INTS:
            found.ints[:] = sizes
        else:
            found.i = sizes[0]

    def _tell_parts(self, node: onnx.NodeProto, place: int, sizes: list[int]) -> None:
        """A Split that made equal parts has to say how long they are if they no longer are equal."""
        if len(set(sizes)) == 1:
            return
        while len(node.input) <= place:
            node.input.append("")
        node.input[place] = self._enter(np.array(sizes, np.int64), f"{node.output[0]}_parts")
        kept = [one for one in node.attribute if one.name != "num_outputs"]
        del node.attribute[:]
        node.attribute.extend(kept)

    def _patched(self, index: int, source: str, right: Array, wrong: Array) -> str:
        """A computed shape with its wrong numbers replaced, which are the same for every batch."""
        if self._differs(source, wrong):
            raise _refused(self._made.graph.node[index])
        result = self._new_name(source)
        names = [self._enter(wrong, f"{source}_cut"), self._enter(right, f"{source}_size")]
        patch = onnx.helper.make_node("Where", [*names, source], [result])
        self._before.setdefault(index, []).append(patch)
        return result

    def _differs(self, name: str, where: Array) -> bool:
        """Whether these numbers of a computed value are others for another batch."""
        if self._other is None:
            self._other = Shapes(self._labelling.model, batch=2)
        first, second = (one.numbers.get(name) for one in (self._labelling.shapes, self._other))
        return first is None or second is None or bool((first[where] != second[where]).any())

    def _hold(self, index: int) -> None:
        """Let a float that is computed from a count of channels be what it was: it scales the units that are left."""
        node = self._made.graph.node[index]
        before, after = self._labelling.shapes.numbers.get(node.input[0]), self._numbers(node.input[0])
        if before is None or after is None or np.array_equal(before, after):
            return
        if self._differs(node.input[0], before != after):
            raise _refused(node)
        node.input[0] = self._enter(before, node.input[0])

    def _numbers(self, name: str) -> Array | None:
        """What a value of few numbers is in the graph as cut so far; None where that is not known."""
        if name not in self._known:
            self._known[name] = self._computed(name)
        return self._known[name]

    def _computed(self, name: str) -> Array | None:
        if name in self._held:
            tensor = self._held[name]
            return numpy_helper.to_array(tensor) if math.prod(tensor.dims) <= 64 else None
        node = self._makers.get(name)
        if node is None:
            return None
        shapes: dict[str, tuple[int, ...]] = {}
        numbers: dict[str, Array] = {}
        if node.op_type in ("Shape", "Size"):
            axes = self._labelling.values.get(node.input[0])
            if axes is None:
                return None
            shapes[node.input[0]] = tuple(self._size(dim) for dim in axes)
        else:
            for one in node.input:
                found = self._numbers(one) if one else None
                if one and found is None:
                    return None
                if found is not None:
                    numbers[one] = found
        computed = self._labelling.shapes.computed(node, shapes, numbers)
        return None if computed is None else computed[list(node.output).index(name)]

    def _place(self) -> None:
        """Put new nodes in front of those that need them."""
        if not self._before:
            return
        nodes = list(self._made.graph.node)
        del self._made.graph.node[:]
        for index, node in enumerate(nodes):
            self._made.graph.node.extend([*self._before.get(index, ()), node])

    def _tidy(self) -> None:
        """Drop the old shapes that nothing reads any more."""
        graph = self._made.graph
        read = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
        for name in self._replaced - read:
            graph.initializer.remove(self._held[name])


def _refused(node: onnx.NodeProto) -> UnsupportedError:
    called = f" ({node.name})" if node.name else ""
    return UnsupportedError(f"{node.op_type}{called}: computes a shape from channels in a way that can't be cut")


def _store(array: Array, tensor: TensorProto) -> None:
    """Put an array in the place of a tensor, whose name and description stay."""
    made = numpy_helper.from_array(np.array(array, order="C"), tensor.name)
    for kind in ("dims", "raw_data", "float_data", "int32_data", "string_data", "int64_data"):
        tensor.ClearField(kind)
    for kind in ("double_data", "uint64_data", "external_data", "data_location"):
        tensor.ClearField(kind)
    tensor.MergeFrom(made)
