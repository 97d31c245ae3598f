from pathlib import Path

import nets
import prunable
import pytest

from modelctl.data.samples import Samples
from modelctl.graph.prepare import prepare
from modelctl.graph.quantizing import profile
from modelctl.graph.quantizing.recipe import CHAINS, Recipe
from modelctl.graph.quantizing.workshop import Workshop
from modelctl.graph.session import Session
from modelctl.options import Method, QuantizeOptions


def test_a_fused_node_is_told_of_the_product_in_it(tmp_path: Path) -> None:
    """onnxruntime fuses Conv, BatchNormalization and Relu, and names the result after what the Relu gives."""
    model = prepare(nets.convolutional(), "net")
    found = profile.times(model, {"x": nets.samples(1)[0]}, model)
    assert {"conv1", "conv2", "dense"} <= set(found)
    assert not {"relu1", "relu2", "norm1"} & set(found)
    assert all(micros >= 0 for micros in found.values())


def test_a_quantized_graph_is_told_by_the_names_of_the_float_one(tmp_path: Path) -> None:
    model = nets.convolutional()
    payload = prunable.payload(model)
    options = QuantizeOptions(data="d.npz", threads=1)
    pictures = nets.samples(64)[0]
    workshop = Workshop(model, payload, Session(payload), Samples({"x": pictures}), tmp_path, options)
    made, _ = workshop.make(Recipe(method=Method.STATIC, types=CHAINS))
    found = profile.times(made, {"x": pictures[:1]}, workshop.ready)
    assert {"conv1", "conv2", "dense"} <= set(found)
    assert found[""] > 0  # quantizing the input is no one's work


def test_nothing_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = nets.linear()
    profile.times(model, {"x": nets.samples(1)[0]}, model)
    assert list(tmp_path.iterdir()) == []
