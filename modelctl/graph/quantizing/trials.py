"""What a quantized graph is worth beside the float one: on samples to choose by, not on those that are reported on."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import onnx

from modelctl.artifact import Payload
from modelctl.data.samples import Array
from modelctl.formats import onnx as onnx_format
from modelctl.graph import chance, latency, measure, scores
from modelctl.graph.latency import Speedup
from modelctl.graph.measure import Trial
from modelctl.graph.quantizing.recipe import Recipe
from modelctl.graph.session import Session
from modelctl.options import Goal, QuantizeOptions
from modelctl.progress import Progress, silent

SECONDS = 0.15  # to time one candidate, beside the float model in turns
TIE = 0.03  # speeds that differ by less are the same
GOAL_PP = 0.5  # what may be lost where no budget is named
GOAL_AGREEMENT = 0.99


@dataclass(frozen=True, kw_only=True)
class Tried:
    """A recipe, and what came of it; `trouble` says why it came to nothing, and no figures are known then.

    `drop_pp`: points of the metric lost, None without labels; `agreement` as `scores.alike` tells it, `error` the
    relative one; `speedup`: None where it was not timed.
    """

    recipe: Recipe
    size_bytes: int = 0
    size_ratio: float = 0.0
    drop_pp: float | None = None
    agreement: float = 0.0
    error: float = np.inf
    speedup: Speedup | None = None
    trouble: str = ""

    @property
    def speed(self) -> float:
        """Relative to the float model; 0 where it was not timed."""
        return self.speedup.value if self.speedup is not None else 0.0

    def facts(self, verdict: str) -> dict[str, Any]:
        """As a row of a table."""
        known = not self.trouble
        return {
            "candidate": self.recipe.name,
            "drop_pp": round(self.drop_pp, 3) if self.drop_pp is not None else None,
            "agreement": round(self.agreement, 5) if known else None,
            "error": round(float(self.error), 5) if known else None,
            "speed": round(self.speed, 3) if self.speedup is not None else None,
            "size_ratio": round(self.size_ratio, 3) if known else None,
            "verdict": verdict,
        }


class Trials:
    """The float model, its answers on the samples to choose by, and how candidates are held against it."""

    def __init__(
        self,
        payload: Payload,
        session: Session,
        trial: Trial,
        options: QuantizeOptions,
        progress: Progress = silent,
    ) -> None:
        """`session` runs `payload`; `trial` tells the samples to choose by (None: only speed and size are known)."""
        self.payload, self.trial, self.options = payload, trial, options
        self._progress = progress
        self._session = session
        self.feeds = measure.feeds(self._session, trial)
        self.size_bytes = sum(map(len, payload.files.values()))

    @cached_property
    def _before(self) -> Array:
        assert self.trial.samples is not None
        return measure.answers(self._session, self.trial.samples, self._progress, self.trial.output)

    @cached_property
    def _score_before(self) -> float:
        assert self.trial.samples is not None
        return scores.value(self.trial.metric, self._before, self.trial.samples)

    def score(self, made: onnx.ModelProto, recipe: Recipe) -> tuple[Tried, Payload]:
        """What the graph that was made loses, and its bytes; not timed yet.

        ArtifactError or UnsupportedError if it can't be loaded, CheckFailed if it answers what is no number.
        """
        payload = onnx_format.payload_of(made, self.payload)
        session = Session(payload, self.trial.threads, self.trial.provider)
        size = sum(map(len, payload.files.values()))
        sizes: dict[str, Any] = {"recipe": recipe, "size_bytes": size, "size_ratio": self.size_bytes / size}
        samples = self.trial.samples
        if samples is None:
            session.run(self.feeds)
            return Tried(**sizes), payload
        found = measure.answers(session, samples, self._progress, self.trial.output)
        agreement = scores.alike(self._before, found, samples.labels)
        error = scores.agreement(self._before, found)["relative_error"]
        drop = None
        if samples.labels is not None:
            lost = {"metric": str(scores.chosen(self.trial.metric, samples)), "value": self._score_before}
            drop = scores.drop_pp(lost, {"value": scores.value(self.trial.metric, found, samples)}, samples)
        return Tried(**sizes, drop_pp=drop, agreement=agreement, error=error), payload

    def refuse_chance(self, name: str) -> None:
        """What `chance.refuse` raises where the float model's score, that nothing must be lost of, tells nothing."""
        samples = self.trial.samples
        if samples is not None and samples.labels is not None:
            told = scores.score(self.trial.metric, self._before, samples, self.trial.data, self.trial.seed)
            chance.refuse(told, samples.labels, name, self._before)

    def time(self, payload: Payload) -> Speedup:
        """How fast a candidate is, in turns with the float model."""
        timed, provider = self.trial.timed_threads, self.trial.provider
        _, _, speedup = latency.in_turns(
            lambda: Session(self.payload, timed, provider),
            lambda: Session(payload, timed, provider),
            self.feeds,
            self.feeds,
            SECONDS,
        )
        return speedup

    def keeps_answers(self, tried: Tried) -> bool:
        """Whether no more is lost than may be."""
        if tried.trouble:
            return False
        options, samples = self.options, self.trial.samples
        if samples is None:
            return True
        named = options.max_drop is not None or options.min_agreement is not None
        most = options.max_drop if named else GOAL_PP
        least = options.min_agreement if named else GOAL_AGREEMENT if tried.drop_pp is None else None
        holds = most is None or tried.drop_pp is None or tried.drop_pp <= most
        return holds and (least is None or tried.agreement >= least)

    def keeps(self, tried: Tried) -> bool:
        """Whether a candidate that was timed keeps all that it must: answers, speed, size."""
        if not self.keeps_answers(tried) or tried.speedup is None:
            return False
        options = self.options
        if options.min_speedup is not None and tried.speed < options.min_speedup:
            return False
        return options.allow_regression or (not tried.speedup.is_slower and tried.size_bytes <= self.size_bytes)

    def verdict(self, tried: Tried) -> str:
        """What speaks against a candidate; that it keeps all if nothing does."""
        if tried.trouble:
            return tried.trouble
        if not self.keeps_answers(tried):
            return "over the budget"
        if tried.speedup is None:
            return "keeps the answers; not timed"
        if self.keeps(tried):
            return "keeps all"
        return "larger than its input" if tried.size_bytes > self.size_bytes else "too slow"

    def best(self, all_of_them: list[Tried]) -> Tried | None:
        """The one that makes the most of the goal among those that keep what they must; of equal ones the smaller."""
        kept = [one for one in all_of_them if self.keeps(one)]
        if not kept:
            return None
        top = max(map(self._gain, kept))
        tied = [one for one in kept if self._gain(one) >= top * (1 - TIE)]
        smallest = min(one.size_bytes for one in tied)
        return min((one for one in tied if one.size_bytes <= 1.01 * smallest), key=lambda one: (one.error, -one.speed))

    def _gain(self, tried: Tried) -> float:
        match self.options.target:
            case Goal.SIZE:
                return tried.size_ratio
            case Goal.BOTH:
                return tried.size_ratio * tried.speed
            case _:
                return tried.speed
