"""Models that are tried and saved while their weights lie outside of them, as those of more than 2 GiB have to."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from nets import convolutional, run, samples
from onnx import numpy_helper
from onnx.external_data_helper import uses_external_data

from modelctl.artifact import Payload
from modelctl.formats import onnx as onnx_format
from modelctl.graph.session import Session


def kept_inline(folder: Path) -> Path:
    onnx.save(convolutional(), folder / "m.onnx")
    return folder / "m.onnx"


def kept_beside(folder: Path) -> Path:
    onnx.save(convolutional(), folder / "m.onnx", save_as_external_data=True, size_threshold=0, location="w.bin")
    return folder / "m.onnx"


@pytest.fixture(params=[kept_inline, kept_beside])
def payload(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Payload:
    """A net, its weights in the file or in another."""
    monkeypatch.setattr(onnx_format, "ALIGNMENT_BYTES", 64)
    keep: Callable[[Path], Path] = request.param
    return onnx_format.open_model(keep(tmp_path)).load()


def doubled(model: onnx.ModelProto, payload: Payload) -> onnx.ModelProto:
    """The model with the largest of its weights twice as large, within the model; what it was stays outside."""
    tensor = max(model.graph.initializer, key=lambda one: int(np.prod(one.dims)))
    assert uses_external_data(tensor)
    twice = onnx_format.array_of(tensor, payload.files) * 2
    tensor.CopyFrom(numpy_helper.from_array(twice, tensor.name))
    return model


@pytest.mark.parametrize("limit", [0, 1 << 30], ids=["too large to be one message", "small"])
def test_a_model_is_tried_and_saved_with_its_weights_where_they_lie(
    limit: int, payload: Payload, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_format, "INLINE_LIMIT_BYTES", limit)
    pictures, _ = samples(10)
    whole = doubled(onnx_format.outline(payload), payload)
    for tensor in whole.graph.initializer:
        if uses_external_data(tensor):
            onnx_format.take_in(tensor, payload.files)
    wanted = run(whole, pictures)
    assert not np.allclose(wanted, run(onnx_format.parse(payload), pictures))

    model = doubled(onnx_format.outline(payload), payload)
    before = model.SerializeToString(deterministic=True)
    tried = onnx_format.payload_of(model, payload)
    assert np.array_equal(Session(tried).run({"x": pictures})["logits"], wanted)
    assert model.SerializeToString(deterministic=True) == before
    folder = tmp_path / "out"
    folder.mkdir()
    onnx_format.save(model, folder / "m.onnx", files=payload.files)
    found = onnx_format.open_model(folder / "m.onnx").load()
    assert np.array_equal(Session(found).run({"x": pictures})["logits"], wanted)
    assert len(found.files) == (2 if limit == 0 else 1)
    other = tmp_path / "other"
    other.mkdir()
    onnx_format.save(whole, other / "m.onnx")
    assert {file.name: file.read_bytes() for file in other.iterdir()} == dict(found.files)


def test_a_model_can_be_saved_again_and_with_another_weight(payload: Payload, tmp_path: Path) -> None:
    model = onnx_format.outline(payload)
    outside = [tensor.name for tensor in model.graph.initializer if uses_external_data(tensor)]
    assert outside
    for name in ("a.onnx", "b.onnx"):
        onnx_format.save(model, tmp_path / name, files=payload.files)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    first = next(tensor for tensor in model.graph.initializer if tensor.name == outside[0])
    zeros = np.zeros(first.dims, np.float32)
    numbers = {outside[0]: lambda: zeros.reshape(-1).view(np.uint8).data}
    onnx_format.save(model, tmp_path / "c.onnx", numbers, payload.files)
    made = {one.name: numpy_helper.to_array(one) for one in onnx.load(tmp_path / "c.onnx").graph.initializer}
    assert not made[outside[0]].any()
    assert all(made[name].any() for name in outside[1:])


def test_a_payload_in_memory_holds_a_model_of_any_size(payload: Payload, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_format, "INLINE_LIMIT_BYTES", 100)
    model, (pictures, _) = onnx_format.parse(payload), samples(10)
    made = onnx_format.payload_of(model, payload)
    assert set(made.files) == {"m.onnx", "m.onnx.data"}
    assert np.array_equal(Session(made).run({"x": pictures})["logits"], run(model, pictures))
