"""The trained models that the benchmarks quantize, and the samples that go with each.

    python tests/bench/models.py FOLDER [--models cnn,residual,…] [--threads N]

Makes what FOLDER lacks, each through `modelctl export`; the larger nets train for minutes.

| name | what | scored by |
|---|---|---|
| cnn | the net of `modelctl init`, 472,378 parameters | Fashion-MNIST |
| residual, vit | those of `fashion.py` | Fashion-MNIST |
| minilm | the sentence encoder of `minilm.py`, free batch and length | cosine |
| silero | Silero's voice activity detector (LSTM), from its package, three outputs | cosine |
| mobilenet, lstm, two, old | those of `small.py`: depthwise, recurrent, two inputs and outputs, opset 9 | the same |
| mlp, gru | those of `small.py` | digits |
| partly | `cnn` with one layer in 8 bits already, QuantizeLinear and DequantizeLinear around it | Fashion-MNIST |
"""

import argparse
import importlib.util
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fashion
import minilm
import numpy as np
import onnx
import small
import torch
from onnxruntime import quantization as ort_quantization

from modelctl.data import digits, idx, open_data
from modelctl.formats import onnx as onnx_format
from modelctl.graph.session import Session
from modelctl.options import ExportOptions
from modelctl.steps.export import Source, export

HERE = Path(__file__).parent
PICTURE = "x:float32[batch,1,28,28]"
EPOCHS = {"residual": 14, "vit": 12}
CALIBRATION, VALIDATION = 512, 2000
Array = np.ndarray[Any, Any]
Feeds = dict[str, Array]


@dataclass(frozen=True, eq=False)
class Subject:
    """A model, what `--data` is given for it (None: nothing fits), and samples, each array [N, …].

    `whole`: a sample is all that the model takes at once; else it lacks the batch axis, and samples may be batched.
    """

    name: str
    path: Path
    data: str | None
    calibration: Feeds
    validation: Feeds
    validation_labels: Array | None
    test: Feeds
    test_labels: Array | None
    whole: bool = False
    transformer: bool = False


def ready(name: str, folder: Path, limit: int | None = None) -> Subject:
    """The subject called `name`, made if `folder` lacks it; no more than `limit` samples to test on."""
    path = folder / f"{name}.onnx"
    if not path.exists():
        MAKERS[name](folder)
    if name == "silero":
        first, second, third = (_speech(seed, count) for seed, count in ((0, 96), (1, 64), (2, 128)))
        return Subject(name, path, None, first, second, None, third, None, whole=True)
    data = _data(name, folder)
    parts = open_data(data, Session(onnx_format.open_model(path).load()).inputs, 0)
    train, held = parts.train.take(CALIBRATION, 0), parts.validation.first(VALIDATION)
    test = parts.test.first(limit)
    return Subject(
        name,
        path,
        data,
        dict(train.inputs),
        dict(held.inputs),
        held.labels,
        dict(test.inputs),
        test.labels,
        transformer=name in ("minilm", "vit"),
    )


def _data(name: str, folder: Path) -> str:
    beside = folder / f"{name}.npz"
    if name in small.DIGITS:
        return str(digits.path())
    return str(beside if beside.exists() else fashion.FASHION_MNIST)


def _cnn(folder: Path) -> None:
    project = folder / "init-fashion"
    data = str(fashion.FASHION_MNIST)
    modelctl = [sys.executable, "-m", "modelctl"]
    if not project.exists():
        subprocess.run([*modelctl, "init", project.name, "--data", data], cwd=folder, check=True)
    subprocess.run([sys.executable, "train.py", data, "--flip"], cwd=project, check=True)
    asked = ["--weights", "weights.pt", "--input", PICTURE, "-o", str((folder / "cnn.onnx").resolve())]
    subprocess.run([*modelctl, "export", "net:build", *asked], cwd=project, check=True)


def _fashion(name: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        net = {"residual": fashion.residual, "vit": fashion.vit}[name]()
        fashion.train(net, fashion.FASHION_MNIST, EPOCHS[name], transformer=name == "vit")
        _export(folder, f"fashion:{name}", net.state_dict(), (PICTURE,), folder / f"{name}.onnx")

    return make


def _small(name: str) -> Callable[[Path], None]:
    shapes = {"two": ("upper:float32[batch,1,14,28]", "lower:float32[batch,1,14,28]")}
    shapes |= dict.fromkeys(small.DIGITS, ("x:float32[batch,1,8,8]",))

    def make(folder: Path) -> None:
        weights = small.weights(name)
        _export(folder, f"small:{name}", weights, shapes.get(name, (PICTURE,)), folder / f"{name}.onnx")
        if name == "two":
            _halves(folder / "two.npz")

    return make


def _halves(out: Path, count: int = 20_000) -> None:
    """Fashion-MNIST's first pictures in two halves, from the test split, then from the training split."""
    found = [idx.scaled(idx.read(fashion.FASHION_MNIST, split, "x")) for split in ("test", "train")]
    pictures = np.concatenate([one.inputs["x"] for one in found])[:count].astype(np.float16)
    labels = np.concatenate([np.asarray(one.labels) for one in found])[:count].astype(np.int64)
    np.savez_compressed(out, allow_pickle=False, upper=pictures[:, :, :14], lower=pictures[:, :, 14:], y=labels)


def _export(folder: Path, factory: str, weights: dict[str, Any], inputs: tuple[str, ...], out: Path) -> None:
    held = folder / f"{out.stem}.pt"
    torch.save(weights, held)
    export(Source.parse(factory), out, ExportOptions(weights=held, inputs=inputs, force=True))


def _old(folder: Path) -> None:
    source = folder / "old-9.onnx"
    source.write_bytes(small.old_onnx(small.weights("old")).SerializeToString())
    export(Source.parse(str(source)), folder / "old.onnx", ExportOptions(force=True))


def _minilm(folder: Path) -> None:
    minilm.make(folder)


def _silero(folder: Path) -> None:
    place = importlib.util.find_spec("silero_vad")
    if place is None or place.origin is None:
        raise ModuleNotFoundError("pip install --no-deps silero-vad")
    source = Path(place.origin).parent / "data" / "silero_vad_16k_sequence.onnx"
    export(Source.parse(str(source)), folder / "silero.onnx", ExportOptions(force=True))


def _partly(folder: Path) -> None:
    """`cnn` with its second convolution quantized by onnxruntime's defaults."""
    subject = ready("cnn", folder)
    source = folder / "partly-qdq.onnx"
    second = [node.name for node in onnx.load(subject.path).graph.node if node.op_type == "Conv"][1]

    class Reader(ort_quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.feeds: Iterator[Array] = iter(subject.calibration["x"])

        def get_next(self) -> Any:
            one = next(self.feeds, None)
            return None if one is None else {"x": one[np.newaxis]}

    ort_quantization.quantize_static(subject.path, source, Reader(), nodes_to_quantize=[second])
    export(Source.parse(str(source)), folder / "partly.onnx", ExportOptions(force=True))


def _speech(seed: int, count: int) -> Feeds:
    """What a microphone might hear, in `count` takes of 31 windows of 36 ms at 16 kHz: voices, noise and silence.

    Vowels are pulses through resonances (J. L. Flanagan, Speech analysis, synthesis and perception, 2nd ed., 6.2).
    """
    random = np.random.default_rng(seed)
    windows = np.stack([_take(random) for _ in range(count)])
    state = np.zeros((count, 1, 1, 128), np.float32)
    return {"input": windows, "h": state, "c": state.copy()}


def _take(random: np.random.Generator, windows: int = 31) -> Array:
    """Windows float32 [windows, 576], each of 512 new values behind the last 64 of the one before."""
    length = windows * 512 + 64
    seconds = np.arange(length) / 16_000
    pitch = random.uniform(90, 240) * (1 + 0.1 * np.sin(2 * np.pi * random.uniform(0.5, 3) * seconds))
    phase = np.cumsum(pitch) / 16_000
    voice = np.zeros(length)
    formants = np.array([random.uniform(300, 900), random.uniform(900, 2300), random.uniform(2300, 3200)])
    for harmonic in range(1, 24):
        peaks = 1 / (1 + ((harmonic * pitch[:, np.newaxis] - formants) / 90) ** 2)
        voice += (peaks.sum(1) + 0.02) / harmonic**0.5 * np.sin(2 * np.pi * harmonic * phase)
    syllables = np.clip(np.sin(2 * np.pi * random.uniform(2, 5) * seconds + random.uniform(0, 6)) * 2, 0, 1)
    talks = (seconds > random.uniform(0, 0.4)) & (seconds < random.uniform(0.5, 1.1))
    heard = random.uniform(0, 0.15) * voice * syllables * talks
    heard += random.uniform(0.0005, 0.02) * random.standard_normal(length)
    starts = np.arange(windows)[:, np.newaxis] * 512
    taken: Array = heard[starts + np.arange(576)].astype(np.float32)
    return taken


MAKERS: dict[str, Callable[[Path], None]] = {
    "cnn": _cnn,
    "residual": _fashion("residual"),
    "minilm": _minilm,
    "vit": _fashion("vit"),
    "mobilenet": _small("mobilenet"),
    "lstm": _small("lstm"),
    "gru": _small("gru"),
    "mlp": _small("mlp"),
    "old": _old,
    "two": _small("two"),
    "partly": _partly,
    "silero": _silero,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--models", default=",".join(MAKERS))
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    given.folder.mkdir(parents=True, exist_ok=True)
    for name in given.models.split(","):
        subject = ready(name, given.folder)
        count = len(next(iter(subject.test.values())))
        print(f"{subject.path}: {subject.path.stat().st_size} bytes, tested on {count} of {subject.data or 'its own'}")


if __name__ == "__main__":
    main()
