"""Whether what is declared fits a graph; and what was not said, filled in from the graph's inputs and outputs.

image   `input` where there is one only, height and width, layout and colour by its shape; scale 1 for integers
table   `input`
text    `input` and, by the names that exporters give them, `mask` and `types`; a fixed length; the tokenizer's pad id
after   `output`, the first; the `mask` of a pool, that of the text
"""

from collections.abc import Sequence
from typing import Any

from modelctl import chains
from modelctl.chains.spelling import EXAMPLES, TOKENIZER, Draft, finished
from modelctl.errors import UsageError
from modelctl.manifest import TensorSpec
from modelctl.processing import pixels

_IDS = ("input_ids", "ids", "tokens")
_FLOATS = ("float32", "float64", "float16", "bfloat16")
_NUMBERS = frozenset({*_FLOATS, *(f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64))})


def settled_before(drafts: Sequence[Draft], inputs: Sequence[TensorSpec]) -> tuple[chains.Preprocess, ...]:
    """The entries for a model of these inputs; UsageError, exit status 2, where they don't fit."""
    free = [spec.name for spec in inputs]
    entries: list[chains.Preprocess] = []
    for draft in drafts:
        fields = dict(draft.fields)
        if "input" not in fields:
            fields["input"] = _only(draft, fields["do"], free)
        spec = next((one for one in inputs if one.name == fields["input"]), None)
        if spec is None:
            known = ", ".join(one.name for one in inputs)
            raise _wrong(draft, f"the model has no input {fields['input']!r}; it takes {known}")
        if fields["do"] == "image":
            fields = _image_filled(fields, spec)
        elif fields["do"] == "text":
            fields = _text_filled(draft, fields, spec, {one.name for one in inputs})
        missing = [name for name in ("height", "width") if fields["do"] == "image" and name not in fields]
        if missing:
            raise _wrong(draft, f"{_told(spec)} leaves its size open: say image:HEIGHTxWIDTH")
        entry = finished("preprocess", draft, fields)
        free = [name for name in free if name not in _taken(entry)]
        entries.append(entry)
    check_before(entries, inputs)
    return tuple(entries)


def _only(draft: Draft, do: str, free: list[str]) -> str:
    """The input that an entry is for, where that was not said."""
    likely = [name for name in free if name in _IDS] if do == "text" else []
    if len(likely or free) == 1:
        return (likely or free)[0]
    raise _wrong(draft, f"which input is it for? add input=NAME, one of: {', '.join(free) or 'none is left'}")


def _taken(entry: chains.Preprocess) -> set[str]:
    """The inputs that an entry makes."""
    more = (entry.mask, entry.types) if isinstance(entry, chains.Text) else ()
    return {entry.input, *(name for name in more if name is not None)}


def _image_filled(fields: dict[str, Any], spec: TensorSpec) -> dict[str, Any]:
    shape, rank = spec.shape, len(spec.shape)
    guess: dict[str, Any] = {}
    if rank == 4:
        last = fields.get("layout") == "nhwc" or (shape[1] not in (1, 3) and shape[3] in (1, 3))
        order = (2, 3, 1) if not last or fields.get("layout") == "nchw" else (1, 2, 3)
        guess["layout"] = "nhwc" if order[0] == 1 else "nchw"
        high, wide, channels = (shape[axis] for axis in order)
        guess["color"] = {1: "gray", 3: "rgb"}.get(channels if isinstance(channels, int) else 0)
    elif rank == 3:
        guess["layout"], guess["color"] = "nhw", "gray"
        high, wide = shape[1:]
    else:
        guess["layout"] = "flat" if rank == 2 else "nchw"
        high = wide = ""
        size = fields.get("height", 0) * fields.get("width", 0)
        guess["color"] = {size: "gray", 3 * size: "rgb"}.get(shape[-1] if rank == 2 else 0)
    guess |= {"height": high} if isinstance(high, int) else {}
    guess |= {"width": wide} if isinstance(wide, int) else {}
    guess |= {} if spec.dtype in _FLOATS else {"scale": 1.0}
    return {name: value for name, value in guess.items() if value is not None} | fields


def _text_filled(draft: Draft, fields: dict[str, Any], spec: TensorSpec, names: set[str]) -> dict[str, Any]:
    guess: dict[str, Any] = {}
    for name, usual in (("mask", "attention_mask"), ("types", "token_type_ids")):
        guess |= {name: usual} if usual in names else {}
    if len(spec.shape) == 2 and isinstance(spec.shape[1], int):
        guess |= {"max_length": spec.shape[1], "pad": "max"}
    try:
        told = TOKENIZER.json(tokenizer_bytes(draft), draft.files["tokenizer"])
        guess["pad_id"] = int((told.get("padding") or {}).get("pad_id", 0))
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise _wrong(draft, "the tokenizer.json is not sound JSON") from error
    return guess | fields


def tokenizer_bytes(draft: Draft) -> bytes:
    """The bytes of the tokenizer that a text's draft names; UsageError if there is no such file, or it is too large."""
    return TOKENIZER.data(draft.files["tokenizer"])


def check_before(entries: Sequence[chains.Preprocess], inputs: Sequence[TensorSpec]) -> None:
    """UsageError unless the entries make all inputs, each once, of their shapes and types."""
    specs = {spec.name: spec for spec in inputs}
    made: set[str] = set()
    for entry in entries:
        for name in sorted(_taken(entry)):
            if name not in specs:
                raise UsageError(f"--preprocess: the model has no input {name!r}; it takes {', '.join(specs)}")
            if name in made:
                raise UsageError(f"--preprocess: input {name!r} is made twice")
            made.add(name)
        _check_shape(entry, specs)
    left = [name for name in specs if name not in made]
    if entries and left:
        raise UsageError(
            f"--preprocess: nothing makes input {left[0]!r}; the model takes {', '.join(specs)}",
            EXAMPLES["preprocess"] + f",input={left[0]}",
        )


def _check_shape(entry: chains.Preprocess, specs: dict[str, TensorSpec]) -> None:
    spec = specs[entry.input]
    if spec.dtype not in _NUMBERS:
        raise UsageError(f"--preprocess: makes numbers, and the model takes {_told(spec)}")
    if isinstance(entry, chains.Image):
        _check_fits("image", pixels.row_shape(entry), spec)
        pixels.values(entry, spec)  # whether its type holds the numbers
    elif isinstance(entry, chains.Table):
        _check_fits("table", () if len(spec.shape) == 1 and entry.width == 1 else (entry.width,), spec)
    else:
        for name in sorted(_taken(entry)):
            fixed = entry.max_length if entry.pad == "max" else None
            shape = specs[name].shape
            if specs[name].dtype not in ("int64", "int32") or len(shape) != 2 or (
                isinstance(shape[1], int) and shape[1] != fixed
            ):  # fmt: skip
                told = f"int64[N,{fixed or 'up to ' + str(entry.max_length)}]"
                raise UsageError(f"--preprocess text: makes {told}, and the model takes {_told(specs[name])}")


def _check_fits(what: str, row: tuple[int, ...], spec: TensorSpec) -> None:
    rest = spec.shape[1:]
    if not spec.shape or len(rest) != len(row) or any(
        isinstance(wanted, int) and wanted != size for wanted, size in zip(rest, row, strict=True)
    ):  # fmt: skip
        made = ",".join(map(str, ("N", *row)))
        raise UsageError(f"--preprocess {what}: makes {spec.dtype}[{made}], and the model takes {_told(spec)}")


def settled_after(
    drafts: Sequence[Draft],
    before: Sequence[chains.Preprocess],
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
) -> tuple[chains.Postprocess, ...]:
    """The entries for a model of these outputs, labels read from their file; UsageError where they don't fit."""
    mask = next((one.mask for one in before if isinstance(one, chains.Text)), None)
    entries = []
    for draft in drafts:
        fields = {"output": outputs[0].name} | draft.fields
        if fields["do"] == "pool" and fields.get("how") != "first" and mask is not None:
            fields = {"mask": mask} | fields
        if "labels" in draft.files:
            fields["labels"] = draft.labels()
        entries.append(finished("postprocess", draft, fields))
    check_after(entries, inputs, outputs)
    return tuple(entries)


def check_after(
    entries: Sequence[chains.Postprocess], inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
) -> None:
    """UsageError unless each entry can take what the one before it makes of the same output."""
    shapes: dict[str, tuple[int | str, ...] | None] = {spec.name: spec.shape for spec in outputs}
    specs = {spec.name: spec for spec in outputs}
    for entry in entries:
        do, spec = str(entry.__struct_config__.tag), specs.get(entry.output)
        if spec is None:
            raise UsageError(
                f"--postprocess {do}: the model has no output {entry.output!r}; it gives {', '.join(specs)}"
            )
        shape = shapes[entry.output]
        if shape is None:
            raise UsageError(f"--postprocess {do}: comes after what names the classes, which is the last")
        if spec.dtype in ("string", "bool"):
            raise UsageError(f"--postprocess {do}: takes numbers, and the model gives {_told(spec)}")
        shapes[entry.output] = _shape_after(entry, do, shape, {one.name for one in inputs})


def _shape_after(
    entry: chains.Postprocess, do: str, shape: tuple[int | str, ...], inputs: set[str]
) -> tuple[int | str, ...] | None:
    """The shape that an entry makes of one; None where it makes names."""
    told = f"[{','.join(map(str, shape))}]"
    if isinstance(entry, chains.Pool):
        if len(shape) != 3:
            raise UsageError(f"--postprocess pool: takes [N,tokens,K], and is given {entry.output}{told}")
        if entry.mask is not None and entry.mask not in inputs:
            raise UsageError(f"--postprocess pool: the model has no input {entry.mask!r} to be the mask")
        return shape[0], shape[2]
    if not shape:
        raise UsageError(f"--postprocess {do}: takes rows, and is given {entry.output}{told}")
    if not isinstance(entry, chains.Argmax | chains.TopK | chains.Threshold):
        return shape
    single = isinstance(entry, chains.Threshold) and (len(shape) == 1 or shape[1:] == (1,))
    if len(shape) < 2 and not single:
        raise UsageError(f"--postprocess {do}: takes scores [N,classes], and is given {entry.output}{told}")
    classes = 2 if single else shape[-1]
    if entry.labels and isinstance(classes, int) and len(entry.labels) != classes:
        raise UsageError(
            f"--postprocess {do}: {len(entry.labels)} labels for {classes} classes of {entry.output}{told}"
        )
    if isinstance(entry, chains.TopK) and isinstance(classes, int) and entry.k > classes:
        raise UsageError(f"--postprocess top-k={entry.k}: {entry.output}{told} has {classes} classes")
    return None


def _told(spec: TensorSpec) -> str:
    return f"{spec.name}:{spec.dtype}[{','.join(map(str, spec.shape))}]"


def _wrong(draft: Draft, what: str) -> UsageError:
    return UsageError(f"--preprocess {draft.text}: {what}", EXAMPLES["preprocess"])
