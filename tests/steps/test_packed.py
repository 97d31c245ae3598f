"""A file with packed weights is an ordinary artifact: every step takes it as it takes a dense one."""

from pathlib import Path

import nets
import numpy as np
import onnx
import onnxruntime as ort
import pytest
import servers
from onnx import numpy_helper

from modelctl.artifact import Artifact
from modelctl.cli.main import status_of
from modelctl.errors import ArtifactError, DataError
from modelctl.formats import onnx as onnx_format
from modelctl.formats import packing
from modelctl.graph import weights
from modelctl.graph.session import Session
from modelctl.graph.trainable import TrainableGraph
from modelctl.options import (
    DistillOptions,
    EvalOptions,
    ExportOptions,
    PruneMethod,
    PruneOptions,
    QuantizeOptions,
)
from modelctl.steps.distill import distill
from modelctl.steps.eval import eval as evaluate
from modelctl.steps.export import Source, export
from modelctl.steps.prune import prune
from modelctl.steps.quantize import quantize

PARAMETERS = 8 * 9 + 64 * 72 + 256 * 4 + 8 * 5 + 64 + 4


@pytest.fixture
def packed(net: Artifact, tmp_path: Path) -> Artifact:
    """The net with nine of ten weights zero, as `prune` writes it."""
    return prune(net, tmp_path / "packed.onnx", PruneOptions(sparsity=0.9, threads=1))


def dense(artifact: Artifact) -> onnx.ModelProto:
    """What is in a file, with its weights unpacked."""
    return onnx_format.parse(artifact.load())


def is_packed(artifact: Artifact) -> bool:
    return packing.is_packed(onnx.load(artifact.path))


def optimized(path: Path, folder: Path) -> list[str]:
    """The operators that are left when onnxruntime has loaded a model."""
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    ort.InferenceSession(str(path), options)
    return [node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node]


def test_it_is_smaller_and_loaded_as_the_dense_one(net: Artifact, packed: Artifact, tmp_path: Path) -> None:
    flat = prune(net, tmp_path / "dense.onnx", PruneOptions(sparsity=0.9, threads=1, densify=True))
    assert (is_packed(packed), is_packed(flat)) == (True, False)
    assert packed.size_bytes < 0.25 * flat.size_bytes
    assert packed.manifest.metrics["size_ratio"] > 4
    assert onnx.load(flat.path) == dense(packed)
    assert optimized(packed.path, tmp_path) == optimized(flat.path, tmp_path)
    pictures = nets.samples(20)[0]
    assert np.array_equal(nets.run(onnx.load(packed.path), pictures), nets.run(onnx.load(flat.path), pictures))


def test_its_zeros_and_parameters_are_told(packed: Artifact, data: str) -> None:
    facts = evaluate(packed, EvalOptions(data=data, threads=1)).facts
    assert facts["parameters"] == PARAMETERS
    assert facts["sparsity"] == pytest.approx(0.9, abs=1e-3)
    assert packed.manifest.metrics["parameters"] == PARAMETERS
    assert "value" in facts["accuracy"]


def test_it_is_told_on_the_command_line(packed: Artifact, capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of(["inspect", str(packed.path), "--json"]) == 0
    assert f'"parameters": {PARAMETERS}' in capsys.readouterr().out


def test_it_can_be_pruned_further(packed: Artifact, tmp_path: Path) -> None:
    again = prune(packed, tmp_path / "again.onnx", PruneOptions(sparsity=0.95, threads=1))
    assert is_packed(again)
    assert again.size_bytes < packed.size_bytes
    assert weights.count(dense(again)).sparsity == pytest.approx(0.95, abs=1e-3)
    scaled = prune(
        packed, tmp_path / "l1.onnx", PruneOptions(method=PruneMethod.L1_SCALE, threads=1, allow_regression=True)
    )
    assert is_packed(scaled)


def test_what_learned_on_is_packed_as_small(net: Artifact, packed: Artifact, data: str, tmp_path: Path) -> None:
    options = PruneOptions(sparsity=0.9, epochs=1, data=data, threads=1)
    healed = prune(net, tmp_path / "healed.onnx", options)
    assert healed.size_bytes <= packed.size_bytes


def test_it_can_be_quantized_and_stays_packed(packed: Artifact, data: str, tmp_path: Path) -> None:
    for method in ("static", "weight-only"):
        options = QuantizeOptions.parse({"method": method, "data": data, "threads": 1, "allow_regression": True})
        made = quantize(packed, tmp_path / f"{method}.onnx", options)
        assert is_packed(made)
        assert weights.is_quantized(dense(made))
        flat = nets.save(dense(made), tmp_path / "flat.onnx")
        assert made.size_bytes < flat.stat().st_size - 2000
        pictures = nets.samples(20)[0]
        assert np.array_equal(nets.run(onnx.load(made.path), pictures), nets.run(onnx.load(flat), pictures))
        assert optimized(made.path, tmp_path) == optimized(flat, tmp_path)


def test_it_can_teach(packed: Artifact, data: str, tmp_path: Path) -> None:
    options = DistillOptions(student_size=300, data=data, epochs=1, threads=1, allow_regression=True)
    made = distill(packed, tmp_path / "student.onnx", options)
    assert made.manifest.metrics["parameters_before"] == PARAMETERS


def test_it_can_be_exported_again_and_stays_packed(net: Artifact, tmp_path: Path) -> None:
    packed = prune(net, tmp_path / "packed.onnx", PruneOptions(sparsity=0.6, threads=1))
    made = export(Source.parse(str(packed.path)), tmp_path / "again.onnx", ExportOptions(opset=18, threads=1))
    assert is_packed(made)
    assert dense(made).opset_import[0].version == 18


def test_it_can_be_trained(packed: Artifact) -> None:
    graph = TrainableGraph(dense(packed))
    assert {"w1", "w2", "w3"} <= set(graph.parameter_names.values())
    assert {one.name for one in graph.to_onnx().graph.initializer} >= {"w1", "w2", "w3"}


def test_it_is_served_as_it_is(packed: Artifact) -> None:
    pictures = nets.samples(3)[0]
    with servers.running([packed.path]) as server:
        found = server.ask("/predict/packed", {"inputs": {"x": pictures.tolist()}})
    assert found.status == 200
    wanted = nets.run(dense(packed), pictures)
    assert np.allclose(found.json["outputs"]["logits"], wanted, atol=1e-6)


def test_weights_beside_the_file_are_packed_too(
    packed: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_format, "INLINE_LIMIT_BYTES", 1000)
    monkeypatch.setattr(onnx_format, "ALIGNMENT_BYTES", 64)
    onnx_format.save(onnx.load(packed.path), tmp_path / "large.onnx")
    assert (tmp_path / "large.onnx.data").exists()
    large = onnx_format.open_model(tmp_path / "large.onnx")
    for one, other in zip(dense(large).graph.initializer, dense(packed).graph.initializer, strict=True):
        assert np.array_equal(numpy_helper.to_array(one), numpy_helper.to_array(other))


def test_a_malformed_one_is_refused_by_every_step(packed: Artifact, tmp_path: Path) -> None:
    model = onnx.load(packed.path)
    gaps = next(one for one in model.graph.initializer if one.name.endswith(".gaps"))
    wide = np.full_like(numpy_helper.to_array(gaps), 255)
    gaps.CopyFrom(numpy_helper.from_array(wide, gaps.name))
    bad = Artifact.open(nets.save(model, tmp_path / "bad.onnx"))
    out = tmp_path / "out.onnx"
    for work in (
        lambda: prune(bad, out, PruneOptions(sparsity=0.5)),
        lambda: quantize(bad, out, QuantizeOptions()),
        lambda: evaluate(bad, EvalOptions()),
        lambda: export(Source.parse(str(bad.path)), out, ExportOptions()),
    ):
        with pytest.raises(ArtifactError, match=r"bad\.onnx: its packed weight 'w.' is malformed"):
            work()
    with pytest.raises(DataError, match=r"bad\.onnx: .*out of data bounds"):
        Session(bad.load()).run({"x": nets.samples(1)[0]})
    assert not out.exists()
