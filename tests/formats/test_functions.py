"""A model whose functions unfold without measure is refused before anything unfolds them."""

from itertools import pairwise
from pathlib import Path

import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nets import convolutional
from onnx import TensorProto, helper

from modelctl.artifact import Artifact
from modelctl.errors import ArtifactError
from modelctl.formats import functions
from modelctl.formats import onnx as onnx_format
from modelctl.graph.session import Session


def laughing(depth: int, calls: int, loop: bool = False) -> onnx.ModelProto:
    """A model of `depth` functions, each of which calls the next one `calls` times."""
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    made = []
    for level in range(depth):
        last = level == depth - 1
        word, domain = ("Identity", "") if last else (f"f{level + 1}", "own")
        if last and loop:
            word, domain = "f0", "own"
        names = ["x", *(f"v{index}" for index in range(calls - 1)), "y"]
        nodes = [helper.make_node(word, [a], [b], domain=domain) for a, b in pairwise(names)]
        made.append(helper.make_function("own", f"f{level}", ["x"], ["y"], nodes, opsets))
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("f0", ["x"], ["y"], domain="own")], "g", value[:1], value[1:])
    return helper.make_model(graph, opset_imports=opsets, functions=made, ir_version=10)


def save(model: onnx.ModelProto, path: Path) -> Artifact:
    path.write_bytes(model.SerializeToString())
    return Artifact.open(path)


def test_functions_that_unfold_without_measure_are_refused(tmp_path: Path) -> None:
    payload = save(laughing(12, 10), tmp_path / "laughs.onnx").load()
    with pytest.raises(ArtifactError, match="unfold to more than"):
        Session(payload)
    with pytest.raises(ArtifactError, match="unfold to more than"):
        onnx_format.parse(payload)


@pytest.mark.parametrize("depth", [1, 3])
def test_functions_that_call_themselves_are_refused(tmp_path: Path, depth: int) -> None:
    with pytest.raises(ArtifactError, match="calls itself"):
        Session(save(laughing(depth, 2, loop=True), tmp_path / "loop.onnx").load())


def test_functions_of_measure_run(tmp_path: Path) -> None:
    session = Session(save(laughing(3, 4), tmp_path / "small.onnx").load())
    assert [one.name for one in session.outputs] == ["y"]


def test_a_chain_that_is_deep_but_calls_once_is_no_more_than_its_length() -> None:
    functions.refuse_unfolding(laughing(2000, 1), "deep.onnx")


def test_presence_is_told_from_the_outermost_fields() -> None:
    assert functions.present(laughing(2, 2).SerializeToString())
    assert not functions.present(convolutional().SerializeToString())


@given(st.binary(max_size=64))
def test_any_bytes_are_told_something(data: bytes) -> None:
    assert functions.present(data) in (True, False)
