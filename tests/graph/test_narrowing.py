"""What is taken out of a graph, and the width at whose multiples that pays."""

from pathlib import Path

import nets
import numpy as np
import onnx
import pytest

from modelctl.artifact import Artifact, Payload
from modelctl.data.samples import Array
from modelctl.errors import CheckFailed
from modelctl.formats import onnx as onnx_format
from modelctl.graph import alignment, narrowing
from modelctl.graph.channels.groups import Channels
from modelctl.progress import silent


@pytest.fixture
def payload(tmp_path: Path) -> Payload:
    return Artifact.open(nets.save(nets.convolutional(), tmp_path / "net.onnx")).load()


def by_number(channels: Channels) -> dict[str, Array]:
    """The later units count more."""
    return {one.name: np.arange(one.size, dtype=np.float64) for one in channels.groups}


def search(payload: Payload) -> narrowing.Search:
    model = onnx_format.parse(payload)
    whole = {one.name: list(one.dims) for one in model.graph.initializer}

    def harm(made: onnx.ModelProto) -> float:
        """What the first convolution loses costs a thousand times what the second does."""
        left = {one.name: list(one.dims) for one in made.graph.initializer}
        return float(1000 * (whole["w1"][0] - left["w1"][0]) + whole["w2"][0] - left["w2"][0])

    feeds = {"x": np.zeros((1, 1, 8, 8), np.float32)}
    return narrowing.Search(model, payload, harm=harm, ranks=by_number, feeds=feeds, threads=1, progress=silent)


def test_what_harms_least_for_what_it_saves_goes_first(payload: Payload) -> None:
    found = search(payload).reach(narrowing.Goal(shares={"params": 0.8}, block=4), {})
    assert set(found.keep) == {"conv2"}
    kept = found.keep["conv2"]
    assert len(kept) % 4 == 0
    assert list(kept) == list(range(64 - len(kept), 64))
    assert found.left["params"] <= 0.8
    assert found.told()["widths"] == {"conv2": len(kept)}


def test_a_goal_is_meant_of_the_model_that_a_first_round_began_with(payload: Payload) -> None:
    found = search(payload).reach(narrowing.Goal(shares={"params": 0.5}, block=4), {"params": 0.5})
    assert found.keep == {}


def test_several_goals_are_all_met(payload: Payload) -> None:
    found = search(payload).reach(narrowing.Goal(shares={"params": 0.8, "macs": 0.6}, block=4), {})
    assert found.left["params"] <= 0.8
    assert found.left["macs"] <= 0.6


def test_what_goes_beyond_the_goal_saves_nothing() -> None:
    goal = narrowing.Goal(shares={"params": 0.45, "macs": 0.5}, block=16)

    def costing(params: float, macs: float) -> narrowing.Narrowed:
        return narrowing.Narrowed(onnx.ModelProto(), {}, {"params": params, "macs": macs, "latency": 0.5}, 0.0)

    now = costing(0.47, 0.4)
    assert narrowing._needed(now, costing(0.46, 0.4), goal) == 1
    assert narrowing._needed(now, costing(0.27, 0.3), goal) == pytest.approx(0.1)
    assert narrowing._needed(costing(0.47, 0.9), costing(0.27, 0.8), goal) == 1


def test_nothing_is_narrower_than_a_block(payload: Payload) -> None:
    with pytest.raises(CheckFailed, match=r"params can't be brought to 0\.1") as caught:
        search(payload).reach(narrowing.Goal(shares={"params": 0.1}, block=32), {})
    assert caught.value.facts is not None
    assert caught.value.facts["left"]["params"] < 1


def test_the_same_share_of_all(payload: Payload) -> None:
    found = search(payload).reach(narrowing.Goal(shares={"params": 0.3}, block=2, alike=True), {})
    widths = {name: len(kept) for name, kept in found.keep.items()}
    assert widths["conv1"] / 8 == pytest.approx(widths["conv2"] / 64, abs=0.13)
    assert "latency" not in found.left


def test_the_block_that_pays_is_one_of_those_that_are_tried() -> None:
    assert alignment.measured_block() in alignment.BLOCKS
