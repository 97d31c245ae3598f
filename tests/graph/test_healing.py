"""How far a pruned model is from its teacher, and what brings it back."""

from pathlib import Path
from typing import Any

import nets
import numpy as np
import pytest
from onnx import numpy_helper

from modelctl.artifact import Artifact
from modelctl.data import open_data
from modelctl.errors import DataError
from modelctl.graph import healing, training
from modelctl.graph.session import Session
from modelctl.options import PruneOptions
from modelctl.progress import silent


def healer(tmp_path: Path, **options: Any) -> healing.Healer:
    model = Artifact.open(nets.save(nets.convolutional(), tmp_path / "net.onnx"))
    data = options.pop("data", None) or str(nets.save_npz(tmp_path / "samples.npz"))
    asked = PruneOptions(target="macs=0.5", data=data, batch_size=64, **options)
    session = Session(model.load())
    return healing.Healer(session, open_data(data, session.inputs, 0), asked, silent)


def damaged() -> Any:
    """The net, a third of its second convolution's channels zero."""
    model = nets.convolutional()
    for tensor in model.graph.initializer:
        if tensor.name == "w2":
            values = numpy_helper.to_array(tensor).copy()
            values[::3] = 0
            tensor.CopyFrom(numpy_helper.from_array(values, "w2"))
    return model


def test_harm_is_none_for_the_teacher_itself(tmp_path: Path) -> None:
    one = healer(tmp_path)
    whole, broken = one.harm(nets.convolutional()), one.harm(damaged())
    assert 0 <= whole < 0.05  # running statistics are taken anew, from the batches
    assert broken > 2 * whole


def test_healing_brings_it_back_and_holds_the_masks(tmp_path: Path) -> None:
    one = healer(tmp_path, alpha=0.5, lr=0.05)
    model = damaged()
    kept = numpy_helper.to_array(next(t for t in model.graph.initializer if t.name == "w2")) != 0
    with training.reproducible(0, 1):
        healed, loss = one.heal(model, 3, {"w2": kept})
    assert np.isfinite(loss)
    assert one.harm(healed) < one.harm(model)
    values = numpy_helper.to_array(next(t for t in healed.graph.initializer if t.name == "w2"))
    assert np.all(values[~kept] == 0)
    assert not np.signbit(values[~kept]).any()


def test_gradients_and_activations_are_told_by_weight(tmp_path: Path) -> None:
    one = healer(tmp_path)
    model = nets.convolutional()
    gradients = one.gradients(model)
    assert len(gradients) == healing.RECALIBRATED_ON
    assert {"w1", "w2", "w3"} <= set(gradients[0])
    assert {name: seen.shape for name, seen in one.activations(model).items()} == {"w1": (1,), "w2": (8,), "w3": (256,)}


def test_without_classes_the_answers_are_learned(tmp_path: Path) -> None:
    pictures, labels = nets.samples(400)
    nets.save_npz(tmp_path / "none.npz", x=pictures)
    nets.save_npz(tmp_path / "floats.npz", x=pictures, y=np.eye(4)[labels])
    for name in ("none.npz", "floats.npz"):
        one = healer(tmp_path, data=str(tmp_path / name), lr=0.01)
        model = damaged()
        with training.reproducible(0, 1):
            healed, _ = one.heal(model, 4)
        assert one.harm(healed) < one.harm(model)
        assert one.gradients(model)


def test_labels_that_the_model_does_not_tell_are_refused(tmp_path: Path) -> None:
    pictures, labels = nets.samples(100)
    with pytest.raises(DataError, match="labels run from 0 to 7"):
        healer(tmp_path, data=str(nets.save_npz(tmp_path / "odd.npz", x=pictures, y=labels + (labels == 3) * 4)))
