"""Exported programs are read without running what is in them, and say which of their dimensions are free."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modelctl.artifact import Artifact
from modelctl.errors import ArtifactError, DataError
from modelctl.formats.pt2 import _is_arithmetic, read, traced


class Net(torch.nn.Module):
    def forward(self, left: torch.Tensor, right: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"sum": left.sum(1) + right.sum((1, 2))}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program of two inputs: one batch of at most six, a free width."""
    batch, width = torch.export.Dim("batch", max=6), torch.export.Dim("width")
    shapes = ({0: batch}, {0: batch, 2: width})
    program = torch.export.export(Net(), (torch.ones(4, 3), torch.ones(4, 2, 5)), dynamic_shapes=shapes)
    path = tmp_path_factory.mktemp("programs") / "net.pt2"
    torch.export.save(program, path)
    return path


def test_free_dimensions_get_names_and_limits(saved: Path) -> None:
    model = traced(read(Artifact.open(saved)), "net.pt2")
    assert [(spec.name, spec.shape) for spec in model.inputs] == [
        ("left", ("batch", 3)),
        ("right", ("batch", 2, "right_2")),
    ]
    for batch, width in ((1, 5), (6, 9)):
        feeds = {"left": np.ones((batch, 3), np.float32), "right": np.ones((batch, 2, width), np.float32)}
        np.testing.assert_allclose(model.run(feeds)["sum"], 3 + 2 * width)
    with pytest.raises(DataError, match="batch must be 1 to 6, is 7"):
        model.run({"left": np.ones((7, 3), np.float32), "right": np.ones((7, 2, 5), np.float32)})


@pytest.mark.parametrize(
    "text",
    [
        "Symbol('s77', positive=True, integer=True)",
        "s0",
        "2*s0 + 1",
        "Mul(Integer(2), Symbol('s0', integer=True))",
        "FloorDiv(s0 - 1, 2) + Max(1, s1)",
        "-int_oo",
        "s0 >= 2",
    ],
)
def test_sizes_that_are_arithmetic_pass(text: str) -> None:
    assert _is_arithmetic(text)


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('true')",
        "eval('1')",
        "exec(1)",
        "Symbol('s1').__class__",
        "Symbol('__import__')",
        "Symbol(name='os')",
        "S('__import__(1)')",
        "Lambda(1, 2)",
        "[x for x in (1,)]",
        "(lambda: 1)()",
        "s0[0]",
        "'s0'",
        "open",
        "1; 2",
        "",
    ],
)
def test_sizes_that_are_more_are_found(text: str) -> None:
    assert not _is_arithmetic(text)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_damaged_program_raises_nothing_unforeseen(saved: Path, data: st.DataObject) -> None:
    content = bytearray(saved.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    damaged = saved.with_name("damaged.pt2")
    damaged.write_bytes(bytes(content[: data.draw(st.sampled_from([len(content), len(content) // 2]))]))
    try:
        traced(read(Artifact.open(damaged)), "damaged.pt2")
    except ArtifactError as error:
        assert "damaged.pt2" in error.message
