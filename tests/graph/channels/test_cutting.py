"""A cut graph computes what the whole one does when the units that went are zero in it."""

import numpy as np
import onnx
import onnxruntime as ort
import prunable
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from modelctl.graph.channels.costs import macs, parameters
from modelctl.graph.channels.cutting import aligned, cut
from modelctl.graph.channels.groups import Channels, Group, find

# Translating a program takes a second or two, tracing a script a tenth of it: most nets are translated in CI only.
NEW = ("residual", "vit", "bert", "rotary")
CASES = [
    *(pytest.param((name, True), id=f"{name}-old") for name in prunable.NETS if name != "rotary"),  # knows no RMS norm
    *(pytest.param((name, False), id=f"{name}-new") for name in NEW),
    *(
        pytest.param((name, False), id=f"{name}-new", marks=pytest.mark.slow)
        for name in prunable.NETS
        if name not in NEW
    ),
]


@pytest.fixture(scope="module", params=CASES)
def channels(request: pytest.FixtureRequest) -> Channels:
    return find(prunable.exported(*request.param))


def run(model: onnx.ModelProto, seed: int = 0) -> NDArray[np.float32]:
    """What a model answers to two random samples."""
    onnx.checker.check_model(model, full_check=True)
    session = ort.InferenceSession(model.SerializeToString())
    (given,) = session.get_inputs()
    shape = [size if isinstance(size, int) else {"batch": 2}.get(size, 7) for size in given.shape]
    random = np.random.default_rng(seed)
    x = random.integers(0, 20, shape) if "int64" in given.type else random.random(shape, np.float32)
    return np.asarray(session.run(None, {given.name: x})[0])


def some(group: Group, seed: int = 0) -> NDArray[np.int64]:
    """Some of a group's units, at least one and not all."""
    random = np.random.default_rng(seed + group.size)
    count = int(random.integers(1, group.size))
    return np.sort(random.choice(group.size, count, replace=False))


def silenced(model: onnx.ModelProto, keep: dict[str, NDArray[np.int64]], groups: list[Group]) -> onnx.ModelProto:
    """A copy in which all that makes the units that go is zero."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    held = {tensor.name: tensor for tensor in made.graph.initializer}
    for group in groups:
        for member in group.members:
            # A query that is zero attends to everything alike: what makes a head nothing is that nobody takes it up.
            if member.side not in ("out", "along", "in" if group.kind == "heads" else "out"):
                continue
            array = numpy_helper.to_array(held[member.tensor]).copy()
            gone = (member.units >= 0) & ~np.isin(member.units, keep[group.name])
            array[(slice(None),) * member.axis + (gone,)] = 0
            held[member.tensor].CopyFrom(numpy_helper.from_array(array, member.tensor))
    return made


def test_removing_units_is_the_same_as_making_them_zero(channels: Channels) -> None:
    for seed in range(2):
        exact = [group for group in channels.groups if not group.statistics]
        keep = {group.name: some(group, seed) for group in exact}
        assert keep
        expected = run(silenced(channels.model, keep, exact), seed)
        np.testing.assert_allclose(run(cut(channels, keep), seed), expected, rtol=1e-4, atol=1e-5)


def test_each_group_alone_can_be_cut_and_costs_less(channels: Channels) -> None:
    whole, size = macs(channels.model), parameters(channels.model)
    for group in channels.groups:
        made = cut(channels, {group.name: range(max(1, group.size // 2))})
        assert macs(made) < whole
        assert parameters(made) < size
        if group.size > 3:  # a single unit is no group any more, and its name may be another's
            assert find(made).group(group.name).size == group.size // 2


def test_all_groups_can_be_cut_to_one_unit(channels: Channels) -> None:
    assert np.isfinite(run(cut(channels, {group.name: [0] for group in channels.groups}))).all()


def test_a_graph_that_keeps_everything_is_the_same_graph(channels: Channels) -> None:
    assert cut(channels, {group.name: range(group.size) for group in channels.groups}) == channels.model


def test_a_width_is_a_multiple_of_the_block() -> None:
    assert [aligned(count, 64, 16) for count in (1, 23, 25, 40, 63, 90)] == [16, 16, 32, 32, 64, 64]
    assert aligned(30, 40, 16) == 32
    assert aligned(3, 10, 16) == 10


def test_a_wrong_name_and_a_unit_that_is_not_there_are_bugs_of_the_caller() -> None:
    channels = find(prunable.exported("mlp", old=True))
    with pytest.raises(ValueError, match="no group is called nothing"):
        cut(channels, {"nothing": [0]})
    with pytest.raises(ValueError, match="has units 0 to 19, not 3 to 20"):
        cut(channels, {channels.groups[0].name: [3, 20]})
