"""The knobs of `quantize`."""

from dataclasses import dataclass
from typing import Annotated

from modelctl.errors import UsageError
from modelctl.knobs import Knob, Remembered
from modelctl.options.choices import Calibration, Goal, Method
from modelctl.options.shared import PROVIDER, MeasuredOptions

# The bits that a method may be given; the first is its own choice.
BITS = {
    Method.AUTO: (8, 4),
    Method.STATIC: (8, 7, 6, 5, 4, 3, 2),
    Method.DYNAMIC: (8,),
    Method.WEIGHT_ONLY: (8, 4),
    Method.FLOAT16: (16,),
    Method.BFLOAT16: (16,),
    Method.FIXED_POINT: (8, 16),
    Method.QAT: (4, 2, 3, 5, 6, 7, 8),
}
NEEDS_SAMPLES = {
    Method.AUTO: "to calibrate and to search on",
    Method.STATIC: "to calibrate on",
    Method.QAT: "to learn from",
}


@dataclass(frozen=True, kw_only=True)
class QuantizeOptions(MeasuredOptions):
    """`quantize`: fewer bits."""

    method: Annotated[
        Method | None, Knob("how; by default auto with --data: what a search finds to do best; weight-only without")
    ] = None
    target: Annotated[Goal, Knob("what auto makes the most of within the budget; both: speed times smallness")] = (
        Goal.LATENCY
    )
    bits: Annotated[
        int | None,
        Knob(
            "bits of a weight: 8, 4 for weight-only too, 16 for fixed-point, 2 to 7 for static and qat; by default 8, "
            "for qat 4, and for auto what does best",
            low=2,
            high=16,
        ),
    ] = None
    calibration: Annotated[
        Calibration | None,
        Knob("how the ranges of activations are found; by default minmax, and for auto what does best"),
    ] = None
    smooth: Annotated[
        bool | None,
        Knob(
            "move outliers of activations into weights first (SmoothQuant); for auto, by default, where it helps",
            flag="--smooth/--no-smooth",
        ),
    ] = None
    per_channel: Annotated[bool, Knob("one scale a channel, not one a tensor", flag="--per-channel/--per-tensor")] = (
        True
    )
    samples: Annotated[int, Knob("samples to calibrate on", low=1)] = 512
    op_types: Annotated[
        tuple[str, ...], Knob("operator type to quantize; repeatable; by default those that gain", flag="--op-type")
    ] = ()
    excludes: Annotated[tuple[str, ...], Knob("node to leave in float; repeatable", flag="--exclude")] = ()
    time_budget_s: Annotated[
        float, Knob("longest time that auto may search, in seconds; what it has found by then counts", low=0)
    ] = 300.0
    provider: Annotated[str, PROVIDER] = "cpu"
    fraction_bits: Annotated[
        int | None,
        Knob("p of fixed-point's round(w·2^p); by default the largest that the weights leave room for", low=0, high=30),
    ] = None
    epochs: Annotated[int, Knob("passes of qat over the training samples", low=1)] = 1
    batch_size: Annotated[int, Knob("samples a step of qat", low=2)] = 128
    lr: Annotated[
        float | None, Knob("largest learning rate of qat; by default what fits the net", low=1e-9, high=10)
    ] = None
    flip: Annotated[bool, Knob("learn, with qat, on images mirrored left to right, too")] = False
    explain: Annotated[
        bool, Knob("tell what was decided for each node, and what else was tried", remembered=Remembered.NOT)
    ] = False
    plot: Annotated[
        str | None, Knob("draw what was tried, speed against loss, into this .svg file", remembered=Remembered.NOT)
    ] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        method, given = self.chosen, self.bits
        if given is not None and given not in BITS[method]:
            *others, last = map(str, sorted(BITS[method]))
            said = f"{', '.join(others)} or {last}" if others else last
            hint = f"--method qat --bits {given}" if given < 8 else "leave --bits out"
            raise UsageError(f"--bits {given}: {method} takes {said}", hint)
        if method in NEEDS_SAMPLES and self.data is None:
            raise UsageError(f"--method {method} needs samples {NEEDS_SAMPLES[method]}", "add --data samples.npz")
        if method in (Method.FLOAT16, Method.BFLOAT16) and (self.op_types or self.excludes):
            raise UsageError(f"--op-type and --exclude do not go with {method}, which takes all weights")
        if self.plot is not None and not self.plot.endswith(".svg"):
            raise UsageError(f"--plot {self.plot}: only .svg is drawn", "--plot frontier.svg")
        if self.fraction_bits is not None and method is not Method.FIXED_POINT:
            raise UsageError("--fraction-bits belongs to fixed-point", "--method fixed-point")

    @property
    def chosen(self) -> Method:
        """The method, as given or as fits."""
        return self.method or (Method.WEIGHT_ONLY if self.data is None else Method.AUTO)

    @property
    def weight_bits(self) -> int:
        """Bits of a weight, as given or as fits the method."""
        return self.bits or BITS[self.chosen][0]
