"""What can be told of a planned step before anything runs: its files, its keys, its place to write, what it needs."""

import importlib.util
import os
from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from modelctl import artifact, record
from modelctl.errors import UsageError, missing_extra
from modelctl.knobs import Knob, Remembered, knobs
from modelctl.pipeline.planned import PlannedStep, made_here

# Options that name a key, a path or env:NAME, and what type of key `keygen` would make for them.
_KEYS = {"key": "ed25519", "keys": "ed25519", "recipients": "rsa", "identities": "rsa", "key_file": "aes"}


def check(step: PlannedStep, earlier: Sequence[PlannedStep]) -> None:
    """Files that it reads are there or will be, what it writes is nobody else's, and what it needs is installed.

    `earlier` are the steps before it. UsageError for what is not so, UnsupportedError for an extra that is missing.
    """
    written = {one.out.resolve(): one for one in earlier if one.out is not None}
    if isinstance(step.source, Path):
        _check_there(step.source, written)
    for name, mark in knobs(type(step.options)).items():
        value = getattr(step.options, name)
        for one in value if isinstance(value, tuple) else (value,):
            if one is not None:
                _check_option(name, mark, one, written)
    if step.out is not None:
        _check_out(step, step.out, written)
    extra = step.kind.extra or _extra_of(step)
    reads_onnx = step.run == "export" and isinstance(step.source, Path) and step.source.suffix == ".onnx"
    if extra and not reads_onnx and not (step.out and step.out.exists()) and importlib.util.find_spec(extra) is None:
        raise missing_extra(f"{step.run} needs {extra}", extra)


def _extra_of(step: PlannedStep) -> str | None:
    """The extra that only some of a step's options need, which the step itself knows."""
    asked = getattr(import_module(f"modelctl.steps.{step.run}"), "extra", None)
    told: str | None = asked(step.options) if asked else None
    return told


def _check_there(path: Path, written: Iterable[Path], name: str = "from") -> None:
    made = set(written)
    if path.is_file() or path.resolve() in made or made & set(path.resolve().parents):
        return
    what = "is a folder, not a file" if path.is_dir() else "no such file, and no step before it writes it"
    raise UsageError(f"{name}: {path}: {what}")


def _check_option(name: str, mark: Knob, value: Any, written: Mapping[Path, PlannedStep]) -> None:
    if isinstance(value, Path):
        if not value.is_dir():
            _check_there(value, written, name)
    elif mark.remembered is Remembered.DATA:
        record.DataRef.parse(value)
    elif mark.remembered is Remembered.FACTORY:
        record.factory(value)
    elif mark.remembered in (Remembered.PREPROCESS, Remembered.POSTPROCESS):
        record.chain(mark.remembered, (value,))
    elif name in _KEYS and value.startswith("env:"):
        if value.removeprefix("env:") not in os.environ:
            raise UsageError(f"{name}: the environment has no {value.removeprefix('env:')}")
    elif name in _KEYS and not Path(value).is_file():
        raise UsageError(f"{name}: {value}: no such file", f"modelctl keygen -o {_private(value)} --type {_KEYS[name]}")


def _private(name: str) -> str:
    """The name under which `keygen` is asked for the pair that a public key belongs to."""
    return name.removesuffix(".pub.pem") + ".pem" if name.endswith(".pub.pem") else name


def _check_out(step: PlannedStep, out: Path, written: Mapping[Path, PlannedStep]) -> None:
    if out.resolve() in written:
        raise UsageError(f"out: {out}: step {written[out.resolve()].number} writes it already")
    if out.resolve() in step.reads():
        raise UsageError(f"out: {out}: is what the step reads; a step leaves its input alone")
    if step.run == "pull":
        return
    artifact.format_of(out)
    if out.is_dir() or out.is_symlink():
        raise UsageError(f"out: {out}: is a {'link' if out.is_symlink() else 'folder'}, not a file to write")
    if step.kind.makes and out.exists() and not getattr(step.options, "force", False) and not made_here(step):
        raise UsageError(f"out: {out}: stands already, and {step.run} did not make it", f"rm {out}")
