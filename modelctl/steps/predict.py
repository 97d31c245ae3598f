"""`predict`: what a model answers to raw inputs, through what its manifest declares before and after it."""

import json
from codecs import BOM_UTF8
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from modelctl import chains
from modelctl.artifact import Artifact
from modelctl.data import npz
from modelctl.data.pictures import SUFFIXES
from modelctl.data.samples import Array, Samples, checked
from modelctl.errors import DataError, UsageError
from modelctl.graph.opening import opened
from modelctl.graph.session import Session
from modelctl.options import PredictOptions
from modelctl.processing import declared, tables
from modelctl.processing.before import Before
from modelctl.progress import Progress, silent
from modelctl.reading import Small, unique
from modelctl.report import Report

TOGETHER = 64
INPUT = Small("an input", 64 << 20, DataError, "modelctl predict model.onnx input.json")
MOST_NUMBERS = 8  # of a vector that a person is shown
_DECLARE = "modelctl export model.onnx --preprocess image:28x28,gray --postprocess softmax,top-k=3 -o declared.onnx"

Feeds = dict[str, Array]


def predict(model: Artifact, inputs: Sequence[str], options: PredictOptions, progress: Progress = silent) -> Report:
    """`{"model": "name@sha256:…", "inputs": [place, …], "predictions": [prediction, …]}`, one for each instance.

    UsageError for an input that is neither a file nor what the model takes itself, DataError for one that is not sound;
    UnsupportedError for what is not onnx, or an extra that is missing; of a sealed model, what `envelope.open_sealed`
    raises.
    """
    payload = opened(model, options, "predict", progress)
    session = Session(payload, options.thread_count(), options.provider)
    around = declared.of(payload, session.inputs, session.outputs)
    before, after = (None, None) if around is None else (around.before, around.after)
    places: list[str] = []
    found: list[Any] = []
    for where, feeds in _asked(inputs, before, session):
        progress.advance("predicting", len(places), None)
        outputs = session.run(feeds)
        rows = _rows(outputs, where) if after is None else after.predictions(outputs, feeds)
        if len(rows) != len(where):
            raise DataError(f"{where[0]}: {len(where)} instances were answered by {len(rows)} rows")
        places += where
        found += [_plain(row) for row in rows]
    facts = {"model": f"{model.name}@sha256:{payload.manifest.digest}", "inputs": places, "predictions": found}
    lines = [f"{place}  {_told(one)}" for place, one in zip(places, found, strict=True)]
    return Report(subject=str(model.path), facts=facts, lines=tuple(lines))


def _asked(inputs: Sequence[str], before: Before | None, session: Session) -> Iterator[tuple[list[str], Feeds]]:
    """Tensors, and of each of their rows where it comes from; raw instances some at a time."""
    together = next((one.shape[0] for one in session.inputs if isinstance(one.shape[0], int)), TOGETHER)
    waiting: list[tuple[str, Any]] = []
    for text in inputs:
        if text.endswith(".npz") or before is None:
            yield from _batches(text, _tensors(text, session), together)
            continue
        waiting += _instances(text, before)
        while len(waiting) >= together:
            yield _together(waiting[:together], before)
            del waiting[:together]
    if waiting and before is not None:
        yield _together(waiting, before)


def _together(instances: list[tuple[str, Any]], before: Before) -> tuple[list[str], Feeds]:
    places = [place for place, _ in instances]
    return places, before.feeds([one for _, one in instances], places)


def _instances(text: str, before: Before) -> list[tuple[str, Any]]:
    """The raw instances that an argument means, each with the place that it comes from."""
    path = Path(text)
    suffix = path.suffix.lower()
    if not _is_file(path):
        return [(_short(text), _typed(text, before))]
    data = INPUT.data(path)
    if suffix in SUFFIXES or (before.kinds == ["image"] and suffix not in (".json", ".jsonl")):
        return [(text, data)]
    written = INPUT.decoded(data.removeprefix(BOM_UTF8), path)
    if suffix == ".csv":
        held = [one for one in before.entries if isinstance(one, chains.Table)]
        rows: list[Any] = tables.of_csv(written, held)
    elif suffix == ".jsonl":
        rows = [_json(line, path) for line in written.splitlines() if line.strip()]
    elif suffix == ".json":
        told = _json(written, path)
        rows = told.get("instances", [told]) if isinstance(told, dict) else told if isinstance(told, list) else [told]
    else:
        return [(text, written.rstrip("\n"))]
    return [(f"{text}[{place}]" if len(rows) > 1 else text, row) for place, row in enumerate(rows)]


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a text is longer than a name can be
        return False


def _no_file(text: str) -> UsageError:
    """What is said of a word that is neither a file nor what the model takes itself."""
    try:
        there = Path(text).exists()
    except OSError:
        there = False
    return UsageError(f"{_short(text)}: {'is not a plain file' if there else 'no such file'}")


def _typed(text: str, before: Before) -> Any:
    """An instance that was typed itself: a text, or what JSON says."""
    if text.lstrip().startswith(("{", "[")):
        return _json(text, _short(text))
    if before.kinds == ["text"]:
        return text
    raise _no_file(text)


def _json(text: str, where: object) -> Any:
    try:
        return json.loads(text, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not JSON: {error}") from error


def _tensors(text: str, session: Session) -> Samples:
    """What an .npz file holds by the names of the inputs, or JSON says: rows, or an object by those names."""
    there = _is_file(Path(text))
    if there and text.endswith(".npz"):
        return checked(npz.read(Path(text), [one.name for one in session.inputs], ()), session.inputs, text)
    if there and text.endswith(".json"):
        told = _json(INPUT.text(Path(text)), text)
    elif there:
        raise UsageError(f"{_short(text)}: {session.name} declares nothing that makes its input of that", _DECLARE)
    elif text.lstrip().startswith(("{", "[")):
        told = _json(text, _short(text))
    else:
        raise _no_file(text)
    given: Mapping[str, Any] = told if isinstance(told, dict) else {session.inputs[0].name: told}
    if set(given) != {one.name for one in session.inputs}:
        raise DataError(f"{_short(text)}: the model takes {', '.join(one.name for one in session.inputs)}")
    try:
        held = {one.name: np.array(given[one.name], getattr(ml_dtypes, one.dtype, one.dtype)) for one in session.inputs}
    except (ValueError, TypeError, OverflowError) as error:
        raise DataError(f"{_short(text)}: is not numbers that the model takes") from error
    return checked(Samples(held), session.inputs, _short(text))


def _batches(text: str, held: Samples, together: int) -> Iterator[tuple[list[str], Feeds]]:
    first = 0
    for batch in held.batches(together):
        yield [f"{_short(text)}[{first + place}]" for place in range(len(batch))], dict(batch.inputs)
        first += len(batch)


def _rows(outputs: Mapping[str, Array], where: Sequence[str]) -> list[Any]:
    """What each row of the outputs is; an object by their names where there are several."""
    if any(one.ndim == 0 or len(one) != len(where) for one in outputs.values()):
        raise DataError(f"{where[0]}: the outputs have not a row for each instance")
    if len(outputs) == 1:
        return list(next(iter(outputs.values())))
    return [dict(zip(outputs, row, strict=True)) for row in zip(*outputs.values(), strict=True)]


def _plain(value: Any) -> Any:
    """A prediction as JSON has it; a number with as many digits as tell it apart."""
    if isinstance(value, Mapping):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_plain(one) for one in value]
    if isinstance(value, np.ndarray):
        return [_plain(one) for one in value] if value.ndim else _plain(value[()])
    if isinstance(value, np.floating) or type(value) is ml_dtypes.bfloat16:
        return float(str(value))
    return value.item() if isinstance(value, np.generic) else value


def _told(value: Any) -> str:
    """A prediction for a person."""
    if isinstance(value, dict) and "score" in value:
        return f"{value.get('label', value.get('index'))} {value['score']:.4g}"
    if isinstance(value, dict):
        return "; ".join(f"{name}: {_told(one)}" for name, one in value.items())
    if isinstance(value, list):
        held = [_told(one) for one in value[:MOST_NUMBERS]]
        left = len(value) - len(held)
        return ", ".join([*held, *([f"… {left} more"] if left else [])]) or "none"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:60] + "…"
