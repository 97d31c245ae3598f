from pathlib import Path
from typing import Any

import nets
import numpy as np
import pytest
from artifacts import names

from modelctl.artifact import Artifact
from modelctl.errors import ArtifactError, CheckFailed, DataError, KeyFileError, UnsupportedError, UsageError
from modelctl.options import EncryptOptions, EvalOptions, Metric, PruneOptions, QuantizeOptions
from modelctl.steps.encrypt import encrypt
from modelctl.steps.eval import eval as evaluate
from modelctl.steps.prune import prune
from modelctl.steps.quantize import quantize


def asked(**options: Any) -> EvalOptions:
    return EvalOptions(threads=1, **options)


def test_a_model_by_itself(net: Artifact, data: str) -> None:
    found = evaluate(net, asked(data=data)).facts
    assert found["digest"] == net.digest
    assert found["accuracy"]["value"] > 0.8
    assert found["accuracy"]["samples"] == 100
    assert found["size_bytes"] == net.size_bytes
    assert found["latency"]["p50_ms"] <= found["latency"]["p99_ms"]
    assert "gates" not in found


def test_without_samples_there_are_size_and_latency(net: Artifact) -> None:
    found = evaluate(net, asked(batch=3)).facts
    assert "accuracy" not in found
    assert found["latency"]["batch"] == 3


def test_all_of_a_named_split_is_scored(net: Artifact, data: str) -> None:
    assert evaluate(net, asked(data=f"{data}#split=train,limit=300")).facts["accuracy"]["samples"] == 300


def test_beside_a_baseline(net: Artifact, data: str, tmp_path: Path) -> None:
    made = quantize(net, tmp_path / "q.onnx", QuantizeOptions(allow_regression=True))
    found = evaluate(made, asked(data=data, baseline=net.path, max_drop=20, max_size_mb=1, min_accuracy=0.5)).facts
    assert found["baseline"] == {"model": str(net.path), "digest": net.digest}
    assert found["agreement"] > 0.9
    assert found["size_ratio"] > 2
    assert all(gate["met"] for gate in found["gates"].values())
    assert set(found["gates"]) == {"max_drop", "max_size_mb", "min_accuracy"}


def test_each_gate_that_is_not_met_is_named_with_what_was_found(net: Artifact, data: str) -> None:
    options = asked(
        data=data, baseline=net.path, min_accuracy=1, max_latency_ms=0, max_size_mb=0, min_speedup=100, max_drop=0
    )
    with pytest.raises(CheckFailed) as caught:
        evaluate(net, options)
    for name in ("min_accuracy", "max_latency_ms", "max_size_mb", "min_speedup"):
        assert f"{name} wanted" in caught.value.message
    assert "max_drop" not in caught.value.message  # it lost nothing against itself
    assert caught.value.facts is not None
    assert caught.value.facts["gates"]["max_drop"]["met"]


def test_other_metrics(net: Artifact, data: str, tmp_path: Path) -> None:
    assert evaluate(net, asked(data=data, metric=Metric.F1)).facts["accuracy"]["metric"] == "f1"
    pictures, _ = nets.samples(60)
    targets = nets.run(nets.convolutional(), pictures) + 0.5
    regression = str(nets.save_npz(tmp_path / "targets.npz", x=pictures, y=targets))
    found = evaluate(net, asked(data=regression)).facts["accuracy"]
    assert (found["metric"], round(found["value"], 4)) == ("rmse", 0.5)
    with pytest.raises(UsageError, match="an rmse is none"):
        evaluate(net, asked(data=regression, min_accuracy=0.5))


def test_samples_without_labels_are_enough_beside_a_baseline_only(net: Artifact, tmp_path: Path) -> None:
    bare = str(nets.save_npz(tmp_path / "bare.npz", x=nets.samples(50)[0]))
    with pytest.raises(DataError, match="has no labels 'y'"):
        evaluate(net, asked(data=bare))
    assert evaluate(net, asked(data=bare, baseline=net.path)).facts["agreement"] == 1
    with pytest.raises(DataError, match="has no labels 'y'"):
        evaluate(net, asked(data=bare, baseline=net.path, max_drop=1))


def test_a_gate_needs_what_it_compares_with() -> None:
    for options, says in (
        ({"min_accuracy": 0.5}, "--min-accuracy needs samples"),
        ({"max_drop": 1, "data": "d.npz"}, "--max-drop needs a model to compare with"),
        ({"min_speedup": 1}, "--min-speedup needs a model"),
    ):
        with pytest.raises(UsageError, match=says):
            asked(**options)


def test_a_sealed_model_is_opened_in_memory_only(net: Artifact, data: str, tmp_path: Path, key_folder: Path) -> None:
    key = str(key_folder / "aes.key")
    plain = prune(net, tmp_path / "plain.onnx", PruneOptions(threads=1, sparsity=0.1))
    sealed = encrypt(plain, tmp_path / "net.sealed", EncryptOptions(key_file=key))
    before = names(tmp_path)
    found = evaluate(sealed, asked(data=data, key_file=key)).facts
    assert found["accuracy"] == evaluate(plain, asked(data=data)).facts["accuracy"]
    assert found["digest"] == plain.digest
    assert names(tmp_path) == before
    with pytest.raises(KeyFileError):
        evaluate(sealed, asked(data=data, key_file=str(key_folder / "aes2.key")))


def test_what_can_not_be_measured(net: Artifact, data: str, tmp_path: Path) -> None:
    (tmp_path / "empty.onnx").touch()
    with pytest.raises(ArtifactError, match=r"empty\.onnx: not an ONNX model: empty"):
        evaluate(Artifact.open(tmp_path / "empty.onnx"), asked())
    (tmp_path / "short.onnx").write_bytes(net.path.read_bytes()[:-100])
    with pytest.raises(ArtifactError, match=r"short\.onnx: not an ONNX model, or cut short"):
        evaluate(Artifact.open(tmp_path / "short.onnx"), asked())
    with pytest.raises(UnsupportedError, match="eval reads onnx, this is npz"):
        evaluate(Artifact.open(Path(data)), asked())
    wide = str(nets.save_npz(tmp_path / "wide.npz", x=np.ones((9, 1, 9, 9)), y=np.zeros(9, int)))
    with pytest.raises(DataError, match=r"expected float32\[N,1,8,8\], found float64\[N,1,9,9\]"):
        evaluate(net, asked(data=wide))
    many = str(nets.save_npz(tmp_path / "many.npz", x=nets.samples(9)[0], y=np.arange(9)))
    with pytest.raises(DataError, match="the model answers 4 classes"):
        evaluate(net, asked(data=many + "#split=train"))
