"""Attributes come from a file: what makes no sense is refused by name, at once or when the graph runs."""

import onnx
import pytest
from gradients.case import Case, spread, whole

from modelctl.errors import DataError, ModelctlError, UnsupportedError
from modelctl.graph.trainable import TrainableGraph


@pytest.mark.parametrize(
    ("case", "told"),
    [
        (Case("Pad", [(2, 3), whole([0, 0, 1, 1])], {"mode": "mirror"}), r"Pad \(pad\): mode is 'mirror', not one of"),
        (Case("ScatterElements", [(3,), whole([0]), (1,)], {"reduction": "mean"}), "reduction is 'mean', not one of"),
        (Case("DepthToSpace", [(1, 4, 1, 1)], {"blocksize": 2, "mode": "CDR"}), "not one of DCR, CRD"),
        (Case("Gelu", [(2,)], {"approximate": "fast"}), "not one of none, tanh"),
        (Case("Cast", [(2,)], {"to": 999}), "to is an unknown type, 999"),
        (Case("Cast", [(2,)], {"to": onnx.TensorProto.STRING}), "to is string, which torch can't compute with"),
        (Case("EyeLike", [(2, 2)], {"dtype": 999}), "dtype is an unknown type, 999"),
    ],
    ids=lambda one: one.op if isinstance(one, Case) else "",
)
def test_a_word_or_a_type_that_means_nothing_is_refused(case: Case, told: str) -> None:
    with pytest.raises(UnsupportedError, match=told):
        TrainableGraph(case.model(), case.op)


def test_constants_that_do_not_fit_are_told_of_when_the_graph_is_read() -> None:
    model = Case("Reshape", [whole([1, 2, 3]), whole([2, 2])]).model()
    with pytest.raises(DataError, match=r"net: Reshape \(reshape\) failed on this input: shape"):
        TrainableGraph(model, "net")
    with pytest.raises(DataError, match="Slice"):
        TrainableGraph(Case("Slice", [(3,)], {"starts": [0, 1], "ends": [1]}, opset=7).model(), "net")


@pytest.mark.parametrize(
    "case",
    [
        Case("DepthToSpace", [(1, 4, 1, 1)], {"blocksize": 0}),
        Case("SpaceToDepth", [(1, 4, 2, 2)], {"blocksize": 0}),
        Case("Softmax", [(2, 3)], {"axis": 7}),
        Case("Transpose", [(2, 3)], {"perm": [0, 0]}),
        Case("TopK", [spread(3), whole([9])], outputs=2),
        Case("Split", [(3,), whole([1, 1])], outputs=2),
        Case("Gather", [(3,), whole([3])]),
        Case("GatherND", [(3, 2), whole([[9, 0]])]),
    ],
    ids=lambda case: case.op,
)
def test_numbers_that_do_not_fit_are_told_of_when_the_graph_runs(case: Case) -> None:
    with pytest.raises(ModelctlError, match=case.op):
        TrainableGraph(case.model(), case.op)(*case.values())
