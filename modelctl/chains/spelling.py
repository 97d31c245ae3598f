"""How chains are typed: a word for the kind, then what is to be said of it; or a .toml or .json file with the entries.

    image[:28x28,gray,crop=256,bicubic,scale=1/255,mean=0.485:0.456:0.406,std=imagenet,invert,nhwc,input=x]
    table[:age,income,…][,input=x]
    text:tokenizer.json[,max-length=128,pad=max,mask=attention_mask,types=token_type_ids,input=ids]

    softmax,top-k=3,labels=labels.txt        sigmoid,threshold=0.5        pool,normalize        …,output=y

Sizes are height×width. What is not said is found in the model's inputs, where it can be (`processing/fitting.py`). A
file holds entries as the manifest does, under `preprocess` and `postprocess`; there `labels` and `tokenizer` may be
paths relative to the file. `labels.txt` has a label a line. `none` takes away what a model has declared.
"""

from codecs import BOM_UTF8
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from modelctl.chains.forms import FILTERS, Postprocess, Preprocess
from modelctl.errors import UsageError
from modelctl.reading import Small

NONE = "none"
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
EXAMPLES = {
    "preprocess": "--preprocess image:28x28,gray",
    "postprocess": "--postprocess softmax,top-k=3,labels=labels.txt",
}
ENTRIES = {kind: Small("a file of entries", 4 << 20, UsageError, example) for kind, example in EXAMPLES.items()}
LABELS = Small("a file of labels", 4 << 20, UsageError, EXAMPLES["postprocess"])
TOKENIZER = Small("a tokenizer.json", 64 << 20, UsageError, "--preprocess text:tokenizer.json")
_LAYOUTS = ("nchw", "nhwc", "nhw", "flat")
_NAMED = ("argmax", "top-k", "threshold")


@dataclass
class Draft:
    """An entry as it was typed: its fields, without what was not said, and those that are told by a file."""

    text: str
    fields: dict[str, Any]
    files: dict[str, Path] = field(default_factory=dict)

    def labels(self) -> tuple[str, ...]:
        """What `labels` are, out of their file if they are told by one; UsageError if it is not one."""
        if "labels" not in self.files:
            return tuple(self.fields.get("labels", ()))
        lines = LABELS.text(self.files["labels"]).removeprefix("\ufeff").splitlines()
        while lines and not lines[-1].strip():
            lines.pop()
        if not lines:
            raise LABELS.refused(self.files["labels"], "holds no labels, one a line")
        return tuple(line.strip() for line in lines)


def parse(kind: str, texts: Sequence[str]) -> list[Draft]:
    """The entries of `preprocess` or `postprocess`, as they were typed; UsageError says what is wrong with which.

    A file that holds entries is read, one with labels or a tokenizer not yet.
    """
    found: list[Draft] = []
    for text in texts:
        if text == NONE:
            continue
        if text.endswith((".toml", ".json")) and ":" not in text:
            found += _of_file(kind, text)
        elif kind == "preprocess":
            found.append(_before(text))
        else:
            found += _after(text)
    for draft in found:
        _try(kind, draft)
    return found


def check(kind: str, texts: Sequence[str]) -> None:
    """As `parse`, but no file is read."""
    parse(kind, [text for text in texts if not (text.endswith((".toml", ".json")) and ":" not in text)])
    if NONE in texts and len(texts) > 1:
        raise UsageError(f"--{kind} none: stands alone", EXAMPLES[kind])


def _wrong(kind: str, text: str, what: str) -> UsageError:
    return UsageError(f"--{kind} {text}: {what}", EXAMPLES[kind])


def _before(text: str) -> Draft:
    word, _, rest = text.partition(":")
    said = {"image": _image, "table": _table, "text": _text}.get(word.strip())
    if said is None:
        raise _wrong("preprocess", text, f"{word.strip()!r} is not image, table or text, or a .toml or .json file")
    draft = Draft(text, {"do": word.strip()})
    for part in _parts(rest):
        said(draft, part, *_pair(part))
    return draft


def _parts(text: str) -> list[str]:
    return [part for one in text.split(",") if (part := one.strip())]


def _pair(part: str) -> tuple[str, str | None]:
    key, equals, value = part.partition("=")
    return key.strip().replace("-", "_"), value.strip() if equals else None


def _image(draft: Draft, part: str, key: str, value: str | None) -> None:
    fields = draft.fields
    high, cross, wide = part.partition("x")
    if cross and high.isdecimal() and wide.isdecimal() and len(part) < 16:
        fields |= {"height": int(high), "width": int(wide)}
    elif part in ("gray", "rgb"):
        fields["color"] = part
    elif part in _LAYOUTS:
        fields["layout"] = part
    elif part in FILTERS:
        fields["filter"] = part
    elif part in ("stretch", "crop", "pad"):
        fields["fit"] = part
    elif part == "invert":
        fields["invert"] = True
    elif part == "imagenet":
        fields |= IMAGENET
    elif key == "crop" and value:
        fields |= {"fit": "crop", "shorter": _whole("preprocess", draft, part, value)}
    elif key in ("mean", "std") and value:
        fields[key] = IMAGENET[key] if value == "imagenet" else _numbers(draft, part, value)
    elif key == "scale" and value:
        fields[key] = _number("preprocess", draft, part, value)
    elif key == "background" and value:
        fields[key] = _whole("preprocess", draft, part, value)
    elif key in ("input", "layout", "filter", "fit") and value:
        fields[key] = value
    else:
        raise _wrong("preprocess", draft.text, f"what is {part!r}?")


def _table(draft: Draft, part: str, key: str, value: str | None) -> None:
    if key == "input" and value:
        draft.fields["input"] = value
    elif value is None:
        draft.fields.setdefault("columns", []).append({"is": "number", "name": part})
    else:
        raise _wrong("preprocess", draft.text, f"{part!r}: more than a column's name is told in a .toml file")


def _text(draft: Draft, part: str, key: str, value: str | None) -> None:
    if key == "tokenizer" and value:
        draft.files["tokenizer"] = Path(value)
    elif value is None:
        draft.files["tokenizer"] = Path(part)
    elif key in ("max_length", "pad_id") and value:
        draft.fields[key] = _whole("preprocess", draft, part, value)
    elif key in ("pad", "mask", "types", "input") and value:
        draft.fields[key] = value
    else:
        raise _wrong("preprocess", draft.text, f"what is {part!r}?")


def _after(text: str) -> list[Draft]:
    """The entries of one chain; `labels` are those of the one before it that names classes, `output` is of all."""
    found: list[Draft] = []
    output: str | None = None
    for part in _parts(text):
        key, value = _pair(part)
        word = key.replace("_", "-")
        last = found[-1] if found else Draft(text, {"do": ""})
        if key == "output" and value:
            output = value
        elif key == "labels" and value and last.fields["do"] in _NAMED:
            last.files["labels"] = Path(value)
        elif key == "mask" and value and last.fields["do"] == "pool":
            last.fields["mask"] = value
        elif word in ("softmax", "sigmoid", "normalize", "argmax") and value is None:
            found.append(Draft(text, {"do": word}))
        elif word == "pool":
            found.append(Draft(text, {"do": word} | ({"how": value} if value else {})))
        elif word == "top-k" and value:
            found.append(Draft(text, {"do": word, "k": _whole("postprocess", last, part, value)}))
        elif word == "threshold":
            at = {"at": _number("postprocess", last, part, value)} if value else {}
            found.append(Draft(text, {"do": word, **at}))
        else:
            raise _wrong("postprocess", text, f"what is {part!r}?")
    if not found:
        raise _wrong("postprocess", text, "says nothing")
    for one in found:
        one.fields |= {"output": output} if output else {}
    return found


def _number(kind: str, draft: Draft, part: str, text: str) -> float:
    """A number, also as a fraction, `1/255`."""
    above, slash, below = text.partition("/")
    try:
        return float(above) / float(below) if slash else float(above)
    except (ValueError, ZeroDivisionError, OverflowError) as error:
        raise _wrong(kind, draft.text, f"{part!r}: not a number") from error


def _numbers(draft: Draft, part: str, text: str) -> tuple[float, ...]:
    return tuple(_number("preprocess", draft, part, one) for one in text.split(":"))


def _whole(kind: str, draft: Draft, part: str, text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 10):
        raise _wrong(kind, draft.text, f"{part!r}: not a whole number")
    return int(text)


def _of_file(kind: str, text: str) -> list[Draft]:
    path, file = Path(text), ENTRIES[kind]
    written = file.data(path).removeprefix(BOM_UTF8)
    plain = file.toml(file.decoded(written, path), path) if text.endswith(".toml") else file.json(written, path)
    entries = plain.get(kind) if isinstance(plain, dict) else plain
    if not isinstance(entries, list) or not entries or not all(isinstance(one, dict) for one in entries):
        raise _wrong(kind, text, f"holds no list of entries under {kind!r}")
    found = []
    for fields in entries:
        files = {
            name: path.parent / fields.pop(name)
            for name in ("labels", "tokenizer")
            if isinstance(fields.get(name), str)
        }
        found.append(Draft(text, fields, files))
    return found


def _try(kind: str, draft: Draft) -> None:
    """Whether the fields are sound as far as that can be told without a model."""
    told = draft.fields.get("mean", draft.fields.get("std"))
    gray = isinstance(told, list | tuple) and len(told) == 1
    stand_ins: dict[str, dict[str, Any]] = {
        "image": {"input": "?", "height": 1, "width": 1, "color": "gray" if gray else "rgb"},
        "table": {"input": "?"},
        "text": {"input": "?"},
    }
    finished(kind, draft, stand_ins.get(str(draft.fields.get("do")), {"output": "?"}) | draft.fields)
    if draft.fields["do"] == "text" and "tokenizer" not in draft.files:
        raise _wrong(kind, draft.text, "says no tokenizer.json")


def finished(kind: str, draft: Draft, fields: dict[str, Any]) -> Any:
    """The entry of these fields; UsageError, which quotes what was typed, where they are none."""
    wanted: Any = Preprocess if kind == "preprocess" else Postprocess
    try:
        return msgspec.convert(fields, wanted)
    except msgspec.ValidationError as error:
        what, _, where = str(error).partition(" - at `$.")
        place = f"{where.rstrip('`')}: " if where else ""
        raise _wrong(kind, draft.text, f"{place}{what[:1].lower()}{what[1:]}") from error
