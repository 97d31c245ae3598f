"""`modelctl.toml`, read and checked whole before anything runs.

    model = "net:build"            what the first step reads: a file, or a factory for export
    data = "digits.npz"            the data of each step that takes data and names none

    [[step]]
    run = "quantize"               the step's name
    out = "build/digits-int8.onnx" what it writes; steps that only check have none
    from = "build/digits.onnx"     what it reads; by default what the last step before it wrote
    max_drop = 0.5                 any option of the step by its field's name; repeatable ones are lists

Paths are relative to the file's folder, which must be the working folder while the plan is read and run.
"""

import importlib.util
import os
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_origin

import msgspec

from modelctl import artifact, record
from modelctl.errors import ArtifactError, ModelctlError, UsageError, missing_extra
from modelctl.knobs import Knob, Remembered, fields_of, knobs
from modelctl.options import (
    DecryptOptions,
    DistillOptions,
    EncryptOptions,
    EvalOptions,
    ExportOptions,
    Options,
    PruneOptions,
    PullOptions,
    PushOptions,
    QuantizeOptions,
    SignOptions,
    StepOptions,
    VerifyOptions,
)

LIMIT_BYTES = 1 << 20
# Options that name a key, a path or env:NAME, and what type of key `keygen` would make for them.
_KEYS = {"key": "ed25519", "keys": "ed25519", "recipients": "rsa", "identities": "rsa", "key_file": "aes"}


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What a pipeline must know of a step to check it: its options, the keys it takes, the extra it needs."""

    options: type[Options]
    takes: tuple[str, ...] = ("from", "out")
    state: str = "made"
    extra: str | None = None

    @property
    def makes(self) -> bool:
        """Whether it writes an artifact of its own making, which can be current."""
        return issubclass(self.options, StepOptions)


KINDS = {
    "export": Kind(options=ExportOptions, extra="torch"),
    "quantize": Kind(options=QuantizeOptions),
    "prune": Kind(options=PruneOptions),
    "distill": Kind(options=DistillOptions, extra="torch"),
    "encrypt": Kind(options=EncryptOptions),
    "decrypt": Kind(options=DecryptOptions),
    "sign": Kind(options=SignOptions, takes=("from",), state="signed"),
    "verify": Kind(options=VerifyOptions, takes=("from",), state="checked"),
    "eval": Kind(options=EvalOptions, takes=("from",), state="checked"),
    "push": Kind(options=PushOptions, takes=("from", "to"), state="pushed"),
    "pull": Kind(options=PullOptions, state="pulled"),
}


class PipelineFile(msgspec.Struct, forbid_unknown_fields=True):
    """What a pipeline file says, its steps still as they stand there."""

    model: str | None = None
    data: str | None = None
    step: list[dict[str, Any]] = []


@dataclass(frozen=True, kw_only=True)
class PlannedStep:
    """One step, ready to run: where it stands in the file, its options, what it reads and what it writes.

    `source` is a path, except for what only the step itself can find: a factory (`export`) or a ref (`pull`).
    """

    number: int
    run: str
    options: Options
    source: Path | str
    out: Path | None
    to: str | None

    @property
    def kind(self) -> Kind:
        """See `KINDS`."""
        return KINDS[self.run]

    def reads(self) -> set[Path]:
        """Resolved paths of all files that it reads and that an earlier step may have written."""
        named = [getattr(self.options, name) for name in knobs(type(self.options))]
        paths = [one for value in named for one in (value if isinstance(value, tuple) else (value,))]
        return {Path(one).resolve() for one in (*paths, self.source) if isinstance(one, Path)}


def read(path: Path) -> PipelineFile:
    """What the pipeline file at `path` says; UsageError when it is not there, not TOML, or says what we don't know."""
    try:
        with path.open("rb") as file:
            text = file.read(LIMIT_BYTES + 1)
    except (FileNotFoundError, IsADirectoryError) as error:
        what = "is a folder, not a pipeline file" if path.is_dir() else "no such file"
        raise UsageError(f"{path}: {what}", "modelctl init DIR") from error
    if len(text) > LIMIT_BYTES:
        raise UsageError(f"{path}: more than {LIMIT_BYTES} bytes, which no pipeline needs")
    try:
        plain = tomllib.loads(text.decode())
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: not sound TOML: {error}") from error
    unknown = sorted(set(plain) - {"model", "data", "step"})
    if unknown:
        raise UsageError(f"{path}: unknown key {unknown[0]!r}", "one of: model, data, [[step]]")
    try:
        told = msgspec.convert(plain, PipelineFile)
    except msgspec.ValidationError as error:
        what, _, where = str(error).partition(" - at `$.")
        hint = "[[step]]" if where.startswith("step") else None
        raise UsageError(f"{path}: {where.rstrip('`')}: {what[:1].lower()}{what[1:]}", hint) from error
    if not told.step:
        raise UsageError(f"{path}: holds no step", "[[step]]")
    return told


def checked(told: PipelineFile, path: Path, given: Options) -> list[PlannedStep]:
    """The steps that a pipeline file tells of; UsageError (or the error that fits) says what is wrong where.

    A knob's environment variable (`MODELCTL_MAX_DROP`) goes before the file, and the threads `given` before both.

    Everything that can be told without running a step is: unknown keys and steps, types and ranges of options, files
    that are not there, outputs written twice or not ours to overwrite, extras that are not installed.
    """
    planned: list[PlannedStep] = []
    for number, table in enumerate(told.step, start=1):
        run = table.get("run")
        if not isinstance(run, str) or run not in KINDS:
            what = "names nothing to run" if run is None else f"there is no step {run!r}"
            raise UsageError(f"{path}: step {number}: {what}", f"run = one of: {', '.join(KINDS)}")
        try:
            step = _step(number, run, _overridden(run, table, given), told, planned)
            _check(step, planned)
        except ModelctlError as error:
            raise located(error, path, number, run) from error
        planned.append(step)
    return planned


def located(error: ModelctlError, path: Path, number: int, run: str) -> ModelctlError:
    """The same error, saying which step of which file it comes from, and in that file's words: keys, not flags.

    A hint that is a command of its own stays as it is.
    """
    message, hint = error.message, error.hint
    for name, (kind, mark) in fields_of(KINDS[run].options).items():
        for flag in mark.flag_of(name).split("/"):
            message = re.sub(rf"{flag} (\S+): must", rf"{name}: \1 must", message)
            message = re.sub(rf"{flag}(?![\w-])", name, message)
            if hint and not hint.startswith(("modelctl ", "pip ")):
                hint = _with_key(hint, flag, name, kind)
    return type(error)(f"{path}: step {number} ({run}): {message}", hint)


def _with_key(hint: str, flag: str, name: str, kind: Any) -> str:
    """`--flag value` in a hint as the line of TOML that says the same."""

    def line(found: re.Match[str]) -> str:
        value = found[1] and found[1].strip("'")
        if kind is bool or value is None:
            return f"{name} = true{f' {value}' if value else ''}" if kind is bool else name
        value = value if re.fullmatch(r"[\d.]+", value) else f'"{value}"'
        return f"{name} = [{value}]" if get_origin(kind) is tuple else f"{name} = {value}"

    return re.sub(rf"{flag}(?![\w-])(?: ('[^']*'|[^\s,'-][^\s,]*))?", line, hint)


def _overridden(run: str, table: dict[str, Any], given: Options) -> dict[str, Any]:
    """A step's table with what the environment and the command line say over it."""
    over: dict[str, Any] = {}
    for name, (kind, mark) in fields_of(KINDS[run].options).items():
        text = os.environ.get(mark.variable_of(name))
        if text:
            words = text.split() if get_origin(kind) is tuple else text
            over[name] = _converted(words, kind, mark.variable_of(name))
    return table | over | ({"threads": given.threads} if given.threads else {})


def _converted(words: str | list[str], kind: Any, variable: str) -> Any:
    try:
        return msgspec.convert(words, kind, strict=False, dec_hook=lambda cls, text: cls(text))
    except msgspec.ValidationError as error:
        raise UsageError(f"{variable}: {str(error)[:1].lower()}{str(error)[1:]}") from error


def _step(
    number: int, run: str, table: dict[str, Any], told: PipelineFile, earlier: Sequence[PlannedStep]
) -> PlannedStep:
    kind = KINDS[run]
    places = {key: table[key] for key in ("from", "out", "to") if key in table}
    for key, place in places.items():
        if key not in kind.takes:
            raise UsageError(f"unknown key {key!r}: {run} takes {', '.join(kind.takes)} and its options")
        if not isinstance(place, str) or not place:
            raise UsageError(f"{key}: expected a name in quotes, got {place!r}")
    for key in ("out", "to"):
        if key in kind.takes and key not in places:
            raise UsageError(f"{key} is missing", f'{key} = "{_EXAMPLES.get(run, "build/model.onnx")}"')
    values = {key: value for key, value in table.items() if key not in ("run", "from", "out", "to")}
    if told.data is not None and "data" in knobs(kind.options):
        values.setdefault("data", told.data)
    out = Path(places["out"]) if "out" in places else None
    source = _source(run, places.get("from"), told.model, earlier)
    return PlannedStep(
        number=number, run=run, options=kind.options.parse(values), source=source, out=out, to=places.get("to")
    )


_EXAMPLES = {"push": "sqlite:///models.db/name:1.0", "encrypt": "build/model.sealed", "pull": "build/pulled"}


def _source(run: str, named: str | None, model: str | None, earlier: Sequence[PlannedStep]) -> Path | str:
    """What a step reads: what it names, else what the last step before it wrote, else the pipeline's model."""
    if run == "pull":
        if named is None:
            raise UsageError("from is missing", f'from = "{_EXAMPLES["push"]}"')
        return named
    if named is None:
        wrote = [one for one in earlier if one.out is not None]
        if wrote and wrote[-1].out is not None:
            if wrote[-1].run == "pull":
                raise UsageError("from is missing: pull may bring any file", f'from = "{wrote[-1].out}/model.onnx"')
            return wrote[-1].out
        if model is None:
            raise UsageError("there is nothing to read: no model, and no step before it", 'model = "model.onnx"')
        named = model
    return named if run == "export" and record.is_factory(named) else Path(named)


def _check(step: PlannedStep, earlier: Sequence[PlannedStep]) -> None:
    """Files that it reads are there or will be, what it writes is nobody else's, and what it needs is installed."""
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
    extra = step.kind.extra
    reads_onnx = step.run == "export" and isinstance(step.source, Path) and step.source.suffix == ".onnx"
    if extra and not reads_onnx and not (step.out and step.out.exists()) and importlib.util.find_spec(extra) is None:
        raise missing_extra(f"{step.run} needs {extra}", extra)


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


def made_here(step: PlannedStep) -> bool:
    """Whether what stands at `out` was made by the same kind of step, so that the pipeline may make it anew."""
    if step.out is None:
        return False
    try:
        made_by = artifact.Artifact.open(step.out).manifest.made_by
    except ArtifactError:
        return False
    return made_by is not None and made_by.step == step.run


def forced(step: PlannedStep) -> PlannedStep:
    """The step, allowed to replace what it made itself under other options."""
    return replace(step, options=replace(step.options, force=True)) if made_here(step) else step  # type: ignore[call-arg]
