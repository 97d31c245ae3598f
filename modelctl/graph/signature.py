"""What goes into a model and what comes out: names, element types, shapes, and how a user spells them.

An input is spelled `name:dtype[batch,3,224,224]`: sizes are numbers, free dimensions are names, and two free
dimensions of the same name have the same size. A scalar is `name:dtype[]`.
"""

import re
from collections.abc import Iterable, Iterator, Sequence

from modelctl.errors import CheckFailed, UsageError
from modelctl.manifest import TensorSpec

EXAMPLE = "--input 'x:float32[batch,1,28,28]'"
DTYPES = (
    *("float32", "float64", "float16", "bool"),
    *("int64", "int32", "int16", "int8", "uint8", "uint16", "uint32", "uint64"),
)
LIMIT_SIZE = 2**31 - 1

_UNNAMED = re.compile(r"dim\d+")  # see `session`
_SPELLED = re.compile(r"(?P<name>[^:\[\]]+):\s*(?P<dtype>\w+)\s*\[(?P<shape>[^\[\]]*)\]")


def parse_input(text: str) -> TensorSpec:
    """The input that a user spelled; UsageError says what is wrong with it."""
    match = _SPELLED.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"--input {text}: not name:dtype[shape]", EXAMPLE)
    name, dtype = match["name"].strip(), match["dtype"]
    if dtype not in DTYPES:
        raise UsageError(f"--input {text}: no element type is called {dtype!r}", f"one of: {', '.join(DTYPES)}")
    if not name or not name.isprintable():
        raise UsageError(f"--input {text}: an input needs a name", EXAMPLE)
    parts = [part.strip() for part in match["shape"].split(",")] if match["shape"].strip() else []
    return TensorSpec(name=name, dtype=dtype, shape=tuple(_size(part, text) for part in parts))


def _size(part: str, text: str) -> int | str:
    if part.isascii() and part.isdigit() and 0 < int(part) <= LIMIT_SIZE:
        return int(part)
    if part.isidentifier():
        return part
    raise UsageError(f"--input {text}: {part!r} is neither a size nor the name of a free dimension", EXAMPLE)


def parse_inputs(texts: Sequence[str]) -> tuple[TensorSpec, ...]:
    """The inputs that a user spelled, in that order; UsageError when two have the same name."""
    specs = tuple(parse_input(text) for text in texts)
    for index, spec in enumerate(specs):
        if spec.name in {one.name for one in specs[:index]}:
            raise UsageError(f"--input {texts[index]}: a second input of that name")
    return specs


def free_dimensions(specs: Iterable[TensorSpec]) -> tuple[str, ...]:
    """The names of all free dimensions, each once, in the order in which they are met."""
    return tuple(dict.fromkeys(size for spec in specs for size in spec.shape if isinstance(size, str)))


def batch_dimension(specs: Iterable[TensorSpec]) -> str | None:
    """The free dimension along which samples lie: the first axis of the first input that has it free; None if none."""
    return next((spec.shape[0] for spec in specs if spec.shape and isinstance(spec.shape[0], str)), None)


def readings(specs: Sequence[TensorSpec]) -> Iterator[tuple[TensorSpec, ...]]:
    """Inputs as they may be meant whose free dimensions have no names, so that onnxruntime's session counts them.

    First each such dimension beyond the first axis is one by itself, by the name `<input>_<axis>`. Then one after the
    other is as long as the batch, as a recurrent state [layers, batch, width] is beside samples [batch, length].
    """
    apart = tuple(
        _shaped(spec, [_own_name(spec, axis, size) for axis, size in enumerate(spec.shape)]) for spec in specs
    )
    yield apart
    batch = batch_dimension(apart)
    unnamed = set(free_dimensions(apart)) - set(free_dimensions(specs))
    for tied in free_dimensions(apart):
        if batch is not None and tied in unnamed:
            yield tuple(_shaped(spec, [batch if size == tied else size for size in spec.shape]) for spec in apart)


def _shaped(spec: TensorSpec, sizes: Iterable[int | str]) -> TensorSpec:
    return TensorSpec(name=spec.name, dtype=spec.dtype, shape=tuple(sizes))


def _own_name(spec: TensorSpec, axis: int, size: int | str) -> int | str:
    return f"{spec.name}_{axis}" if axis and isinstance(size, str) and _UNNAMED.fullmatch(size) else size


def spelled(spec: TensorSpec) -> str:
    """An input as a user spells it."""
    return f"{spec.name}:{spec.dtype}[{','.join(map(str, spec.shape))}]"


def agree(
    found: Sequence[TensorSpec], asked: Sequence[TensorSpec], name: str, *, rename: bool = False
) -> tuple[TensorSpec, ...]:
    """The inputs `found` in the model called `name`, in its order, their free dimensions called as the user asked.

    With `rename`, inputs of other names are taken in the order given, and called as asked. CheckFailed when a dimension
    that was asked to be free is not; UsageError when inputs, element types, ranks or sizes are not the ones asked for.
    """
    wanted = {spec.name: spec for spec in asked}
    if set(wanted) == {spec.name for spec in found}:
        return tuple(_agreed(spec, wanted[spec.name], name) for spec in found)
    if rename and len(asked) == len(found):
        return tuple(_agreed(real, spec, name) for real, spec in zip(found, asked, strict=True))
    raise UsageError(
        f"{name}: takes {', '.join(map(spelled, found)) or 'no inputs'}",
        " ".join(f"--input '{spelled(spec)}'" for spec in found),
    )


def _agreed(found: TensorSpec, asked: TensorSpec, name: str) -> TensorSpec:
    if found.dtype != asked.dtype or len(found.shape) != len(asked.shape):
        raise UsageError(f"{name}: takes {spelled(found)}, not {spelled(asked)}", f"--input '{spelled(found)}'")
    for axis, (real, size) in enumerate(zip(found.shape, asked.shape, strict=True)):
        if isinstance(real, int) and isinstance(size, str):
            raise CheckFailed(
                f"{name}: the dimension {size!r} of {found.name!r} was to be free, but it is {real} for good",
                "export the model again with that dimension free",
            )
        if isinstance(size, int) and real != size:
            raise UsageError(f"{name}: axis {axis} of {found.name!r} is {real}, not {size}")
    return asked
