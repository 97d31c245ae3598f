"""Runs what is stale of a pipeline, in the order of its file; `--dry-run` only says what that would be.

Steps that make an artifact are asked whether it already stands as they would make it. Steps without an output (gates,
signatures, pushes) always run: they are cheap, or they are the point. A step that fails ends the run with its own exit
status; what was finished before it stays.
"""

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

from modelctl import integrity, lineage
from modelctl.artifact import Artifact
from modelctl.errors import ArtifactError, IntegrityError, ModelctlError
from modelctl.options import Options
from modelctl.pipeline import plan
from modelctl.pipeline.planned import PlannedStep, made_here
from modelctl.progress import Progress, silent
from modelctl.report import Report

Row = dict[str, Any]


def run(file: Path, options: Options, progress: Progress = silent, *, dry_run: bool = False) -> Report:
    """Run what is stale of the pipeline in `file`; the report has a row for each step: file, state, size, accuracy.

    `options.threads`, where given, goes before what the steps say. UsageError when the file does not hold a sound
    pipeline; whatever a step raises, with the step's place before it.
    """
    told = plan.read(file)
    with _inside(file.parent):
        steps = plan.checked(told, file, options)
        rows = _plan_rows(steps, file) if dry_run else _run_rows(steps, file, progress)
    facts = {"pipeline": str(file), "dry_run": dry_run, "steps": rows}
    return Report(subject=str(file), facts=facts, lines=table(rows))


@contextlib.contextmanager
def _inside(folder: Path) -> Iterator[None]:
    """The pipeline's folder is the working folder, and first on the import path."""
    place = str(folder.resolve())
    with contextlib.chdir(place):
        sys.path.insert(0, place)
        try:
            yield
        finally:
            sys.path.remove(place)


def _run_rows(steps: list[PlannedStep], file: Path, progress: Progress) -> list[Row]:
    rows = []
    for step in steps:
        with _located(file, step):
            rows.append(_run_step(step, progress, f"{step.number} of {len(steps)}"))
    return rows


@contextlib.contextmanager
def _located(file: Path, step: PlannedStep) -> Iterator[None]:
    """What is raised in this block says in which step of which file."""
    try:
        yield
    except ModelctlError as error:
        raise plan.located(error, file, step.number, step.run) from error
    except OSError as error:
        what = (error.strerror or str(error)).lower()
        message = f"{error.filename}: {what}" if error.filename else what
        raise plan.located(ModelctlError(message), file, step.number, step.run) from error


def _run_step(step: PlannedStep, progress: Progress, place: str) -> Row:
    module = import_module(f"modelctl.steps.{step.run}")
    source = _open(step)
    if step.out is not None and _is_current(step, module, source):
        return _row(step, "current", Artifact.open(step.out))
    progress.note(f"step {place}: {step.run} {step.out or step.to or step.source}")
    with _folder_of(step):
        return _row(step, step.kind.state, _call(_forced(step), module, source, progress))


@contextlib.contextmanager
def _folder_of(step: PlannedStep) -> Iterator[None]:
    """The folder that the step writes into is there; what was made of it is gone again if the block fails."""
    folder = step.out.parent if step.out is not None else Path()
    made = [one for one in (folder, *folder.parents) if not one.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        for one in made:
            with contextlib.suppress(OSError):
                one.rmdir()
        raise


def _open(step: PlannedStep) -> Any:
    """What the step's function takes first: an artifact, verify's path, export's source, or pull's ref."""
    if step.run == "verify":  # opens it itself: a malformed manifest is an answer there
        return step.source
    if step.run == "export":
        return import_module("modelctl.steps.export").Source.parse(str(step.source))
    return Artifact.open(step.source) if isinstance(step.source, Path) else step.source


def _call(step: PlannedStep, module: Any, source: Any, progress: Progress) -> Artifact | Report:
    function = getattr(module, step.run)
    place = (step.to,) if step.to is not None else (step.out,) if step.out is not None else ()
    answer: Artifact | Report = function(source, *place, step.options, progress)
    return answer


def _forced(step: PlannedStep) -> PlannedStep:
    """The step, allowed to replace what it made itself under other options."""
    return replace(step, options=replace(step.options, force=True)) if made_here(step) else step  # type: ignore[call-arg]


def _is_current(step: PlannedStep, module: Any, source: Any) -> bool:
    if step.out is None or step.run == "pull":
        return False
    if step.run == "decrypt":  # what it writes tells of its own making, not of this step
        return _is_opened(source, step.out)
    current: bool = module.origin(source, step.options).is_current(step.out)
    return current


def _is_opened(sealed: Artifact, out: Path) -> bool:
    """Whether `out` is, whole, what lies in the sealed artifact."""
    try:
        standing = Artifact.open(out)
        integrity.check_files(standing)
    except (ArtifactError, IntegrityError):
        return False
    inside = sealed.manifest.encryption
    return inside is not None and inside.manifest == standing.manifest_sha256


def _plan_rows(steps: list[PlannedStep], file: Path) -> list[Row]:
    """What a run would do; a step that reads what is stale is stale itself."""
    rows: list[Row] = []
    stale: set[Path] = set()
    for step in steps:
        if not step.kind.makes and step.run != "decrypt":
            rows.append(_row(step, "runs", None))
            if step.out is not None:
                stale.add(step.out.resolve())
            continue
        waits = any(path in stale or stale & set(path.parents) for path in step.reads())
        module = import_module(f"modelctl.steps.{step.run}")
        with _located(file, step):
            current = not waits and _is_current(step, module, _open(step))
        if step.out is not None and not current:
            stale.add(step.out.resolve())
        rows.append(_row(step, "current" if current else "stale", None))
    return rows


def _row(step: PlannedStep, state: str, answer: Artifact | Report | None) -> Row:
    row: Row = {"step": step.run, "file": str(step.to or step.out or step.source), "state": state}
    if isinstance(answer, Artifact):
        row |= {
            "file": str(answer.path),
            "size_bytes": answer.size_bytes,
            **_figures(answer.manifest.metrics),
            "digest": answer.digest,
        }
    elif isinstance(answer, Report):
        row |= {**_figures(answer.facts), "facts": answer.facts}
    return row


def _figures(metrics: dict[str, Any]) -> Row:
    """The accuracy, a fraction, and the speed beside a step's input or an eval's baseline; None where not measured."""
    return {
        "accuracy": lineage.number_at(metrics, "accuracy", "value"),
        "speedup": lineage.number_at(metrics, "latency", "speedup", "value"),
    }


def table(rows: list[Row]) -> tuple[str, ...]:
    """The rows as lines of aligned columns; a column that is empty everywhere is left out."""
    columns = {
        "step": [row["step"] for row in rows],
        "file": [row["file"] for row in rows],
        "state": [row["state"] for row in rows],
        "bytes": [str(row["size_bytes"]) if "size_bytes" in row else "" for row in rows],
        "accuracy": [f"{row['accuracy']:.4f}" if row.get("accuracy") is not None else "" for row in rows],
        "speed": [f"×{row['speedup']:.2f}" if row.get("speedup") is not None else "" for row in rows],
        "sha256": [row.get("digest", "")[:12] for row in rows],
    }
    shown = {name: cells for name, cells in columns.items() if any(cells)}
    widths = [max(len(name), *map(len, cells)) for name, cells in shown.items()]
    right = [name in ("bytes", "accuracy", "speed") for name in shown]

    def line(cells: tuple[str, ...]) -> str:
        aligned = zip(cells, widths, right, strict=True)
        return "  ".join(cell.rjust(width) if by else cell.ljust(width) for cell, width, by in aligned).rstrip()

    return (line(tuple(shown)), *(line(cells) for cells in zip(*shown.values(), strict=True)))
