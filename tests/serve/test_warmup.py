"""What warm-up finds out: above all, which models' rows may share a run."""

from pathlib import Path

import numpy as np
import pytest
import servers
from onnx import TensorProto, helper
from servers import Shape

from modelctl.artifact import Artifact
from modelctl.errors import UnsupportedError
from modelctl.graph.session import Session
from modelctl.serve.batching import Pace
from modelctl.serve.warmup import warm_up

WIDE: Shape = ["n", 4]


def pace_of(path: Path) -> Pace:
    session = Session(Artifact.open(path).load())
    return warm_up(session.inputs, session.run)


@pytest.mark.parametrize("name", ["affine", "pair", "lookup", "words", "bits", "half", "brain", "log", "slow"])
def test_rows_of_the_zoo_are_independent(zoo: dict[str, Path], name: str) -> None:
    assert pace_of(zoo[name]).rows_are_independent


@pytest.mark.parametrize("nodes", ["softmax", "mean", "dynamic", "random", "transposed", "one row"])
def test_rows_that_know_of_each_other_are_found_out(tmp_path: Path, nodes: str) -> None:
    made = {
        "softmax": [helper.make_node("Softmax", ["x"], ["y"], axis=0)],
        "mean": [helper.make_node("ReduceMean", ["x"], ["m"], keepdims=1), helper.make_node("Sub", ["x", "m"], ["y"])],
        "dynamic": [
            helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
            helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
        ],
        "random": [
            helper.make_node("RandomNormalLike", ["x"], ["r"]),
            helper.make_node("Add", ["x", "r"], ["y"]),
        ],
        "transposed": [helper.make_node("Transpose", ["x"], ["y"])],
        "one row": [helper.make_node("ReduceSum", ["x"], ["y"], keepdims=0)],
    }[nodes]
    shapes: dict[str, Shape] = {"transposed": [4, "n"], "one row": []}
    shape = shapes.get(nodes, WIDE)
    path = servers.save(tmp_path / "m.onnx", made, [("x", 1, WIDE)], [("y", 1, shape)], {})
    assert not pace_of(path).rows_are_independent


def test_a_fixed_first_dimension_is_not_one_of_rows(tmp_path: Path) -> None:
    assert not pace_of(servers.echo(tmp_path / "m.onnx", TensorProto.FLOAT, [3, 4])).rows_are_independent
    assert not pace_of(servers.echo(tmp_path / "s.onnx", TensorProto.FLOAT, [])).rows_are_independent
    assert not pace_of(servers.echo(tmp_path / "q.onnx", TensorProto.FLOAT, ["n", "n"])).rows_are_independent


def test_a_model_that_no_made_up_input_suits_runs_alone_in_its_thread(tmp_path: Path) -> None:
    nodes = [helper.make_node("Reshape", ["x", "s"], ["y"])]
    path = servers.save(
        tmp_path / "m.onnx", nodes, [("x", 1, ["n", "k"])], [("y", 1, [7, 11])], {"s": np.array([7, 11])}
    )
    pace = pace_of(path)
    assert not pace.rows_are_independent
    assert pace.inline_elements == 0


def test_a_slow_model_has_a_thread_and_a_fast_one_has_none() -> None:
    assert Pace(run_s=0.01, elements=4, rows_are_independent=True).inline_elements == 0
    assert Pace(run_s=0.00001, elements=4, rows_are_independent=True).inline_elements >= 4


def test_what_the_protocol_has_no_word_for_is_not_served(tmp_path: Path) -> None:
    path = servers.echo(tmp_path / "m.onnx", TensorProto.FLOAT8E4M3FN)
    with pytest.raises(UnsupportedError, match="float8e4m3fn, which the protocol has no word for"):
        servers.loaded(path)
