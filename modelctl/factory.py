"""Calling a factory `module:name`: the author's own Python, found in the current folder first.

A module of the same name that another folder has given already stands aside while the factory's is imported and is put
back afterwards; so do its submodules. Nothing is written beside the author's files. Whatever the author's code raises
is told in one line that names the author's own file and line.
"""

import contextlib
import importlib
import sys
import traceback
from collections.abc import Iterator
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any

from modelctl.errors import ArtifactError, ModelctlError, UsageError
from modelctl.record import is_factory


class AuthorsCode(contextlib.AbstractContextManager["AuthorsCode"]):
    """A block in which code runs that is not ours: what it raises becomes `error`, with the place in that code.

    Ctrl-C and errors that are modelctl's own pass through.
    """

    def __init__(self, what: str, error: type[ModelctlError] = ArtifactError, hint: str | None = None) -> None:
        self.what = what
        self.error = error
        self.hint = hint

    def __exit__(
        self, kind: type[BaseException] | None, raised: BaseException | None, at: TracebackType | None
    ) -> None:
        if isinstance(raised, Exception | SystemExit) and not isinstance(raised, ModelctlError):
            raise self.error(f"{self.what}: {told(raised)}", self.hint) from raised


def told(raised: BaseException) -> str:
    """What was raised, in one line, after the last place in a file below the current folder that it came through."""
    first = next(iter(str(raised).strip().splitlines()), "")
    text = f"{type(raised).__name__}: {first}" if first else type(raised).__name__
    if isinstance(raised, SyntaxError) and raised.filename:
        return f"{Path(raised.filename).name}:{raised.lineno}: {type(raised).__name__}: {raised.msg}"
    places = [frame for frame in traceback.extract_tb(raised.__traceback__) if _is_own(Path(frame.filename))]
    return f"{_relative(Path(places[-1].filename))}:{places[-1].lineno}: {text}" if places else text


def _is_own(file: Path) -> bool:
    ours = file.is_relative_to(Path(__file__).parent)
    return file.is_relative_to(Path.cwd()) and "site-packages" not in file.parts and not ours


def _relative(file: Path) -> str:
    return file.relative_to(Path.cwd()).as_posix()


def load(reference: str) -> tuple[Any, ModuleType]:
    """The callable that `module:name` refers to, and its module.

    UsageError when there is no such module or name, or it can't be called; ArtifactError when the module raises.
    """
    if not is_factory(reference):
        raise UsageError(f"{reference}: not module:factory", "modelctl export net:make -o net.onnx")
    name, _, attribute = reference.partition(":")
    with imports_from(Path.cwd(), name.partition(".")[0]):
        try:
            with AuthorsCode(reference):
                module = importlib.import_module(name)
        except ArtifactError as error:
            missing = error.__cause__
            if isinstance(missing, ModuleNotFoundError) and missing.name and f"{name}.".startswith(f"{missing.name}."):
                raise UsageError(f"{reference}: there is no module {missing.name!r} in this folder") from missing
            raise
    if not hasattr(module, attribute):
        near = [one for one in vars(module) if callable(vars(module)[one]) and not one.startswith("_")]
        raise UsageError(f"{reference}: the module has no {attribute!r}", f"one of: {', '.join(near[:8]) or '(none)'}")
    factory = getattr(module, attribute)
    if not callable(factory):
        raise UsageError(f"{reference}: is {type(factory).__name__}, and a factory is a function or class to call")
    return factory, module


def build(reference: str) -> tuple[Any, ModuleType]:
    """What the factory returns when called without arguments, and its module; ArtifactError when it raises."""
    factory, module = load(reference)
    with AuthorsCode(reference):
        return factory(), module


@contextlib.contextmanager
def imports_from(folder: Path, wanted: str) -> Iterator[None]:
    """The folder first on the import path, for a module below the package or module `wanted` and what it imports."""
    place = str(folder)
    aside = {name: sys.modules.pop(name) for name in list(_foreign(folder, wanted))}
    silent, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    sys.path.insert(0, place)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(place)
        sys.dont_write_bytecode = silent
        for name in aside:
            for loaded in [one for one in sys.modules if one == name or one.startswith(f"{name}.")]:
                del sys.modules[loaded]
        sys.modules.update(aside)


def _foreign(folder: Path, wanted: str) -> Iterator[str]:
    """Names of loaded modules that an import would find in `folder` although they came from elsewhere."""
    own = {file.stem for file in folder.glob("*.py")} | {file.name for file in folder.iterdir() if file.is_dir()}
    for top in own - (set(sys.stdlib_module_names) - {wanted}):
        loaded = sys.modules.get(top)
        if loaded is None:
            continue
        found = PathFinder.find_spec(top, [str(folder), *sys.path])
        if found is not None and _place(found) != _place(loaded.__spec__):
            yield from (name for name in sys.modules if name == top or name.startswith(f"{top}."))


def _place(spec: ModuleSpec | None) -> object:
    if spec is None:
        return None
    return spec.origin if spec.origin else sorted(spec.submodule_search_locations or [])
