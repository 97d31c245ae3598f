"""torch modules and exported programs: traced, read from `.pt2`, run, and turned into ONNX.

Everything here is quiet: what torch and onnxscript print, log and warn of is chatter, and what matters is raised.
"""

import contextlib
import inspect
import io
import logging
import re
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import ModuleType
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import torch
from onnx_ir.passes.common import NameFixPass, OutputFixPass
from torch.export import Dim, ExportedProgram
from torch.utils import _pytree as pytree

from modelctl.errors import ArtifactError, CheckFailed, DataError, UnsupportedError, UsageError
from modelctl.factory import AuthorsCode, told
from modelctl.formats import recurrent
from modelctl.manifest import TensorSpec

Arrays = Mapping[str, np.ndarray[Any, Any]]
Call = Callable[[Sequence[Any]], tuple[tuple[Any, ...], dict[str, Any]]]  # one value an input → args, kwargs

ROOM_BYTES = 1 << 30  # for what is looked at inside a program

# What torch says of a dimension that was to be free (torch/fx/experimental/symbolic_shapes.py).
_FIXED = re.compile(
    r"You marked (?P<place>\S+) as dynamic but your code specialized it to be a constant \((?P<size>\d+)\)"
)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """A block in which libraries neither warn, log nor print."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        silence = io.StringIO()
        with warnings.catch_warnings(), contextlib.redirect_stdout(silence), contextlib.redirect_stderr(silence):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


@dataclass(frozen=True)
class Traced:
    """A model that can be run and exported: its inputs in order, and how it is called with them."""

    name: str
    module: torch.nn.Module
    inputs: tuple[TensorSpec, ...]
    call: Call
    outputs: tuple[str, ...] | None = None  # names, where the author gave them
    limits: Mapping[str, tuple[int, int | None]] = field(default_factory=dict)  # least and largest size by dimension

    def run(self, feeds: Arrays) -> dict[str, np.ndarray[Any, Any]]:
        """The outputs by name for inputs by name, on the author's own code; DataError when that refuses them."""
        self._check_limits(feeds)
        args, kwargs = self.call([torch.from_numpy(np.ascontiguousarray(feeds[one.name])) for one in self.inputs])
        with torch.no_grad(), AuthorsCode(f"{self.name}: failed on this input", DataError), quiet():
            answer = self.module(*args, **kwargs)
        names = names_of(answer, self.name, self.outputs, [one.name for one in self.inputs])
        return dict(zip(names, (_array(leaf) for leaf in pytree.tree_leaves(answer)), strict=True))

    def called(self, inputs: tuple[TensorSpec, ...]) -> "Traced":
        """The same model, its inputs and free dimensions under other names."""
        pairs = zip(self.inputs, inputs, strict=True)
        names = {str(old): str(new) for one, other in pairs for old, new in zip(one.shape, other.shape, strict=True)}
        limits = {names[name]: limit for name, limit in self.limits.items()}
        return replace(self, inputs=inputs, limits=limits)

    def _check_limits(self, feeds: Arrays) -> None:
        for spec in self.inputs:
            for size, real in zip(spec.shape, feeds[spec.name].shape, strict=True):
                low, high = self.limits.get(str(size), (0, None))
                if real < low or (high is not None and real > high):
                    bounds = f"at least {low}" if high is None else f"{low} to {high}"
                    raise DataError(f"{self.name}: {size} must be {bounds}, is {real}")


def _array(leaf: torch.Tensor) -> np.ndarray[Any, Any]:
    if leaf.dtype == torch.bfloat16:
        return _array(leaf.contiguous().view(torch.int16)).view(ml_dtypes.bfloat16)
    array: np.ndarray[Any, Any] = leaf.detach().cpu().resolve_conj().resolve_neg().numpy()
    return array


def names_of(answer: Any, what: str, given: Sequence[str] | None, taken: Sequence[str]) -> tuple[str, ...]:
    """Names for the tensors of what `forward` returns: the author's, keys, fields, or `output`, `output_0`, …

    UnsupportedError when something in it is no tensor.
    """
    leaves = pytree.tree_leaves(answer)
    if not leaves or not all(isinstance(leaf, torch.Tensor) for leaf in leaves):
        other = next((type(leaf).__name__ for leaf in leaves if not isinstance(leaf, torch.Tensor)), "nothing")
        raise UnsupportedError(f"{what}: forward returns {other}, and only tensors can be exported")
    if given is not None:
        if len(given) != len(leaves):
            raise UnsupportedError(f"{what}: names {len(given)} outputs, but forward returns {len(leaves)}")
        found = list(given)
    elif isinstance(answer, dict) and len(answer) == len(leaves):
        found = [str(key) for key in answer]
    elif hasattr(answer, "_fields") and len(answer._fields) == len(leaves):
        found = list(answer._fields)
    else:
        found = ["output"] if len(leaves) == 1 else [f"output_{index}" for index in range(len(leaves))]
    return tuple(f"{name}_out" if name in taken else name for name in found)


def bind(module: torch.nn.Module, inputs: Sequence[TensorSpec]) -> Call:
    """How `forward` is called: by keyword if every input is named after one of its parameters, else by position."""
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    known = {name for name, one in inspect.signature(module.forward).parameters.items() if one.kind in kinds}
    names = [spec.name for spec in inputs]
    if set(names) <= known:
        return lambda values: ((), dict(zip(names, values, strict=True)))
    return lambda values: (tuple(values), {})


def trace(model: Traced, sizes: Mapping[str, int]) -> ExportedProgram:
    """The program of a module, its free dimensions free, traced at `sizes`.

    CheckFailed when the code fixes a dimension that was to be free; UnsupportedError when torch can't trace it.
    """
    generator = torch.Generator().manual_seed(0)
    values = [_example(spec, sizes, generator) for spec in model.inputs]
    shapes = [
        {axis: Dim.DYNAMIC for axis, size in enumerate(spec.shape) if isinstance(size, str)} for spec in model.inputs
    ]
    args, kwargs = model.call(values)
    by_position, by_name = model.call(shapes)
    dynamic: Any = by_position or by_name or None
    try:
        with AuthorsCode(f"{model.name}: can't be traced", UnsupportedError), quiet(), recurrent.kept_whole():
            return torch.export.export(model.module, args, kwargs, dynamic_shapes=dynamic, strict=False)
    except UnsupportedError as error:
        found = _FIXED.search(str(error.__cause__))
        if found is None:
            raise
        size = found["size"]
        word = next((name for name, real in sizes.items() if str(real) == size), found["place"])
        message = f"{model.name}: the dimension {word!r} was to be free, but torch can trace it at {size} only"
        raise CheckFailed(message, f"write its size in place of {word}") from error.__cause__


def _example(spec: TensorSpec, sizes: Mapping[str, int], generator: torch.Generator) -> torch.Tensor:
    shape = [sizes[size] if isinstance(size, str) else size for size in spec.shape]
    dtype = getattr(torch, spec.dtype)
    if dtype.is_floating_point:
        return torch.randn(shape, generator=generator).to(dtype)
    return torch.randint(0, 2, shape, generator=generator).to(dtype)


def to_onnx(
    program: ExportedProgram, name: str, inputs: Sequence[str], outputs: Sequence[str], opset: int
) -> tuple[onnx.ModelProto, ExportedProgram]:
    """The program called `name` as torch translates it, not yet folded or cleaned, and in the operators used.

    UnsupportedError for what ONNX has no word for.
    """
    what = f"{name}: can't be written as ONNX"
    try:
        with AuthorsCode(what, UnsupportedError), quiet():
            made = torch.onnx.export(
                program,
                dynamo=True,
                optimize=False,
                verbose=False,
                opset_version=opset,
                custom_translation_table=recurrent.translations(),
            )
    except UnsupportedError as error:
        first: BaseException = error
        while first.__cause__ is not None:
            first = first.__cause__
        raise UnsupportedError(f"{what}: {told(first)}") from error
    assert made is not None and made.exported_program is not None
    model = made.model
    OutputFixPass()(model)  # what is input and output at once can have one name only
    for values, names in ((model.graph.inputs, inputs), (model.graph.outputs, outputs)):
        for value, word in zip(values, names, strict=True):
            value.name = word
    NameFixPass()(model)
    return ir.serde.serialize_model(model), made.exported_program


class _Watched(torch.fx.Interpreter):
    """Runs a program and keeps what its steps give that are asked for, as long as there is room."""

    def __init__(self, program: ExportedProgram, names: Collection[str]) -> None:
        super().__init__(program.module(check_guards=False))
        self.names = names
        self.room_bytes = ROOM_BYTES
        self.values: dict[str, np.ndarray[Any, Any]] = {}

    def run_node(self, n: torch.fx.Node) -> Any:
        value = super().run_node(n)
        if n.op == "call_function" and n.name in self.names and isinstance(value, torch.Tensor):
            self.room_bytes -= value.nbytes
            if self.room_bytes >= 0:
                self.values[n.name] = _array(value).copy()
        return value


def values_inside(
    program: ExportedProgram, feeds: Sequence[np.ndarray[Any, Any]], names: Collection[str], outputs: Sequence[str]
) -> dict[str, np.ndarray[Any, Any]]:
    """What the steps of a program called `names` give, and its outputs, called `outputs`, for one array an input.

    The first `ROOM_BYTES` of them; DataError when the program can't be run on this input.
    """
    given = [torch.from_numpy(np.ascontiguousarray(array)) for array in feeds]
    with torch.no_grad(), AuthorsCode("the program: failed on this input", DataError), quiet():
        watched = _Watched(program, names)
        answers = watched.run(*given, enable_io_processing=False)
    leaves = pytree.tree_leaves(answers)
    return watched.values | dict(zip(outputs, map(_array, leaves), strict=False))


def refuse_training(program: ExportedProgram, name: str) -> None:
    """CheckFailed when the program works as in training: dropout drops, batch norm learns, what it holds changes."""
    hint = "call model.eval() before torch.export, and pass training=self.training"
    held = program.graph_signature.inputs_to_buffers
    for node in program.graph.nodes:
        schema = getattr(node.target, "_schema", None)
        if node.op != "call_function" or schema is None:
            continue
        given = dict(zip((one.name for one in schema.arguments), node.args, strict=False)) | node.kwargs
        learns = given.get("running_mean", True) is not None  # without statistics it always works on the batch's own
        if (given.get("train") or given.get("training") or given.get("dropout_p")) and learns:
            operator = schema.name.removeprefix("aten::")
            raise CheckFailed(f"{name}: left in training mode: {operator} works as in training", hint)
        for one in schema.arguments:
            written = given.get(one.name) if one.alias_info is not None and one.alias_info.is_write else None
            if isinstance(written, torch.fx.Node) and written.name in held:
                raise CheckFailed(f"{name}: left in training mode: it changes its own {held[written.name]!r}", hint)


def check_module(module: Any, reference: str) -> None:
    """UsageError unless it is a torch module."""
    if not isinstance(module, torch.nn.Module):
        kind = type(module).__name__
        raise UsageError(f"{reference}: returns {kind}, and a factory returns a torch.nn.Module")


def is_training(module: torch.nn.Module) -> bool:
    """Whether a submodule that works otherwise in training is in that mode."""
    modal = (torch.nn.modules.dropout._DropoutNd, torch.nn.modules.batchnorm._NormBase)
    return any(part.training and isinstance(part, modal) for part in module.modules())


def example_specs(module: torch.nn.Module, home: ModuleType) -> tuple[TensorSpec, ...]:
    """The inputs that the author's `example_inputs` show: on the module, or in the Python module of its factory.

    A tensor, a tuple of them, a dict by name, or a function that returns such; the first axis is free, called batch.
    Empty when there is none.
    """
    given = getattr(module, "example_inputs", None)
    given = getattr(home, "example_inputs", None) if given is None else given
    with AuthorsCode("example_inputs"):
        given = given() if callable(given) else given
    if given is None:
        return ()
    if not isinstance(given, dict):
        values = given if isinstance(given, list | tuple) else (given,)
        parameters = inspect.signature(module.forward).parameters
        given = dict(zip(parameters, values, strict=False))
    specs = []
    for name, value in given.items():
        if not isinstance(value, torch.Tensor):
            raise ArtifactError(f"example_inputs: {name!r} is a {type(value).__name__}, not a tensor")
        shape = ("batch", *value.shape[1:]) if value.ndim else ()
        specs.append(TensorSpec(name=name, dtype=str(value.dtype).removeprefix("torch."), shape=shape))
    return tuple(specs)
