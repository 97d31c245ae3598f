from pathlib import Path
from typing import Any

import nets
import numpy as np
import onnx
import pytest
from artifacts import names
from listening import Listener
from onnx import numpy_helper

from modelctl.artifact import Artifact
from modelctl.errors import ArtifactError, CheckFailed, UnsupportedError, UsageError
from modelctl.formats import onnx as onnx_format
from modelctl.options import PruneMethod, PruneOptions, PruneSchedule, QuantizeOptions, Scope
from modelctl.steps.prune import prune
from modelctl.steps.quantize import quantize

WEIGHTS = 8 * 9 + 64 * 72 + 256 * 4


def asked(**options: Any) -> PruneOptions:
    return PruneOptions(threads=1, **options)


def test_half_of_the_weights(net: Artifact, tmp_path: Path) -> None:
    listener = Listener()
    data = str(nets.save_npz(tmp_path / "samples.npz"))
    made = prune(net, tmp_path / "p.onnx", asked(sparsity=0.5, data=data, max_drop=50), listener)
    found = made.manifest.metrics
    assert (found["pruned"]["weights"], found["pruned"]["kept"], found["sparsity"]) == (WEIGHTS, WEIGHTS / 2, 0.5)
    assert {"accuracy", "accuracy_before", "drop_pp"} <= set(found)
    assert found["size_ratio"] > 1.4
    assert any(f"{WEIGHTS // 2} of {WEIGHTS} weights are zero now; packed" in one for one in listener.told)
    before, after = (
        {one.name: numpy_helper.to_array(one) for one in onnx_format.parse(one.load()).graph.initializer}
        for one in (net, made)
    )
    for name, array in after.items():
        assert np.all((array == before[name]) | (array == 0))
        assert array.ndim >= 2 or np.array_equal(array, before[name])


def test_zeros_may_be_stored_as_they_are(net: Artifact, tmp_path: Path) -> None:
    listener = Listener()
    made = prune(net, tmp_path / "p.onnx", asked(sparsity=0.9, densify=True), listener)
    assert made.manifest.metrics["size_ratio"] == 1
    assert "a plain file is no smaller for it" in listener.told[-1]
    packed = prune(net, tmp_path / "packed.onnx", asked(sparsity=0.9))
    assert packed.manifest.metrics["size_ratio"] > 3.5
    assert packed.manifest.metrics["parameters"] == made.manifest.metrics["parameters"]
    assert packed.manifest.metrics["sparsity"] == made.manifest.metrics["sparsity"] > 0.89


def test_two_of_four_neighbours(net: Artifact, tmp_path: Path) -> None:
    made = prune(net, tmp_path / "p.onnx", asked(pattern="2:4"))
    kernel = next(one for one in onnx_format.parse(made.load()).graph.initializer if one.name == "w2")
    values = numpy_helper.to_array(kernel).transpose(0, 2, 3, 1).reshape(-1, 4)
    assert np.all(np.count_nonzero(values, axis=1) == 2)


@pytest.mark.parametrize("schedule", PruneSchedule)
def test_what_learns_on_keeps_its_zeros(net: Artifact, tmp_path: Path, schedule: PruneSchedule) -> None:
    data = str(nets.save_npz(tmp_path / "samples.npz"))
    amount: dict[str, Any] = {"sparsity": 0.9, "scope": Scope.LAYER, "data": data}
    options = asked(**amount, schedule=schedule, rounds=2, epochs=4, alpha=0.5, batch_size=64)
    bare = prune(net, tmp_path / "bare.onnx", asked(**amount))
    made = prune(net, tmp_path / "p.onnx", options)
    found = made.manifest.metrics
    assert found["sparsity"] == pytest.approx(0.9, abs=1e-3)
    assert found["accuracy"]["value"] > bare.manifest.metrics["accuracy"]["value"]
    assert len(found["pruned"]["loss"]) == (2 if schedule is PruneSchedule.ITERATIVE else 1)
    assert prune(net, tmp_path / "again.onnx", options).digest == made.digest
    assert {one.op_type for one in onnx_format.parse(made.load()).graph.node} == {
        one.op_type for one in onnx_format.parse(net.load()).graph.node
    }


def test_weights_of_absolute_sum_one(net: Artifact, tmp_path: Path) -> None:
    data = str(nets.save_npz(tmp_path / "samples.npz"))
    options = asked(method=PruneMethod.L1_SCALE, data=data, max_drop=0)
    made = prune(net, tmp_path / "p.onnx", options)
    assert made.manifest.metrics["relative_error"] < 1e-5
    assert len(made.manifest.metrics["pruned"]["scaled"]) == 3
    for one in onnx_format.parse(made.load()).graph.initializer:
        if one.name in ("w1", "w2", "w3"):
            assert np.abs(numpy_helper.to_array(one)).sum() == pytest.approx(1, rel=1e-4)


def test_in_each_layer(net: Artifact, tmp_path: Path) -> None:
    made = prune(net, tmp_path / "p.onnx", asked(keep=10, scope=Scope.LAYER))
    assert made.manifest.metrics["pruned"]["kept"] == 30


def test_the_same_again_gives_the_same_bytes(net: Artifact, tmp_path: Path) -> None:
    options = asked(threshold=0.1)
    assert prune(net, tmp_path / "a.onnx", options).digest == prune(net, tmp_path / "b.onnx", options).digest


def test_nothing_to_zero_changes_nothing(net: Artifact, tmp_path: Path) -> None:
    assert prune(net, tmp_path / "p.onnx", asked(sparsity=0)).digest == net.digest


def test_a_layer_that_is_emptied_is_named(net: Artifact, tmp_path: Path) -> None:
    listener = Listener()
    prune(net, tmp_path / "p.onnx", asked(sparsity=0.9), listener)
    assert "w3: none of its weights is left; --scope layer ranks each layer by itself" in listener.told


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
