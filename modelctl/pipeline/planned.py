"""The steps that a pipeline can run, and one of them ready to run: its options, what it reads, what it writes."""

from dataclasses import dataclass
from pathlib import Path

from modelctl.artifact import Artifact
from modelctl.errors import ArtifactError
from modelctl.knobs import knobs
from modelctl.options import (
    DecryptOptions,
    DistillOptions,
    EncryptOptions,
    EvalOptions,
    ExportOptions,
    OptimizeOptions,
    Options,
    PruneOptions,
    PullOptions,
    PushOptions,
    QuantizeOptions,
    SignOptions,
    StepOptions,
    TrainOptions,
    VerifyOptions,
)


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
    "optimize": Kind(options=OptimizeOptions),
    "quantize": Kind(options=QuantizeOptions),
    "prune": Kind(options=PruneOptions),
    "distill": Kind(options=DistillOptions, extra="torch"),
    "train": Kind(options=TrainOptions, extra="torch"),
    "encrypt": Kind(options=EncryptOptions),
    "decrypt": Kind(options=DecryptOptions),
    "sign": Kind(options=SignOptions, takes=("from",), state="signed"),
    "verify": Kind(options=VerifyOptions, takes=("from",), state="checked"),
    "eval": Kind(options=EvalOptions, takes=("from",), state="checked"),
    "push": Kind(options=PushOptions, takes=("from", "to"), state="pushed"),
    "pull": Kind(options=PullOptions, state="pulled"),
}


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


def made_here(step: PlannedStep) -> bool:
    """Whether what stands at `out` was made by the same kind of step, so that the pipeline may make it anew."""
    if step.out is None:
        return False
    try:
        made_by = Artifact.open(step.out).manifest.made_by
    except ArtifactError:
        return False
    return made_by is not None and made_by.step == step.run
