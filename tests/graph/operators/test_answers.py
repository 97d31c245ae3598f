"""The cases of the gradients' check answer as onnxruntime does, each in its operator set, older ones too.

Here shapes, axes and bounds are constants of the graph; in ONNX's node tests they are inputs.
"""

import dataclasses

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from gradients import CASES
from gradients.case import Case, Held, spread, whole
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidArgument, InvalidGraph, NotImplemented

from modelctl.graph.trainable import TrainableGraph

NEWEST = 24  # that onnxruntime knows whole
CANNOT = (Fail, InvalidArgument, InvalidGraph, NotImplemented)
WITHOUT_GRADIENT = [
    *[Case(name, [spread(2, 4)], {"axis": 1, "keepdims": 0}, opset=7) for name in ("ArgMax", "ArgMin")],
    Case("ArgMax", [torch.tensor([1.0, 3, 3, 0])], {"select_last_index": 1}, opset=12),
    Case("Hardmax", [spread(2, 3, 2)], opset=7),
    Case("Shape", [(2, 3, 4)], opset=7),
    Case("Shape", [(2, 3, 4)], {"start": -2, "end": 2}, opset=15),
    Case("Size", [(2, 3, 4)], opset=7),
    Case("Equal", [(2, 3), (3,)], opset=11),
    Case("Greater", [(2, 3), (3,)], opset=7),
    Case("IsInf", [torch.tensor([1.0, torch.inf, -torch.inf])], {"detect_negative": 0}, opset=10),
    Case("Cast", [spread(5)], {"to": onnx.TensorProto.INT32}, opset=7),
    Case("Cast", [torch.tensor([0.0, 0.4, -2.0])], {"to": onnx.TensorProto.BOOL}, opset=9),
    Case("EyeLike", [(3, 4)], {"k": -1}, opset=9),
    Case("NonZero", [torch.tensor([[0.0, 1, 2], [3, 0, 0]])], opset=9),
    Case("Dropout", [(2, 3)], {"ratio": 0.3}, opset=7),
    Case("Dropout", [(2, 3)], opset=10),
    Case("Round", [torch.tensor([0.5, 1.5, -2.5, 2.4])], opset=11),
    Case("Range", [Held(1.0), Held(4.2), Held(0.7)], opset=11),
    Case("ConstantOfShape", [whole([2, 3])], opset=9),
    Case("ReduceMax", [spread(2, 3)], {"axes": [-1]}, opset=12),
    Case("ReduceMean", [(2, 3, 2)], {"axes": [0, 2], "keepdims": 0}, opset=13),
    Case("ReduceSum", [(2, 3)], {"noop_with_empty_axes": 1}, opset=13),
    Case("Div", [Held(np.array([-7, 7, 5], np.int32)), Held(np.array([2, -2, 5], np.int32))], opset=7),
]


def unequal(case: Case) -> str:
    """Why a case has another answer in onnxruntime; empty when it has not."""
    if case.training or case.seeded:
        return "draws numbers"
    return "ScaledTanh has no defaults" if "ScaledTanh" in case.attributes.get("activations", ()) else ""


@pytest.mark.parametrize("case", [*CASES, *WITHOUT_GRADIENT], ids=lambda case: f"{case.op}-{case.opset}")
def test_an_operator_answers_as_in_onnxruntime(case: Case) -> None:
    if told := unequal(case):
        pytest.skip(told)
    model = dataclasses.replace(case, opset=min(case.opset, NEWEST)).model(onnx.TensorProto.FLOAT)
    model.ir_version = 10
    values = [one.detach().float() for one in case.values()]
    graph = TrainableGraph(model, case.op).eval()
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        wanted = session.run(None, {name: one.numpy() for name, one in zip(graph.input_names, values, strict=True)})
    except CANNOT as error:
        pytest.skip(f"onnxruntime: {str(error)[:100]}")
    with torch.no_grad():
        found = graph(*values)
    near = 3e-4 if "Quantize" in case.op else 1e-5  # what is rounded on the way can be so to either side
    for got, answer in zip(found, wanted, strict=True):
        if isinstance(answer, list):
            for one, other in zip(got, answer, strict=True):
                np.testing.assert_allclose(one, other)
            continue
        assert got.numpy().dtype == answer.dtype
        np.testing.assert_allclose(got.numpy(), answer, rtol=1e-4, atol=near)
