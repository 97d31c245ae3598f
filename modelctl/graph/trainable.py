"""An ONNX graph as a torch module: run and learned from its file alone, and written back into the same graph.

The graph is read once into a list of instructions (`instructions.py`), so that a run is a straight loop.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import numpy_helper
from onnx.external_data_helper import uses_external_data

from modelctl.artifact import Payload
from modelctl.errors import DataError, UnsupportedError
from modelctl.formats import onnx as onnx_format
from modelctl.graph.instructions import DEFAULT_DOMAINS, UNFIT, Build, unfit
from modelctl.graph.operators.node import DTYPES, OLDEST_OPSET, Mode, to_torch
from modelctl.graph.operators.quantization import Stored
from modelctl.graph.straight import straight


class TrainableGraph(torch.nn.Module):
    """A graph whose parameters are its float initializers and whose forward runs its operators.

    Weights that are stored as integers and read by DequantizeLinear learn too, as floats (`Stored`).

    Not learned are: running statistics, what shapes and bounds are made of, single numbers that something is added to
    or multiplied with, and tensors that hold infinity or numbers above 10,000 (masks). `parameter_names` and
    `buffer_names` tell which initializer each parameter and buffer is.
    """

    def __init__(self, model: onnx.ModelProto, name: str = "model", files: Mapping[str, bytes] | None = None) -> None:
        """Read a graph, which is left as it is. UnsupportedError names an operator that has no meaning here.

        `files` hold the data of its external tensors; nothing of them is kept.
        """
        super().__init__()
        self.name = name
        self.mode = Mode(self.training)
        model = straight(model, name)
        opsets = {("" if one.domain in DEFAULT_DOMAINS else one.domain): one.version for one in model.opset_import}
        if opsets.get("", OLDEST_OPSET) < OLDEST_OPSET:
            raise UnsupportedError(
                f"{name}: is of opset {opsets['']}, and training begins at {OLDEST_OPSET}",
                f"modelctl export {name} --opset 18 -o model.onnx",
            )
        build = Build(name, opsets, self.mode, model, files)
        held = {tensor.name for tensor in model.graph.initializer}
        self.input_names = tuple(one.name for one in model.graph.input if one.name not in held)
        self.output_names = tuple(one.name for one in model.graph.output)
        self.parameter_names: dict[str, str] = {}
        self.buffer_names: dict[str, str] = {}
        for place, initializer in enumerate(list(build.learned)):
            tensor = _laid_out(build.learned.pop(initializer))
            self.register_parameter(f"w{place}", torch.nn.Parameter(tensor))
            self.parameter_names[f"w{place}"] = initializer
        for place, (value, tensor) in enumerate(build.on_device.items()):
            self.register_buffer(f"b{place}", tensor, persistent=value in held)
            self.buffer_names[f"b{place}"] = value
        kinds = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
        self._stored = {
            name: key
            for key, name in (self.parameter_names | self.buffer_names).items()
            if kinds.get(name) in DTYPES or name in build.stored  # others are held in a larger type, and never change
        }
        self._few_bits = build.stored
        self._skeleton = _skeleton(model, self._stored.keys() - self._few_bits.keys(), files)
        self._slots = build.slots
        self._host_slots = {build.host_slots[value]: tensor for value, tensor in build.on_host.items()}
        self._size = build.size
        self._instructions = build.instructions

    @classmethod
    def of(cls, payload: Payload, name: str) -> "TrainableGraph":
        """The graph in a payload, of which it keeps nothing; ArtifactError if the payload is unsound.

        In memory are the payload and the weights, each once, and for a moment the kernel of a convolution that is being
        laid out. Only models that are packed or have functions or subgraphs, and weights that protobuf holds as lists
        of numbers, are taken in first: until the graph is built, that comes to three to four and a half times its size.
        """
        return cls(onnx_format.outline(payload), name, payload.files)

    @property
    def nodes(self) -> list[onnx.NodeProto]:
        """The nodes that every run goes through, in its order."""
        return [one.node for one in self._instructions]

    def train(self, mode: bool = True) -> "TrainableGraph":
        """As of every module; batch normalization then uses the batch, and dropout drops."""
        super().train(mode)
        self.mode.training = mode
        return self

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The outputs, in the graph's order, for its inputs in theirs; DataError when they don't fit."""
        return tuple(self.values(inputs, self.output_names).values())

    def values(self, inputs: Sequence[torch.Tensor], names: Iterable[str]) -> dict[str, torch.Tensor]:
        """Any values of the graph by name, inner ones too; DataError when the inputs don't fit."""
        if len(inputs) != len(self.input_names):
            raise DataError(f"{self.name}: takes {len(self.input_names)} inputs, was given {len(inputs)}")
        wanted = list(names)
        inner = {self._slots[name] for name in wanted} - {self._slots[name] for name in self.output_names}
        values = self._filled(inputs)
        device = self._device()
        for one in self._instructions:
            given = [values[slot] for slot in one.inputs]
            if device is not None:
                for place in one.lifted:
                    given[place] = _lifted(given[place], device)
            try:
                found = one.call(*given)
            except UNFIT as error:
                raise unfit(self.name, one.node, error) from error
            if isinstance(found, tuple):
                for slot, value in zip(one.outputs, found, strict=False):
                    values[slot] = value
            else:
                values[one.outputs[0]] = found
            for slot in one.free:
                if slot not in inner:
                    values[slot] = None
        return {name: values[self._slots[name]] for name in wanted}

    def to_onnx(self) -> onnx.ModelProto:
        """The same graph, names and metadata kept, with the weights and running statistics as they are now."""
        made, numbers = self._written()
        for tensor in made.graph.initializer:
            if tensor.name in numbers:
                tensor.raw_data = bytes(numbers[tensor.name]())
        return made

    def save(self, path: Path) -> None:
        """Write `to_onnx()` as a file (see `formats.onnx`), the weights one after another, never all of them twice."""
        made, numbers = self._written()
        onnx_format.save(made, path, numbers)

    def _written(self) -> tuple[onnx.ModelProto, onnx_format.Numbers]:
        """The same graph without the floats that are kept here, and what gives the bytes of each."""
        made = onnx.ModelProto()
        made.CopyFrom(self._skeleton)
        numbers: dict[str, Callable[[], memoryview]] = {}
        for tensor in made.graph.initializer:
            if tensor.name in self._few_bits:
                _store_few_bits(self._few_bits[tensor.name], getattr(self, self._stored[tensor.name]), tensor)
            elif tensor.name in self._stored:
                held = getattr(self, self._stored[tensor.name])
                numbers[tensor.name] = partial(_bytes_of, held, DTYPES[tensor.data_type])
        return made, numbers

    def _filled(self, inputs: Sequence[torch.Tensor]) -> list[Any]:
        values: list[Any] = [None] * self._size
        for slot, tensor in self._host_slots.items():
            values[slot] = tensor
        for key, name in self.parameter_names.items():
            values[self._slots[name]] = self._parameters[key]
        for key, name in self.buffer_names.items():
            values[self._slots[name]] = self._buffers[key]
        for name, tensor in zip(self.input_names, inputs, strict=True):
            values[self._slots[name]] = tensor
        return values

    def _device(self) -> torch.device | None:
        """Where the graph runs, if that is not the CPU."""
        held = next(iter((*self._parameters.values(), *self._buffers.values())), None)
        return None if held is None or held.device.type == "cpu" else held.device


def _lifted(value: Any, device: torch.device) -> Any:
    """A tensor, or each one of a sequence, on the device."""
    if isinstance(value, list):
        return [one.to(device, non_blocking=True) for one in value]
    return value.to(device, non_blocking=True)


def _laid_out(tensor: torch.Tensor) -> torch.Tensor:
    """Kernels of convolutions as torch computes fastest with them, channels last."""
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor


def _skeleton(model: onnx.ModelProto, emptied: Collection[str], files: Mapping[str, bytes] | None) -> onnx.ModelProto:
    """A copy of a model in which some initializers have no data, and none has them in `files`."""
    made = onnx.ModelProto()
    for descriptor, value in model.ListFields():
        if descriptor.name != "graph":
            _copy(made, descriptor.name, value)
    for descriptor, value in model.graph.ListFields():
        if descriptor.name != "initializer":
            _copy(made.graph, descriptor.name, value)
    for tensor in model.graph.initializer:
        if tensor.name in emptied:
            kept = made.graph.initializer.add()
            for descriptor, value in tensor.ListFields():
                if not descriptor.name.endswith("_data"):
                    _copy(kept, descriptor.name, value)
            if uses_external_data(kept):
                kept.ClearField("data_location")
        else:
            made.graph.initializer.append(tensor)
            if uses_external_data(tensor):
                onnx_format.take_in(made.graph.initializer[-1], files or {})
    return made


def _copy(into: Any, field: str, value: Any) -> None:
    if isinstance(value, str | bytes | int | float):
        setattr(into, field, value)
    else:
        getattr(into, field).MergeFrom(value)


def _bytes_of(tensor: torch.Tensor, dtype: torch.dtype) -> memoryview:
    """A tensor's numbers in this type, one after another."""
    return tensor.detach().to("cpu", dtype).contiguous().reshape(-1).view(torch.uint8).numpy().data


def _store_few_bits(stored: Stored, learned: torch.Tensor, into: onnx.TensorProto) -> None:
    """Write a learned float as the integers that stand for it; an initializer that stays the same keeps its bytes."""
    before = to_torch(into)
    numbers = stored.numbers(learned, before)
    if torch.equal(numbers.to(torch.float64), before.to(torch.float64)):
        return
    wide = (numbers if numbers.dtype == torch.int32 else numbers.to(torch.float32)).numpy()
    made = numpy_helper.from_array(wide.astype(onnx.helper.tensor_dtype_to_np_dtype(into.data_type)))
    for field in [descriptor.name for descriptor, _ in into.ListFields() if descriptor.name.endswith("_data")]:
        into.ClearField(field)
    into.raw_data = made.raw_data
