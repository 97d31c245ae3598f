"""Other tools that quantize, as their documentation tells a beginner to; each runs in a Python environment of its own.

    python peers.py METHOD MODEL OUT SAMPLES.npz [--transformer]

This file is both: what makes the environments, and, inside one, the script that quantizes MODEL into OUT. SAMPLES holds
`calibration.NAME` and `validation.NAME`, arrays [N, …] whose rows are what the input NAME takes whole, and `labels`.
"""

import argparse
import logging
import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Feeds = dict[str, Any]
MAX_DROP = 0.005
_TASK = {"task": "multiclass", "num_classes": 10}


@dataclass(frozen=True)
class Peer:
    """A tool, what pip is asked for (nothing: it is installed beside modelctl), and its methods here."""

    name: str
    requirements: tuple[str, ...]
    methods: tuple[str, ...]

    def python(self, folder: Path) -> Path:
        """The interpreter that has the tool, made and filled under `folder` the first time; CalledProcessError."""
        if not self.requirements:
            return Path(sys.executable)
        place = folder / self.name
        python = place / "bin" / "python"
        done = place / "requirements.txt"
        if not done.exists() or done.read_text().split() != list(self.requirements):
            venv.create(place, clear=True, with_pip=True)
            pip = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", *self.requirements]
            subprocess.run(pip, check=True, capture_output=True, text=True)
            done.write_text("\n".join(self.requirements))
        return python


# torch by its number, which pip finds as a build for CPUs; Olive asks for it by name alone, and never for requests.
_OLIVE = ("olive-ai==0.13.0", "torch==2.13.0", "onnxruntime==1.31.1", "requests")
PEERS = (
    Peer("onnxruntime", (), ("ort-static", "ort-dynamic", "ort-prepared-static", "ort-prepared-dynamic")),
    Peer("nncf", ("nncf==3.4.0", "onnx==1.23.2", "onnxruntime==1.31.1"), ("nncf", "nncf-accuracy-control")),
    Peer("olive", _OLIVE, ("olive-static", "olive-search")),
)


class Samples:
    """What the file of samples holds, one feed after another."""

    def __init__(self, path: Path) -> None:
        with np.load(path) as file:
            self._held = dict(file.items())

    def feeds(self, part: str) -> list[Feeds]:
        """The feeds of `calibration` or `validation`."""
        named = {name.partition(".")[2]: array for name, array in self._held.items() if name.startswith(f"{part}.")}
        count = len(next(iter(named.values())))
        return [{name: array[at] for name, array in named.items()} for at in range(count)]

    @property
    def labels(self) -> Any:
        """The classes of `validation`; SystemExit where there are none."""
        if "labels" not in self._held:
            sys.exit("needs labels")
        return self._held["labels"]


def ort_static(model: Path, out: Path, samples: Samples) -> None:
    """onnxruntime's static quantization."""
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.feeds: Iterator[Feeds] = iter(samples.feeds("calibration"))

        def get_next(self) -> Feeds | None:
            return next(self.feeds, None)

    quantization.quantize_static(model, out, Reader())


def ort_dynamic(model: Path, out: Path) -> None:
    """onnxruntime's dynamic quantization."""
    from onnxruntime import quantization

    quantization.quantize_dynamic(model, out)


def ort_prepared(model: Path, make: Callable[[Path], None]) -> None:
    """After onnxruntime's own preparation of the model, as its documentation advises."""
    from onnxruntime.quantization import shape_inference

    with tempfile.TemporaryDirectory() as folder:
        ready = Path(folder) / "ready.onnx"
        shape_inference.quant_pre_process(model, ready)
        make(ready)


def nncf_quantize(model: Path, out: Path, samples: Samples, transformer: bool, controlled: bool) -> None:
    """NNCF's quantize, or the one that puts layers back until the metric is within the budget."""
    import nncf
    import onnx

    calibration = nncf.Dataset(samples.feeds("calibration"))
    kind: Any = nncf.ModelType.TRANSFORMER if transformer else None
    source = onnx.load(model)
    if controlled:
        pairs = list(zip(samples.feeds("validation"), samples.labels, strict=True))
        found = nncf.quantize_with_accuracy_control(
            source, calibration, nncf.Dataset(pairs), _accuracy, max_drop=MAX_DROP, model_type=kind
        )
    else:
        found = nncf.quantize(source, calibration, model_type=kind)
    onnx.save(found, out)


def _accuracy(model: Any, pairs: Any) -> tuple[float, list[float]]:
    import onnxruntime as ort

    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    hits = [float(np.argmax(session.run(None, feeds)[0]) == label) for feeds, label in pairs]
    return sum(hits) / len(hits), hits


def olive(model: Path, out: Path, samples: Samples, search: bool) -> None:
    """Olive's pass for static quantization, or its search over static and dynamic ones for accuracy and latency."""
    from olive.data.registry import Registry
    from olive.workflows import run

    def loader(part: str, labels: Any) -> Any:
        return list(zip(samples.feeds(part), labels, strict=True))

    calibration = samples.feeds("calibration")
    Registry.register_dataloader("bench_calibration")(lambda _, **__: [(feeds, 0) for feeds in calibration])
    Registry.register_dataloader("bench_validation")(lambda _, **__: loader("validation", _tensors(samples.labels)))
    Registry.register_dataset("bench_nothing")(lambda **_: None)
    Registry.register_post_process("bench_classes")(lambda answers, **_: answers.argmax(1))
    with tempfile.TemporaryDirectory() as folder:
        best = run(_olive_config(model, folder, search)).get_best_candidate()
        if best is None:
            sys.exit("Olive found no model that meets the goal")
        shutil.copyfile(best.model_path, out)


def _tensors(labels: Any) -> Any:
    import torch

    return torch.from_numpy(labels).reshape(-1, 1)


def _olive_config(model: Path, folder: str, search: bool) -> dict[str, Any]:
    """A workflow as Olive's documentation has them."""
    data = [
        {
            "name": part,
            "load_dataset_config": {"type": "bench_nothing"},
            "pre_process_data_config": {"type": "skip_pre_process"},
            "post_process_data_config": {"type": "bench_classes"},
            "dataloader_config": {"type": f"bench_{part}"},
        }
        for part in ("calibration", "validation")
    ]
    config: dict[str, Any] = {
        "input_model": {"type": "ONNXModel", "model_path": str(model)},
        "data_configs": data[:1],
        "passes": {"quantize": {"type": "OnnxStaticQuantization", "data_config": "calibration"}},
        "output_dir": str(Path(folder, "out")),
        "cache_dir": str(Path(folder, "cache")),
        "log_severity_level": 4,
    }
    if search:
        config["data_configs"] = data
        config["passes"] = {"quantize": {"type": "OnnxQuantization", "data_config": "calibration"}}
        config["search_strategy"] = {"execution_order": "joint", "sampler": "tpe", "max_samples": 4, "seed": 0}
        goal = {"type": "max-degradation", "value": MAX_DROP}
        accuracy = {"name": "accuracy_score", "priority": 1, "goal": goal, "metric_config": _TASK}
        metrics = [
            {"name": "accuracy", "type": "accuracy", "data_config": "validation", "sub_types": [accuracy]},
            {
                "name": "latency",
                "type": "latency",
                "data_config": "validation",
                "sub_types": [{"name": "avg", "priority": 2, "goal": {"type": "percent-min-improvement", "value": 1}}],
            },
        ]
        config["evaluators"] = {"both": {"type": "OnnxEvaluator", "metrics": metrics}}
        config["evaluator"] = "both"
    return config


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("method", choices=[method for peer in PEERS for method in peer.methods])
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("samples", type=Path)
    parser.add_argument("--transformer", action="store_true", help="tell the tool so, where it asks")
    given = parser.parse_args()
    logging.disable(logging.WARNING)
    model, out, samples = given.model, given.out, Samples(given.samples)
    methods: dict[str, Callable[[], None]] = {
        "ort-static": lambda: ort_static(model, out, samples),
        "ort-dynamic": lambda: ort_dynamic(model, out),
        "ort-prepared-static": lambda: ort_prepared(model, lambda ready: ort_static(ready, out, samples)),
        "ort-prepared-dynamic": lambda: ort_prepared(model, lambda ready: ort_dynamic(ready, out)),
        "nncf": lambda: nncf_quantize(model, out, samples, given.transformer, controlled=False),
        "nncf-accuracy-control": lambda: nncf_quantize(model, out, samples, given.transformer, controlled=True),
        "olive-static": lambda: olive(model, out, samples, search=False),
        "olive-search": lambda: olive(model, out, samples, search=True),
    }
    methods[given.method]()


if __name__ == "__main__":
    main()
