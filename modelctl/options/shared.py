"""What several steps' options have in common."""

from dataclasses import dataclass
from typing import Annotated

from modelctl.errors import UsageError
from modelctl.knobs import Knob, Options, Remembered


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
    "samples: .npz, .csv, .parquet, a folder of IDX files, of .npz or of pictures, or module:function; "
    "with #split=train|test, #limit=N, #target=column",
    remembered=Remembered.DATA,
)
PREPROCESS = Knob(
    "what makes an input of something raw: image:28x28,gray or table:age,income or text:tokenizer.json or none or a "
    ".toml or .json file; repeatable",
    flag="--preprocess",
    remembered=Remembered.PREPROCESS,
)
POSTPROCESS = Knob(
    "what makes an answer of an output: softmax,top-k=3,labels=labels.txt or none or a .toml or .json file; repeatable",
    flag="--postprocess",
    remembered=Remembered.POSTPROCESS,
)
RTOL_TEXT = "largest difference allowed, relative to the spread of the output"
ATOL = Knob("largest difference allowed, absolute", low=0)
ALLOW_VACUOUS = Knob("accept outputs that do not depend on the input")
PROVIDER = Knob("where models are run and timed: what the installed onnxruntime has, such as cpu, cuda, openvino")
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
    min_agreement: Annotated[
        float | None,
        Knob(
            "smallest share of samples that are answered as by the input; where answers are no classes the smallest "
            "cosine between the two, a mean; else exit 1",
            low=0,
            high=1,
        ),
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
        if self.min_agreement is not None and self.data is None:
            raise UsageError("--min-agreement needs samples to answer", "add --data samples.npz")


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
