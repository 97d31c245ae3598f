"""The knobs of the steps that make, seal, judge, move and serve a model without changing its weights."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from modelctl.chains import spelling
from modelctl.errors import UsageError
from modelctl.knobs import Knob, Options, Remembered, granted_threads
from modelctl.options.access import AccessOptions
from modelctl.options.choices import KeyType, May, Metric
from modelctl.options.shared import (
    ALLOW_VACUOUS,
    ATOL,
    DATA,
    PASSPHRASE,
    POSTPROCESS,
    PREPROCESS,
    PROVIDER,
    RTOL_TEXT,
    SIGNERS,
    OpeningOptions,
    StepOptions,
)


@dataclass(frozen=True, kw_only=True)
class ExportOptions(StepOptions):
    """`export`: into ONNX, parity proven."""

    weights: Annotated[Path | None, Knob("state dict of the model: .pt, .pth or .safetensors")] = None
    inputs: Annotated[tuple[str, ...], Knob("an input: 'name:dtype[batch,1,28,28]'; repeatable", flag="--input")] = ()
    opset: Annotated[
        int | None,
        Knob("ONNX operator set version; by default 20 from torch, and what it is of an .onnx file", low=18, high=24),
    ] = None
    rtol: Annotated[float, Knob(RTOL_TEXT, low=0)] = 1e-4
    atol: Annotated[float, ATOL] = 1e-6
    data: Annotated[str | None, DATA] = None
    allow_vacuous: Annotated[bool, ALLOW_VACUOUS] = False
    unsafe_pickle: Annotated[bool, Knob("load a pickle that can run code; only for files you made yourself")] = False
    preprocess: Annotated[tuple[str, ...], PREPROCESS] = ()
    postprocess: Annotated[tuple[str, ...], POSTPROCESS] = ()
    seed: Annotated[int, Knob("seed of the inputs that parity is checked on", low=0, high=2**32 - 1)] = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        spelling.check("preprocess", self.preprocess)
        spelling.check("postprocess", self.postprocess)


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
    """`keygen`: keys to encrypt for, to sign with, and to be let in by a server."""

    type: Annotated[
        KeyType, Knob("rsa: recipients; aes: a shared secret; ed25519: signing; api: a client of a server")
    ] = KeyType.ED25519
    bits: Annotated[int, Knob("size of an RSA key", low=2048, high=16384)] = 3072
    force: Annotated[bool, Knob("overwrite an existing key")] = False
    keys: Annotated[
        Path | None, Knob("file of a server's keys that a new api key is added to; by default keys.toml beside OUT")
    ] = None
    name: Annotated[str | None, Knob("name of an api key's owner; by default OUT's")] = None
    models: Annotated[
        tuple[str, ...],
        Knob("models that an api key may ask, such as 'digits*'; repeatable; by default all", flag="--model"),
    ] = ()
    mays: Annotated[
        tuple[May, ...], Knob("what else an api key may do, load models or see metrics; repeatable", flag="--may")
    ] = ()
    rate: Annotated[float | None, Knob("requests a second that an api key may send", low=1e-3, high=1e6)] = None
    burst: Annotated[int | None, Knob("requests at once that an api key may send", low=1, high=10**6)] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        of_api = self.keys or self.name or self.models or self.mays or self.rate or self.burst
        if of_api and self.type is not KeyType.API:
            raise UsageError("--keys, --name, --model, --may, --rate and --burst are of an api key", "add --type api")


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


_SEVERAL_THREADS = Knob(
    "threads to use; 0: as many as the container grants, and one to time a model on; of several, such as 1,2,4, the "
    "first counts for gates",
    low=0,
    high=4096,
    remembered=Remembered.NOT,
)


@dataclass(frozen=True, kw_only=True)
class EvalOptions(OpeningOptions):
    """`eval`: accuracy, latency, size; gates."""

    threads: Annotated[int | str, _SEVERAL_THREADS] = 0  # type: ignore[assignment]  # read by its methods only
    data: Annotated[str | None, DATA] = None
    metric: Annotated[
        str,
        Knob(
            "how answers are scored: top1, top5, f1, rmse, or your own module:function(answers, labels), higher is "
            "better; auto: top1 for integer labels, else rmse"
        ),
    ] = Metric.AUTO.value
    output: Annotated[str | None, Knob("the output that is scored; by default the first")] = None
    slices: Annotated[
        str | None, Knob("score each group of samples that share a value in this column, an array of the .npz")
    ] = None
    baseline: Annotated[Path | None, Knob("model to compare with, timed in turns with this one")] = None
    min_accuracy: Annotated[float | None, Knob("smallest accuracy, 0 to 1, else exit 1", low=0, high=1)] = None
    max_latency_ms: Annotated[
        float | None, Knob("largest median latency of a batch, in milliseconds, else exit 1", low=0)
    ] = None
    max_size_mb: Annotated[float | None, Knob("largest size, in megabytes (10^6 bytes), else exit 1", low=0)] = None
    max_drop: Annotated[
        float | None, Knob("largest loss against --baseline, in percentage points, else exit 1", low=0, high=100)
    ] = None
    max_gap: Annotated[
        float | None, Knob("largest gap between two groups of --slices, in percentage points, else exit 1", low=0)
    ] = None
    min_speedup: Annotated[float | None, Knob("smallest speed relative to --baseline, else exit 1", low=0)] = None
    batch: Annotated[
        int | str, Knob("samples in a timed batch; of several, such as 1,8,64, the first counts for gates", low=1)
    ] = 1
    provider: Annotated[str, PROVIDER] = "cpu"
    plot: Annotated[
        str | None, Knob("draw confusion matrix and latency into this .svg file", remembered=Remembered.NOT)
    ] = None
    seed: Annotated[int, Knob("seed of the split of a single file, and of intervals", low=0, high=2**32 - 1)] = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        for flag, gate in (("--min-accuracy", self.min_accuracy), ("--max-drop", self.max_drop)):
            if gate is not None and self.data is None:
                raise UsageError(f"{flag} needs samples to score", "add --data samples.npz")
        if self.slices is not None and self.data is None:
            raise UsageError("--slices needs samples to score", "add --data samples.npz")
        for flag, gate in (("--max-drop", self.max_drop), ("--min-speedup", self.min_speedup)):
            if gate is not None and self.baseline is None:
                raise UsageError(f"{flag} needs a model to compare with", "add --baseline model.onnx")
        if self.max_gap is not None and self.slices is None:
            raise UsageError("--max-gap needs groups to compare", "add --slices column")
        if self.metric not in set(Metric) and ":" not in self.metric:
            known = ", ".join(Metric)
            raise UsageError(f"--metric {self.metric}: not one of {known}, or module:function", "--metric top1")
        if self.plot is not None and not self.plot.endswith(".svg"):
            raise UsageError(f"--plot {self.plot}: only .svg is drawn", "--plot eval.svg")
        self.batches()
        self.thread_counts()

    def batches(self) -> tuple[int, ...]:
        """The batches to be timed, in the order given."""
        found = _numbers(self.batch)
        if not found or not all(0 < one < 10**7 for one in found):
            raise UsageError(f"--batch {self.batch}: must be numbers of samples", "--batch '1,8,64'")
        return found

    def thread_counts(self) -> tuple[int, ...]:
        """The numbers of threads to time on, in the order given."""
        found = _numbers(self.threads)
        if not found or not all(one <= 4096 for one in found):
            raise UsageError(f"--threads {self.threads}: must be numbers from 0 to 4096", "--threads '1,2,4'")
        return tuple(one or 1 for one in found)

    def thread_count(self) -> int:
        """Threads to compute answers on: as many as it is timed on at most, or as many as there are."""
        found = _numbers(self.threads)
        return granted_threads() if 0 in found else max(found)

    def timed_threads(self) -> int:
        """The number of threads that counts for gates."""
        return self.thread_counts()[0]


def _numbers(value: int | str) -> tuple[int, ...]:
    """`1,8,64` as numbers; none where it is anything else."""
    parts = str(value).split(",")
    return tuple(map(int, parts)) if all(one.isascii() and one.isdigit() and len(one) < 9 for one in parts) else ()


@dataclass(frozen=True, kw_only=True)
class ServeOptions(AccessOptions):
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
    provider: Annotated[str, PROVIDER] = "cpu"
    host: Annotated[str, Knob("address to listen on")] = "127.0.0.1"
    port: Annotated[int, Knob("port to listen on; 0: any free one", low=0, high=65535)] = 8080
    name: Annotated[str | None, Knob("name to serve a single model under; by default its file's")] = None
    require_signature: Annotated[
        str | None, Knob("public key that must have signed every model: a path or env:NAME", remembered=Remembered.NOT)
    ] = None
    routes: Annotated[
        tuple[str, ...],
        Knob("shares of a model's versions: name:stable=90,name:next=10; repeatable", flag="--route"),
    ] = ()
    shadows: Annotated[
        tuple[str, ...],
        Knob("version that is asked what its model is asked, and only counted: name:next; repeatable", flag="--shadow"),
    ] = ()
    watch: Annotated[bool, Knob("load a model anew, without a failed request, when its ref or file changes")] = False
    workers: Annotated[int, Knob("processes that answer; each has the models in its memory", low=1, high=256)] = 1
    max_batch: Annotated[int, Knob("most samples of several requests in one run of the model", low=1)] = 64
    max_delay_ms: Annotated[
        float, Knob("longest time a request may wait for others to share a run, in milliseconds", low=0, high=10_000)
    ] = 0.0
    max_queue: Annotated[int, Knob("most requests waiting for a model; more are answered 429", low=1)] = 256
    max_body_mb: Annotated[float, Knob("largest request body, in megabytes (10^6 bytes)", low=0.001)] = 64.0
    timeout_s: Annotated[float, Knob("longest time a request may wait for its answer, in seconds", low=0.01)] = 30.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.shares()
        self.shadowed()

    def shares(self) -> dict[str, dict[str, float]]:
        """Of each model that is routed, the shares of its versions."""
        found: dict[str, dict[str, float]] = {}
        for route in self.routes:
            shares: dict[str, float] = {}
            names = set()
            for part in route.split(","):
                ref, equals, share = part.partition("=")
                name, colon, version = ref.strip().rpartition(":")
                if not (equals and colon and name and version and share.strip().replace(".", "", 1).isdecimal()):
                    raise UsageError(f"--route {route}: not shares of versions", "--route name:stable=90,name:next=10")
                names.add(name)
                shares[version] = float(share)
            if len(names) != 1 or names & found.keys() or not sum(shares.values()):
                raise UsageError(f"--route {route}: must be all shares of one name", "--route name:a=90,name:b=10")
            found[names.pop()] = shares
        return found

    def shadowed(self) -> dict[str, str]:
        """Of each model that has a shadow, the version that is it."""
        found: dict[str, str] = {}
        for shadow in self.shadows:
            name, colon, version = shadow.rpartition(":")
            if not (colon and name and version) or name in found:
                raise UsageError(f"--shadow {shadow}: not one version of a name", "--shadow name:next")
            found[name] = version
        return found


@dataclass(frozen=True, kw_only=True)
class InitOptions(Options):
    """`init`: a project to start from."""

    data: Annotated[str | None, DATA] = None
