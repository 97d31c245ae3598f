"""The knobs of the steps that change what a model computes with: optimize, prune, distill, train."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from modelctl.errors import UsageError
from modelctl.knobs import Knob, Remembered
from modelctl.options.choices import (
    Device,
    Importance,
    Loss,
    Optimizer,
    Precision,
    PruneMethod,
    PruneSchedule,
    Schedule,
    Scope,
)
from modelctl.options.shared import ALLOW_VACUOUS, ATOL, PROVIDER, RTOL_TEXT, MeasuredOptions


@dataclass(frozen=True, kw_only=True)
class OptimizeOptions(MeasuredOptions):
    """`optimize`: fewer nodes."""

    float16: Annotated[bool, Knob("store weights and compute in float16; inputs and outputs keep their types")] = False
    rtol: Annotated[float | None, Knob(f"{RTOL_TEXT}; by default 0.0001, and 0.02 for what --float16 makes", low=0)] = (
        None
    )
    atol: Annotated[float, ATOL] = 1e-6
    allow_vacuous: Annotated[bool, ALLOW_VACUOUS] = False
    provider: Annotated[str, PROVIDER] = "cpu"

    @property
    def tolerance(self) -> float:
        """The largest relative difference before anything is in float16."""
        return 1e-4 if self.rtol is None else self.rtol

    @property
    def float16_tolerance(self) -> float:
        """The largest relative difference of a result in float16."""
        return 2e-2 if self.rtol is None else self.rtol


@dataclass(frozen=True, kw_only=True)
class PruneOptions(MeasuredOptions):
    """`prune`: fewer weights."""

    method: Annotated[
        PruneMethod | None,
        Knob("what is taken away; by default what --sparsity, --threshold, --keep, --pattern or --target ask for"),
    ] = None
    sparsity: Annotated[float | None, Knob("share of the weights to set to zero, 0 to 1", low=0, high=1)] = None
    threshold: Annotated[float | None, Knob("set weights of a smaller magnitude to zero", low=0)] = None
    keep: Annotated[int | None, Knob("how many weights to keep: the exact top-k projection", low=0)] = None
    pattern: Annotated[str | None, Knob("N:M, the most weights to keep of so many neighbours, such as 2:4")] = None
    target: Annotated[
        str | None,
        Knob("what channel and layer leave: macs=0.5, params=0.5 or latency=0.5 of the input's; several with commas"),
    ] = None
    scope: Annotated[Scope, Knob("rank weights over the whole net or in each tensor")] = Scope.GLOBAL
    importance: Annotated[
        Importance | None, Knob("what channels are ranked by; by default taylor with --data, magnitude without")
    ] = None
    align: Annotated[str, Knob("keep multiples of so many channels; auto: what is measured to pay here")] = "auto"
    schedule: Annotated[PruneSchedule, Knob("all at once, or in rounds that are each fine-tuned")] = (
        PruneSchedule.ONE_SHOT
    )
    rounds: Annotated[int, Knob("rounds of the iterative schedule", low=2, high=100)] = 4
    epochs: Annotated[
        int | None,
        Knob("passes of fine-tuning, the input as teacher; by default 2 for channel and layer with --data", low=0),
    ] = None
    batch_size: Annotated[int, Knob("samples a step of fine-tuning", low=2)] = 128
    optimizer: Annotated[
        Optimizer | None, Knob("how it is fine-tuned; by default sgd where there are convolutions, else adamw")
    ] = None
    lr: Annotated[
        float | None, Knob("largest learning rate; by default 0.1 with sgd, 0.001 with adamw", low=1e-9, high=10)
    ] = None
    temperature: Annotated[float, Knob("temperature of the input's softened answers", low=0.01, high=1000)] = 4.0
    alpha: Annotated[float, Knob("weight of the input's answers against the labels, 0 to 1", low=0, high=1)] = 0.9
    flip: Annotated[bool, Knob("fine-tune on images mirrored left to right, too")] = False
    densify: Annotated[bool, Knob("store zeros as they are, not packed into a smaller file")] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        given = [name for name in _AMOUNTS if getattr(self, name) is not None]
        wanted = _AMOUNT_OF.get(self.method) if self.method else None
        if len(given) > 1 or (not given and self.method is not PruneMethod.L1_SCALE):
            flags = ", ".join(f"--{name}" for name in _AMOUNTS)
            raise UsageError(f"prune takes exactly one of {flags}", f"--{wanted or 'sparsity 0.5'}")
        if self.method and given and given[0] != wanted:
            takes = f"--{wanted}" if wanted else "no amount"
            raise UsageError(f"--method {self.method} takes {takes}, not --{given[0]}")
        if self.pattern is not None:
            self.kept_of_neighbours()
        if self.target is not None:
            self.wanted_shares()
        self.block()
        if self.epochs and self.data is None:
            raise UsageError("--epochs needs samples to learn from", "add --data samples.npz")
        if self.importance in (Importance.TAYLOR, Importance.ACTIVATION) and self.data is None:
            raise UsageError(f"--importance {self.importance} needs samples", "add --data samples.npz")

    def chosen_method(self) -> PruneMethod:
        """The method that was named, or the one that the amount belongs to."""
        if self.method is not None:
            return self.method
        (given,) = (name for name in _AMOUNTS if getattr(self, name) is not None)
        return next(method for method, amount in _AMOUNT_OF.items() if amount == given)

    def kept_of_neighbours(self) -> tuple[int, int]:
        """N and M of the pattern."""
        kept, _, of = (self.pattern or "").partition(":")
        if not (kept.isdecimal() and of.isdecimal()) or not 0 < int(kept) < int(of) <= 1024:
            raise UsageError(f"--pattern {self.pattern}: not N:M with 0 < N < M", "--pattern 2:4")
        return int(kept), int(of)

    def wanted_shares(self) -> dict[str, float]:
        """What is to become less (macs, params, latency), each with the share of the input's that may be left."""
        found = {}
        for part in (self.target or "").split(","):
            what, _, share = part.partition("=")
            try:
                found[what] = float(share)
            except ValueError:
                found[what] = 0.0
            if what not in ("macs", "params", "latency") or not 0 < found[what] < 1:
                raise UsageError(
                    f"--target {self.target}: not macs=, params= or latency= and a share between 0 and 1",
                    "--target macs=0.5",
                )
        return found

    def block(self) -> int | None:
        """The multiple that widths are kept at; None: to be measured."""
        if self.align == "auto":
            return None
        if not self.align.isdecimal() or not 1 <= int(self.align) <= 1024:
            raise UsageError(f"--align {self.align}: not auto or a number of channels", "--align 16")
        return int(self.align)


_AMOUNTS = ("sparsity", "threshold", "keep", "pattern", "target")
_AMOUNT_OF = {
    PruneMethod.MAGNITUDE: "sparsity",
    PruneMethod.THRESHOLD: "threshold",
    PruneMethod.KEEP: "keep",
    PruneMethod.N_M: "pattern",
    PruneMethod.CHANNEL: "target",
    PruneMethod.LAYER: "target",
}


@dataclass(frozen=True, kw_only=True)
class DistillOptions(MeasuredOptions):
    """`distill`: a smaller student."""

    student: Annotated[str | None, Knob("the student's code, module:factory", remembered=Remembered.FACTORY)] = None
    student_size: Annotated[int | None, Knob("largest number of parameters of a plain MLP or CNN student", low=1)] = (
        None
    )
    temperature: Annotated[float, Knob("temperature of the softened answers", low=0.01, high=1000)] = 4.0
    alpha: Annotated[float, Knob("weight of the teacher's answers against the labels, 0 to 1", low=0, high=1)] = 0.9
    epochs: Annotated[int, Knob("passes over the training samples", low=1)] = 5
    batch_size: Annotated[int, Knob("samples a step", low=2)] = 128
    optimizer: Annotated[Optimizer, Knob("how the student learns: adamw, adam, or sgd with Nesterov momentum")] = (
        Optimizer.ADAMW
    )
    lr: Annotated[float, Knob("largest learning rate of the one-cycle schedule", low=1e-9, high=10)] = 2e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.student is None) == (self.student_size is None):
            raise UsageError("distill takes exactly one of --student, --student-size", "--student-size 50000")
        if self.data is None:
            raise UsageError("distill needs samples to learn from", "add --data samples.npz")


@dataclass(frozen=True, kw_only=True)
class TrainOptions(MeasuredOptions):
    """`train`: an ONNX file, taught further."""

    epochs: Annotated[int, Knob("passes over the training samples", low=1)] = 3
    batch_size: Annotated[int, Knob("samples a step; those of the model itself where they are fixed", low=2)] = 128
    loss: Annotated[Loss, Knob("what is made small; auto: cross-entropy for integer labels, else mse")] = Loss.AUTO
    output: Annotated[str | None, Knob("the output that learns; by default the first")] = None
    optimizer: Annotated[Optimizer, Knob("how weights learn: adamw, adam, or sgd with Nesterov momentum")] = (
        Optimizer.ADAMW
    )
    lr: Annotated[float | None, Knob("largest learning rate; by default 0.001, with sgd 0.02", low=1e-9, high=10)] = (
        None
    )
    momentum: Annotated[float, Knob("momentum of sgd, first beta of adam", low=0, high=0.999)] = 0.9
    weight_decay: Annotated[
        float | None, Knob("weight decay; by default 0.01, with sgd 0.0005, with adam 0", low=0, high=10)
    ] = None
    schedule: Annotated[Schedule, Knob("course of the learning rate")] = Schedule.ONE_CYCLE
    warmup: Annotated[
        float | None,
        Knob("share of the steps in which the rate rises; by default 0.3 of a one-cycle, else 0", low=0, high=1),
    ] = None
    clip: Annotated[float | None, Knob("largest norm of all gradients together", low=1e-9)] = None
    label_smoothing: Annotated[
        float, Knob("share of a class label that is spread over all classes", low=0, high=0.99)
    ] = 0.0
    flip: Annotated[bool, Knob("flip half of the pictures from left to right, at random")] = False
    patience: Annotated[
        int | None,
        Knob("epochs without a gain on held-out samples after which to stop; the best epoch's weights are kept", low=1),
    ] = None
    freezes: Annotated[
        tuple[str, ...], Knob("initializers to leave as they are, 'encoder.*'; repeatable", flag="--freeze")
    ] = ()
    onlys: Annotated[tuple[str, ...], Knob("initializers to teach, no others; repeatable", flag="--only")] = ()
    teacher: Annotated[Path | None, Knob("model whose answers are learned too")] = None
    temperature: Annotated[float, Knob("temperature of the softened answers of --teacher", low=0.01, high=1000)] = 4.0
    alpha: Annotated[float, Knob("weight of the answers of --teacher against the labels, 0 to 1", low=0, high=1)] = 0.9
    precision: Annotated[Precision, Knob("numbers to compute in; weights stay as they are")] = Precision.FLOAT32
    device: Annotated[Device, Knob("where to compute; auto: cuda where there is one", remembered=Remembered.NOT)] = (
        Device.AUTO
    )
    checkpoint: Annotated[
        Path | None,
        Knob("folder that keeps the state of the training: the same command goes on there", remembered=Remembered.NOT),
    ] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.data is None:
            raise UsageError("train needs samples to learn from", "add --data samples.npz")

    @property
    def rate(self) -> float:
        """The largest learning rate, as given or as fits the optimizer."""
        return self.lr or (2e-2 if self.optimizer is Optimizer.SGD else 1e-3)
