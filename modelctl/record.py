"""How a step's options are remembered in the manifest, and what of a data or code reference is remembered.

A path is remembered by its file name and the digest of its content: a changed calibration set is a changed option, and
nobody's home folder leaks. A data reference `path#split=test&limit=100` keeps its selection; in place of a path it may
name code that gives samples. Such code, or a factory, `module:name` is remembered with the digests of its module's file
and of the project's own files that it imports, found by reading their import statements, never by running them. A key
leaves no trace here: the step that used it adds the key's id.
"""

import ast
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from modelctl import digests
from modelctl.chains import spelling
from modelctl.errors import DataError, UsageError
from modelctl.knobs import Options, Remembered, knobs

_INSTALLED = {"site-packages", "dist-packages"}
_STDLIB = Path(ast.__file__).parent


@dataclass(frozen=True)
class DataRef:
    """A `--data` value taken apart: where the samples are, and which of them are meant.

    `path` is a file or a folder; with `is_code` it is `module:function`, found in the current folder. `target` names
    the column of labels in a table.
    """

    path: Path
    split: str | None
    limit: int | None
    target: str | None = None
    is_code: bool = False

    @classmethod
    def parse(cls, text: str) -> "DataRef":
        """`path#split=train|test,limit=N,target=column`, parts joined by `,`, `&` or a further `#`."""
        place, *rest = text.split("#")
        selection = dict(parse_qsl("&".join(rest).replace(",", "&"), keep_blank_values=True))
        wrong = _wrong(selection)
        if wrong is not None:
            raise UsageError(f"--data {text}: can't select {wrong!r}", f"--data '{place}#split=test,limit=1000'")
        split, limit, target = selection.get("split"), selection.get("limit"), selection.get("target")
        path = Path(place)
        is_code = is_factory(place) and not path.exists()
        if not is_code and (not place or not path.exists()):
            raise DataError(f"{place}: no such file or folder")
        if not (is_code or path.is_file() or path.is_dir()):  # a pipe would be waited for, and can't be read twice
            raise DataError(f"{place}: is not a plain file or folder")
        return cls(path, split, int(limit) if limit else None, target, is_code)


def _wrong(selection: dict[str, str]) -> str | None:
    """What can't be selected; None if all can."""
    for key, value in selection.items():
        if key not in ("split", "limit", "target"):
            return key
        if key == "split" and value not in ("train", "test"):
            return f"split={value}"
        if (key == "limit" and not _is_count(value)) or not value:
            return value
    return None


def _is_count(text: str) -> bool:
    return text.isascii() and text.isdigit() and 0 < int(text) < 2**31


def options(given: Options) -> dict[str, Any]:
    """`given` as the manifest keeps it: defaults included, what leaves no trace in the payload left out.

    UsageError or DataError for a path, data or a factory that is not there.
    """
    remembered: dict[str, Any] = {}
    for name, mark in knobs(type(given)).items():
        value = getattr(given, name)
        match mark.remembered:
            case Remembered.NOT:
                continue
            case Remembered.DATA if value is not None:
                ref = DataRef.parse(value)
                picked = {"split": ref.split, "limit": ref.limit, "target": ref.target}
                found = factory(str(ref.path)) if ref.is_code else path(ref.path)
                remembered[name] = found | {word: pick for word, pick in picked.items() if pick is not None}
            case Remembered.FACTORY if value is not None:
                remembered[name] = factory(value)
            case Remembered.PREPROCESS | Remembered.POSTPROCESS:
                if value:  # nothing said keeps what the model has
                    remembered[name] = chain(mark.remembered, value)
            case _:
                remembered[name] = _plain(value)
    return remembered


def chain(kind: str, texts: Sequence[str]) -> list[dict[str, Any]]:
    """What `--preprocess` or `--postprocess` spells, as the manifest keeps it: entries, and the files that they name.

    UsageError where it spells nothing sound, or a file is not there.
    """
    drafts = spelling.parse(kind, texts)
    return [one.fields | {name: path(file) for name, file in one.files.items()} for one in drafts]


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return path(value)
    if isinstance(value, tuple):
        return [_plain(one) for one in value]
    return value


def path(place: Path) -> dict[str, Any]:
    """A file or folder as the manifest keeps it: its name and its digest; UsageError if there is none."""
    if not place.exists():
        raise UsageError(f"{place}: no such file")
    return {"name": place.resolve().name, "sha256": digests.of_path(place)}


def is_factory(text: str) -> bool:
    """Whether a text is spelled as a factory is, `module:name`; there need be none."""
    module, _, name = text.partition(":")
    return all(part.isidentifier() for part in [*module.split("."), name])


def factory(reference: str) -> dict[str, Any]:
    """`module:name` as the manifest keeps it: with the digest of each of the project's own files behind it.

    UsageError when it is not spelled so, or a file behind it is not Python that can be read.
    """
    if not is_factory(reference):
        raise UsageError(f"{reference}: not module:factory", "--student net:Student")
    return {"name": reference, "files": dict(sorted(_sources(reference.partition(":")[0]).items()))}


def _sources(module: str) -> dict[str, str]:
    """Digests by relative path of the files below the current folder that `module` is made of, imports followed."""
    root = Path.cwd()
    found: dict[str, str] = {}
    waiting = [module]
    seen: set[str] = set()
    while waiting:
        wanted = waiting.pop()
        if wanted in seen:
            continue
        seen.add(wanted)
        file = _locate(wanted, root)
        if file is not None:
            found[file.relative_to(root).as_posix()] = digests.of_file(file)
            waiting.extend(_imports(file, wanted))
    return found


def _locate(module: str, root: Path) -> Path | None:
    """The source file of a module of the project: below `root`, first from there, then from the import path's folders.

    Looked up by hand: `importlib` runs a package in order to look into it.
    """
    places = [root, *(Path(place) for place in sys.path if place)]
    for place in places:
        if not place.is_relative_to(root) or not _INSTALLED.isdisjoint(place.parts) or place.is_relative_to(_STDLIB):
            continue
        stem = place.joinpath(*module.split("."))
        for file in (stem / "__init__.py", stem.with_name(stem.name + ".py")):
            if file.is_file():
                return file
    return None


def _imports(file: Path, module: str) -> list[str]:
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    names = [module.rpartition(".")[0]] if "." in module else []
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError) as error:
        raise UsageError(f"{file.name}: not Python that can be read: {error}") from error
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, *([base] if base else [])])
            names += [base, *(f"{base}.{alias.name}" for alias in node.names)]
    return [name for name in names if name]
