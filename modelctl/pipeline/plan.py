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

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_origin

import msgspec

from modelctl import record
from modelctl.errors import ModelctlError, UsageError
from modelctl.knobs import fields_of, knobs
from modelctl.options import Options
from modelctl.pipeline.checks import check
from modelctl.pipeline.planned import KINDS, PlannedStep
from modelctl.reading import Small

FILE = Small("a pipeline file", 1 << 20, UsageError, "modelctl init DIR")


class PipelineFile(msgspec.Struct, forbid_unknown_fields=True):
    """What a pipeline file says, its steps still as they stand there."""

    model: str | None = None
    data: str | None = None
    step: list[dict[str, Any]] = []


def read(path: Path) -> PipelineFile:
    """What the pipeline file at `path` says; UsageError when it is not there, not TOML, or says what we don't know."""
    plain = FILE.toml(FILE.text(path), path)
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
            check(step, planned)
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
