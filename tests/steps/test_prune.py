from pathlib import Path
from typing import Any

import nets
import numpy as np
import onnx
import pytest
from artifacts import names
from onnx import numpy_helper

from modelctl.artifact import Artifact
from modelctl.errors import ArtifactError, CheckFailed, UnsupportedError, UsageError
from modelctl.options import PruneOptions, QuantizeOptions, Scope
from modelctl.steps.prune import prune
from modelctl.steps.quantize import quantize

WEIGHTS = 8 * 9 + 64 * 72 + 256 * 4


def asked(**options: Any) -> PruneOptions:
    return PruneOptions(threads=1, **options)


class Listener:
    def __init__(self) -> None:
        self.told: list[str] = []

    def advance(self, what: str, done: int, total: int | None = None, unit: str = "") -> None:
        pass

    def note(self, text: str) -> None:
        self.told.append(text)


def test_half_of_the_weights(net: Artifact, tmp_path: Path) -> None:
    listener = Listener()
    data = str(nets.save_npz(tmp_path / "samples.npz"))
    made = prune(net, tmp_path / "p.onnx", asked(sparsity=0.5, data=data, max_drop=50), listener)
    found = made.manifest.metrics
    assert (found["pruned"]["weights"], found["pruned"]["kept"], found["sparsity"]) == (WEIGHTS, WEIGHTS / 2, 0.5)
    assert {"accuracy", "accuracy_before", "drop_pp"} <= set(found)
    assert found["size_ratio"] == 1
    assert any(f"{WEIGHTS // 2} of {WEIGHTS} weights are zero now" in one for one in listener.told)
    before, after = (
        {one.name: numpy_helper.to_array(one) for one in onnx.load(one.path).graph.initializer} for one in (net, made)
    )
    for name, array in after.items():
        assert np.all((array == before[name]) | (array == 0))
        assert array.ndim >= 2 or np.array_equal(array, before[name])


def test_in_each_layer(net: Artifact, tmp_path: Path) -> None:
    made = prune(net, tmp_path / "p.onnx", asked(keep=10, scope=Scope.LAYER))
    assert made.manifest.metrics["pruned"]["kept"] == 30


def test_the_same_again_gives_the_same_bytes(net: Artifact, tmp_path: Path) -> None:
    options = asked(threshold=0.1)
    assert prune(net, tmp_path / "a.onnx", options).digest == prune(net, tmp_path / "b.onnx", options).digest


def test_nothing_to_zero_changes_nothing(net: Artifact, tmp_path: Path) -> None:
    assert prune(net, tmp_path / "p.onnx", asked(sparsity=0)).digest == net.digest


def test_too_large_a_loss_is_not_written(net: Artifact, tmp_path: Path) -> None:
    data = str(nets.save_npz(tmp_path / "samples.npz"))
    before = names(tmp_path)
    with pytest.raises(CheckFailed, match=r"p\.onnx: not accepted: the result loses"):
        prune(net, tmp_path / "p.onnx", asked(keep=0, data=data, max_drop=1))
    assert names(tmp_path) == before


def test_exactly_one_way_is_named() -> None:
    for options in ({}, {"sparsity": 0.5, "keep": 3}):
        with pytest.raises(UsageError, match="exactly one"):
            PruneOptions.parse(options)


def test_what_can_not_be_pruned(net: Artifact, tmp_path: Path) -> None:
    quantized = quantize(net, tmp_path / "q.onnx", QuantizeOptions(allow_regression=True))
    small = prune(quantized, tmp_path / "p.onnx", asked(sparsity=0.5))  # the first convolution is still in float
    assert small.manifest.metrics["pruned"]["weights"] == 72
    weightless = nets.model_of([onnx.helper.make_node("Relu", ["x"], ["logits"])], {}, ["n", 2], ["n", 2])
    relu = Artifact.open(nets.save(weightless, tmp_path / "relu.onnx"))
    with pytest.raises(UnsupportedError, match="has no float weights of rank 2 or more: nothing to prune"):
        prune(relu, tmp_path / "none.onnx", asked(sparsity=0.5))
    model = nets.linear()
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.full((4, 64), np.nan, np.float32), "w"))
    broken = Artifact.open(nets.save(model, tmp_path / "nan.onnx"))
    with pytest.raises(ArtifactError, match="weight 'w' holds NaN"):
        prune(broken, tmp_path / "none.onnx", asked(sparsity=0.5))
    assert not (tmp_path / "none.onnx").exists()
