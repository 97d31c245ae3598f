"""`init`: a project to start from, whole or not at all: a net, its training, the pipeline, a Makefile and a CI step."""

import re
import secrets
import shlex
import shutil
from importlib.resources import files
from pathlib import Path

from modelctl.data import digits, open_data
from modelctl.errors import UnsupportedError, UsageError
from modelctl.manifest import TensorSpec
from modelctl.options import InitOptions
from modelctl.progress import Progress, silent
from modelctl.record import DataRef
from modelctl.report import Report
from modelctl.staging import refuse_no_folder, undisturbed

PROJECT = {
    "net.py": "net.py.txt",
    "train.py": "train.py.txt",
    "modelctl.toml": "modelctl.toml",
    "Makefile": "Makefile",
    "README.md": "README.md",
    ".gitignore": "gitignore",
    ".github/workflows/model.yml": "workflow.yml",
}
SMALLEST_SIDE = 4  # the net halves height and width twice


def init(folder: Path, options: InitOptions, progress: Progress = silent) -> Report:
    """Write a project into `folder`, which is new or empty; UsageError if it is not.

    Without `options.data` the project learns the digits that ship with modelctl, which are copied into it; otherwise
    the data stay where they are, and the net is sized by them: images [N, C, H, W] and classes [N].
    """
    write_project(folder, options)
    written = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())
    progress.note("next: make" if folder.resolve() == Path.cwd() else f"next: cd {shlex.quote(str(folder))} && make")
    return Report(subject=str(folder), facts={"folder": str(folder), "files": written})


def refuse_occupied(folder: Path, command: str = "init") -> None:
    """UsageError where something stands that is no empty folder; the hint is for who typed `command`."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder}: stands already, and is not empty", f"modelctl {command} another-name")


def write_project(folder: Path, options: InitOptions, more_steps: str | None = None) -> None:
    """What `init` writes, and in the pipeline the steps of the template `more_steps` too; errors as `init` raises."""
    place = folder.resolve()
    refuse_occupied(folder)
    refuse_no_folder(folder)
    words = _words(place.name, options)
    # An empty folder that stands may be where the user is: it is filled, not replaced.
    staged = (place if place.exists() else place.parent) / f".{place.name}.tmp-{secrets.token_hex(6)}"
    try:
        _write(staged, words, shipped=options.data is None, more_steps=more_steps)
        with undisturbed():
            if place.exists():
                for child in list(staged.iterdir()):
                    child.rename(place / child.name)
            else:
                staged.rename(place)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(folder)) from error
    finally:
        with undisturbed():
            shutil.rmtree(staged, ignore_errors=True)


def _write(staged: Path, words: dict[str, str], *, shipped: bool, more_steps: str | None) -> None:
    staged.mkdir()
    for name, template in PROJECT.items():
        place = staged / name
        place.parent.mkdir(parents=True, exist_ok=True)
        text = _filled(template, words)
        if more_steps is not None and name == "modelctl.toml":
            text += _filled(more_steps, words)
        place.write_text(text, encoding="utf-8")
    if shipped:
        for file in (digits.path(), digits.licence()):
            shutil.copyfile(file, staged / file.name)


def _words(name: str, options: InitOptions) -> dict[str, str]:
    """What stands for `{{word}}` in the templates."""
    name = re.sub(r"[^a-z0-9._-]+", "-", name.lower()).strip(".-_") or "model"
    words = {"name": name, "data": digits.NAME, "channels": "1", "height": "8", "width": "8", "classes": "10"}
    if options.data is None:
        return words
    place, mark, selection = options.data.partition("#")
    if DataRef.parse(options.data).is_code:
        raise UnsupportedError(f"{place}: a project starts from a file or a folder of samples, not from a function")
    reference = str(Path(place).resolve()) + mark + selection
    if not reference.isprintable() or set(reference) & set("\"\\$%'"):
        raise UnsupportedError(f"{place}: a path with quotes or control characters can't be written into a project")
    image = TensorSpec(name="x", dtype="float32", shape=("batch", "channels", "height", "width"))
    samples = open_data(options.data, [image], seed=0).test
    _, channels, height, width = samples.inputs["x"].shape
    if samples.labels is None or samples.labels.dtype.kind not in "iu":
        raise UnsupportedError(f"{place}: holds no classes to learn")
    if min(height, width) < SMALLEST_SIDE:
        raise UnsupportedError(f"{place}: images of {height}×{width} are too small for the net of the project")
    classes = int(samples.labels.max()) + 1
    sizes = {"channels": channels, "height": height, "width": width, "classes": classes}
    return words | {"data": reference} | {word: str(size) for word, size in sizes.items()}


def _filled(template: str, words: dict[str, str]) -> str:
    text = (files("modelctl") / "template" / template).read_text(encoding="utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda found: words[found[1]], text)
