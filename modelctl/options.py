"""Every knob of every step: one frozen dataclass a step, one field a knob, its meaning beside it.

A field is annotated with its type and a `Knob`: the text that `--help` prints, its range, its flag where that is not
the field's own name, and how the manifest remembers it. A repeatable knob is a tuple under a plural name
(`recipients`), its flag the singular (`--recipient`).
"""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated

from modelctl.errors import UsageError
from modelctl.knobs import Knob, Remembered
from modelctl.knobs import Options as Options
from modelctl.knobs import granted_threads as granted_threads


class Method(StrEnum):
    """How `quantize` lowers the number of bits."""

    STATIC = "static"
    DYNAMIC = "dynamic"
    WEIGHT_ONLY = "weight-only"


class Calibration(StrEnum):
    """How static quantization finds the range of an activation."""

    MINMAX = "minmax"
    ENTROPY = "entropy"
    PERCENTILE = "percentile"


class PruneMethod(StrEnum):
    """What `prune` takes away: single weights, whole channels, whole layers; l1-scale takes only their scale."""

    MAGNITUDE = "magnitude"
    THRESHOLD = "threshold"
    KEEP = "keep"
    N_M = "n:m"
    CHANNEL = "channel"
    LAYER = "layer"
    L1_SCALE = "l1-scale"


class Importance(StrEnum):
    """What tells the channels that count: their weights, the loss's gradient on them, or what they answer."""

    MAGNITUDE = "magnitude"
    TAYLOR = "taylor"
    ACTIVATION = "activation"


class PruneSchedule(StrEnum):
    """Whether `prune` takes all away at once or in rounds."""

    ONE_SHOT = "one-shot"
    ITERATIVE = "iterative"


class Scope(StrEnum):
    """Over what `prune` ranks the weights: all of them together, or each tensor by itself."""

    GLOBAL = "global"
    LAYER = "layer"


class KeyType(StrEnum):
    """What `keygen` makes: recipients' key pairs, a shared secret, or signing keys."""

    RSA = "rsa"
    AES = "aes"
    ED25519 = "ed25519"


class Optimizer(StrEnum):
    """How weights follow their gradients."""

    ADAMW = "adamw"
    ADAM = "adam"
    SGD = "sgd"


class Schedule(StrEnum):
    """The course of the learning rate."""

    ONE_CYCLE = "one-cycle"
    COSINE = "cosine"
    LINEAR = "linear"
    CONSTANT = "constant"


class Loss(StrEnum):
    """How far answers are from labels."""

    AUTO = "auto"
    CROSS_ENTROPY = "cross-entropy"
    BCE = "bce"
    MSE = "mse"
    L1 = "l1"


class Precision(StrEnum):
    """In which numbers a training computes; weights and what sums them up stay in the graph's own."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


class Device(StrEnum):
    """Where a training computes."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


class Metric(StrEnum):
    """How `eval` scores answers against labels."""

    AUTO = "auto"
    TOP1 = "top1"
    TOP5 = "top5"
    F1 = "f1"
    RMSE = "rmse"


@dataclass(frozen=True, kw_only=True)
class StepOptions(Options):
    """What every step has that makes an artifact."""

    annotations: Annotated[
        tuple[str, ...],
        Knob("key=value to keep in the manifest; repeatable", flag="--annotate", remembered=Remembered.NOT),
    ] = ()
    force: Annotated[
        bool, Knob("overwrite OUT even if this command would not make the same again", remembered=Remembered.NOT)
    ] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for pair in self.annotations:
            if not pair.partition("=")[0] or "=" not in pair:
                raise UsageError(f"--annotate {pair}: not key=value", "--annotate commit=1a2b3c")
            if not pair.isprintable():
                raise UsageError(f"--annotate {pair}: holds a character that can't be printed")

    def annotation_map(self) -> dict[str, str]:
        """The annotations as a mapping; a later pair wins over an earlier one of the same key."""
        return {key: value for key, _, value in (pair.partition("=") for pair in self.annotations)}


# Knobs that several steps have.
DATA = Knob(
    "samples: an .npz file or a folder of IDX files, with #split=train|test and #limit=N", remembered=Remembered.DATA
)
PASSPHRASE = Knob("where the passphrase comes from: prompt, file:PATH or env:NAME", remembered=Remembered.NOT)
SIGNERS = Knob(
    "public key that must have signed: a path or env:NAME; repeatable", flag="--key", remembered=Remembered.NOT
)


@dataclass(frozen=True, kw_only=True)
class MeasuredOptions(StepOptions):
    """What the steps have that are measured on samples, and may be held to a budget."""

    data: Annotated[str | None, DATA] = None
    max_drop: Annotated[
        float | None, Knob("largest loss of the metric, in percentage points, else exit 1", low=0, high=100)
    ] = None
    min_speedup: Annotated[
        float | None, Knob("smallest speed relative to the input, else exit 1", low=0, high=1000)
    ] = None
    allow_regression: Annotated[bool, Knob("accept a result that is slower or larger than the input")] = False
    seed: Annotated[int, Knob("seed of every random choice", low=0, high=2**32 - 1)] = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_drop is not None and self.data is None:
            raise UsageError("--max-drop needs samples to score", "add --data samples.npz")


@dataclass(frozen=True, kw_only=True)
class OpeningOptions(Options):
    """What a command has that may be given a sealed artifact: the secrets that open it."""

    identities: Annotated[
        tuple[str, ...],
        Knob(
            "RSA private key that opens a sealed file: path or env:NAME; repeatable",
            flag="--identity",
            remembered=Remembered.NOT,
        ),
    ] = ()
    key_file: Annotated[
        str | None, Knob("AES key file that opens a sealed file: a path or env:NAME", remembered=Remembered.NOT)
    ] = None
    passphrase: Annotated[str | None, PASSPHRASE] = None


@dataclass(frozen=True, kw_only=True)
class ExportOptions(StepOptions):
    """`export`: into ONNX, parity proven."""

    weights: Annotated[Path | None, Knob("state dict of the model: .pt, .pth or .safetensors")] = None
    inputs: Annotated[tuple[str, ...], Knob("an input: 'name:dtype[batch,1,28,28]'; repeatable", flag="--input")] = ()
    opset: Annotated[
        int | None,
        Knob("ONNX operator set version; by default 20 from torch, and what it is of an .onnx file", low=18, high=24),
    ] = None
    rtol: Annotated[float, Knob("largest difference allowed, relative to the spread of the output", low=0)] = 1e-4
    atol: Annotated[float, Knob("largest difference allowed, absolute", low=0)] = 1e-6
    data: Annotated[str | None, DATA] = None
    allow_vacuous: Annotated[bool, Knob("accept outputs that do not depend on the input")] = False
    unsafe_pickle: Annotated[bool, Knob("load a pickle that can run code; only for files you made yourself")] = False
    seed: Annotated[int, Knob("seed of the inputs that parity is checked on", low=0, high=2**32 - 1)] = 0


@dataclass(frozen=True, kw_only=True)
class QuantizeOptions(MeasuredOptions):
    """`quantize`: fewer bits."""

    method: Annotated[Method | None, Knob("how; by default static with --data, weight-only without")] = None
    bits: Annotated[int, Knob("bits of a weight", low=8, high=8)] = 8
    calibration: Annotated[Calibration, Knob("how the ranges of activations are found")] = Calibration.MINMAX
    per_channel: Annotated[bool, Knob("one scale a channel, not one a tensor", flag="--per-channel/--per-tensor")] = (
        True
    )
    samples: Annotated[int, Knob("samples to calibrate on", low=1)] = 512
    op_types: Annotated[
        tuple[str, ...], Knob("operator type to quantize; repeatable; by default those that gain", flag="--op-type")
    ] = ()
    excludes: Annotated[tuple[str, ...], Knob("node to leave in float; repeatable", flag="--exclude")] = ()


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
        str | None, Knob("what channel and layer leave: macs=0.5, params=0.5 or latency=0.5 of the input's")
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
            self.wanted_share()
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

    def wanted_share(self) -> tuple[str, float]:
        """What is to become less (macs, params or latency), and to which share of the input's."""
        what, _, share = (self.target or "").partition("=")
        try:
            found = float(share)
        except ValueError:
            found = 0.0
        if what not in ("macs", "params", "latency") or not 0 < found < 1:
            raise UsageError(
                f"--target {self.target}: not macs=, params= or latency= and a share between 0 and 1",
                "--target macs=0.5",
            )
        return what, found

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
    smoothing: Annotated[
        float,
        Knob("share of a class label that is spread over all classes", flag="--label-smoothing", low=0, high=0.99),
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


@dataclass(frozen=True, kw_only=True)
class EncryptOptions(StepOptions):
    """`encrypt`: sealed for recipients, a key file or a passphrase."""

    recipients: Annotated[
        tuple[str, ...],
        Knob(
            "RSA public key that may open it: a path or env:NAME; repeatable",
            flag="--recipient",
            remembered=Remembered.NOT,
        ),
    ] = ()
    key_file: Annotated[
        str | None, Knob("AES key file that may open it: a path or env:NAME", remembered=Remembered.NOT)
    ] = None
    passphrase: Annotated[str | None, PASSPHRASE] = None
    private: Annotated[bool, Knob("keep lineage and metrics out of the outer manifest")] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.recipients or self.key_file or self.passphrase):
            raise UsageError("encrypt needs someone who may open the file", "add --recipient key.pub.pem")
        if self.passphrase and (self.recipients or self.key_file):
            raise UsageError("a passphrase stands alone: it can't be combined with --recipient or --key-file")


@dataclass(frozen=True, kw_only=True)
class DecryptOptions(OpeningOptions):
    """`decrypt`: back to the plain artifact, manifest and signature as they were."""

    force: Annotated[bool, Knob("overwrite OUT", remembered=Remembered.NOT)] = False


@dataclass(frozen=True, kw_only=True)
class KeygenOptions(Options):
    """`keygen`: keys to encrypt for and to sign with."""

    type: Annotated[KeyType, Knob("rsa: recipients; aes: a shared secret; ed25519: signing")] = KeyType.ED25519
    bits: Annotated[int, Knob("size of an RSA key", low=2048, high=16384)] = 3072
    force: Annotated[bool, Knob("overwrite an existing key")] = False


@dataclass(frozen=True, kw_only=True)
class SignOptions(Options):
    """`sign`: a DSSE envelope over file and manifest."""

    key: Annotated[str | None, Knob("Ed25519 or RSA private key: a path or env:NAME", remembered=Remembered.NOT)] = None


@dataclass(frozen=True, kw_only=True)
class VerifyOptions(Options):
    """`verify`: the files, the chain, the signatures."""

    keys: Annotated[tuple[str, ...], SIGNERS] = ()
    roots: Annotated[
        tuple[Path, ...], Knob("trained checkpoint that the lineage must begin with; repeatable", flag="--root")
    ] = ()


@dataclass(frozen=True, kw_only=True)
class PushOptions(Options):
    """`push`: into a store, under a tag."""

    force: Annotated[bool, Knob("move the tag even if it stands on something else")] = False


@dataclass(frozen=True, kw_only=True)
class PullOptions(Options):
    """`pull`: out of a store, verified on the way in."""

    force: Annotated[bool, Knob("overwrite files of another artifact")] = False
    keys: Annotated[tuple[str, ...], SIGNERS] = ()


@dataclass(frozen=True, kw_only=True)
class EvalOptions(OpeningOptions):
    """`eval`: accuracy, latency, size; gates."""

    data: Annotated[str | None, DATA] = None
    metric: Annotated[Metric, Knob("how answers are scored; auto: top1 for integer labels, else rmse")] = Metric.AUTO
    baseline: Annotated[Path | None, Knob("model to compare with, timed in turns with this one")] = None
    min_accuracy: Annotated[float | None, Knob("smallest accuracy, 0 to 1, else exit 1", low=0, high=1)] = None
    max_latency_ms: Annotated[
        float | None, Knob("largest median latency of a batch, in milliseconds, else exit 1", low=0)
    ] = None
    max_size_mb: Annotated[float | None, Knob("largest size, in megabytes (10^6 bytes), else exit 1", low=0)] = None
    max_drop: Annotated[
        float | None, Knob("largest loss against --baseline, in percentage points, else exit 1", low=0, high=100)
    ] = None
    min_speedup: Annotated[float | None, Knob("smallest speed relative to --baseline, else exit 1", low=0)] = None
    batch: Annotated[int, Knob("samples in a timed batch", low=1)] = 1
    seed: Annotated[int, Knob("seed of the split of a single file", low=0, high=2**32 - 1)] = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        for flag, gate in (("--min-accuracy", self.min_accuracy), ("--max-drop", self.max_drop)):
            if gate is not None and self.data is None:
                raise UsageError(f"{flag} needs samples to score", "add --data samples.npz")
        for flag, gate in (("--max-drop", self.max_drop), ("--min-speedup", self.min_speedup)):
            if gate is not None and self.baseline is None:
                raise UsageError(f"{flag} needs a model to compare with", "add --baseline model.onnx")


@dataclass(frozen=True, kw_only=True)
class ServeOptions(OpeningOptions):
    """`serve`: answers over HTTP."""

    threads: Annotated[
        int,
        Knob(
            "threads that one run of a model uses; 0: as many as the container grants",
            low=0,
            high=4096,
            remembered=Remembered.NOT,
        ),
    ] = 1
    host: Annotated[str, Knob("address to listen on")] = "127.0.0.1"
    port: Annotated[int, Knob("port to listen on; 0: any free one", low=0, high=65535)] = 8080
    name: Annotated[str | None, Knob("name to serve a single model under; by default its file's")] = None
    require_signature: Annotated[
        str | None, Knob("public key that must have signed every model: a path or env:NAME", remembered=Remembered.NOT)
    ] = None
    max_batch: Annotated[int, Knob("most samples of several requests in one run of the model", low=1)] = 64
    max_queue: Annotated[int, Knob("most requests waiting for a model; more are answered 429", low=1)] = 256
    max_body_mb: Annotated[float, Knob("largest request body, in megabytes (10^6 bytes)", low=0.001)] = 64.0
    timeout_s: Annotated[float, Knob("longest time a request may wait for its answer, in seconds", low=0.01)] = 30.0


@dataclass(frozen=True, kw_only=True)
class InitOptions(Options):
    """`init`: a project to start from."""

    data: Annotated[str | None, DATA] = None
