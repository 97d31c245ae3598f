"""A model of more than 2 GiB, which no protobuf message holds: opened, run, calibrated, changed and saved."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import nets
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from modelctl.artifact import Artifact
from modelctl.data.samples import Array, Samples
from modelctl.formats import onnx as onnx_format
from modelctl.graph import watching, weights
from modelctl.graph.calibration import Calibrator, activations
from modelctl.graph.session import Session
from modelctl.making import Origin, create
from modelctl.options import QuantizeOptions

WIDTH, LAYERS = 8192, 9  # 256 MiB each
NEEDED = 12 << 30


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Where gigabytes are written, which do not stay."""
    if shutil.disk_usage(tmp_path).free < NEEDED:
        pytest.skip(f"needs {NEEDED >> 30} GiB of disk")
    yield tmp_path
    shutil.rmtree(tmp_path)


def chain(path: Path) -> Path:
    """x → MatMul → … → y, layer k a diagonal of k + 1, its file mostly holes."""
    size = 4 * WIDTH * WIDTH
    data = np.memmap(path.with_name("w.bin"), np.float32, "w+", shape=(LAYERS, WIDTH, WIDTH))
    for place in range(LAYERS):
        np.fill_diagonal(data[place], place + 1)
    data.flush()
    names = ["x", *(f"v{place}" for place in range(LAYERS - 1)), "y"]
    made = onnx.ModelProto(ir_version=9, opset_import=[helper.make_opsetid("", 20)])
    made.graph.name = "chain"
    made.graph.input.append(helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", WIDTH]))
    made.graph.output.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", WIDTH]))
    for place in range(LAYERS):
        made.graph.node.append(helper.make_node("MatMul", [names[place], f"w{place}"], [names[place + 1]], f"m{place}"))
        kept = made.graph.initializer.add(name=f"w{place}", data_type=TensorProto.FLOAT, dims=[WIDTH, WIDTH])
        kept.data_location = TensorProto.EXTERNAL
        for key, value in (("location", "w.bin"), ("offset", place * size), ("length", size)):
            kept.external_data.add(key=key, value=str(value))
    path.write_bytes(made.SerializeToString())
    return path


def ranges(artifact: Artifact, folder: Path) -> dict[str, float]:
    """The largest of each activation, for an input of ones."""
    payload = artifact.load()
    model = onnx_format.outline(payload)
    made = Calibrator(model, "m", activations(model, ["MatMul"]), folder, files=payload.files)
    made.watch([Samples({"x": np.ones((2, WIDTH), np.float32)})])
    return {value: found.high for value, found in made.histograms.items()}


def products(last: float = 1) -> list[float]:
    found: Array = np.cumprod([1.0, *range(1, LAYERS + 1)])
    return [*found[:-1], last * found[-1]]


@pytest.mark.slow
def test_more_than_two_gibibytes_are_opened_calibrated_changed_and_saved(folder: Path) -> None:
    source = onnx_format.open_model(chain(folder / "m.onnx"))
    assert source.size_bytes > 2 << 30
    assert list(ranges(source, folder).values()) == products()

    payload = source.load()
    model = onnx_format.outline(payload)
    assert not weights.is_quantized(model)
    assert len(weights.prunable(model)) == LAYERS
    counted = weights.count(model, payload.files)
    assert counted.parameters == LAYERS * WIDTH * WIDTH
    assert counted.sparsity == pytest.approx(1 - 1 / WIDTH)
    last = model.graph.initializer[LAYERS - 1]
    last.CopyFrom(numpy_helper.from_array(onnx_format.array_of(last, payload.files) * 2, last.name))
    assert np.allclose(Session(onnx_format.payload_of(model, payload)).run(
        {"x": np.ones((1, WIDTH), np.float32)})["y"], products(2)[-1])  # fmt: skip
    with create(folder / "out.onnx", Origin("quantize", QuantizeOptions(), (source,))) as draft:
        onnx_format.save(model, draft.path, files=payload.files)
    del payload, model
    made = Artifact.open(folder / "out.onnx")
    assert [entry.path for entry in made.manifest.files] == ["out.onnx", "out.onnx.data"]
    assert list(ranges(made, folder).values()) == products(2)


@pytest.mark.slow
def test_more_than_two_gibibytes_within_a_model_are_tried_and_saved(folder: Path) -> None:
    source = onnx_format.open_model(chain(folder / "m.onnx"))
    model = onnx_format.parse(source.load())
    payload = onnx_format.payload_of(model, onnx_format.undescribed({"m.onnx": b""}))
    assert sum(map(len, payload.files.values())) > 2 << 30
    del payload
    onnx_format.save(model, folder / "out.onnx")
    del model
    assert list(ranges(onnx_format.open_model(folder / "out.onnx"), folder).values()) == products()


def test_values_are_watched_in_a_model_whose_weights_lie_outside(tmp_path: Path) -> None:
    onnx.save(nets.convolutional(), tmp_path / "m.onnx", save_as_external_data=True, size_threshold=0, location="w.bin")
    payload, (pictures, _) = onnx_format.open_model(tmp_path / "m.onnx").load(), nets.samples(10)
    outline, whole = onnx_format.outline(payload), onnx_format.parse(payload)
    value = whole.graph.node[-1].input[0]
    found, wanted = (watching.moments(model, payload, [value], [{"x": pictures}])[value] for model in (outline, whole))
    assert wanted.any()
    assert np.array_equal(found, wanted)


def test_weights_outside_of_a_model_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_format, "ALIGNMENT_BYTES", 64)
    payload = onnx_format.open_model(nets.save(nets.convolutional(), tmp_path / "m.onnx")).load()
    outline = onnx_format.outline(payload)
    assert any(tensor.data_location == TensorProto.EXTERNAL for tensor in outline.graph.initializer)
    assert weights.count(outline, payload.files) == weights.count(onnx_format.parse(payload))
