"""What the older operator sets say otherwise is computed as onnxruntime does: the same cases as the gradients'."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from gradients import CASES
from gradients.case import Case

from modelctl.graph.trainable import TrainableGraph

OLDER = [case for case in CASES if case.opset < 20 and not case.domain and not case.training and not case.seeded]


@pytest.mark.parametrize("case", OLDER, ids=lambda case: f"{case.op}-{case.opset}")
def test_an_older_operator_answers_as_in_onnxruntime(case: Case) -> None:
    model = case.model(onnx.TensorProto.FLOAT)
    model.ir_version = 8
    graph = TrainableGraph(model, case.op).eval()
    values = [one.detach().float() for one in case.values()]
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    wanted = session.run(None, {name: one.numpy() for name, one in zip(graph.input_names, values, strict=True)})
    with torch.no_grad():
        found = graph(*values)
    for got, answer in zip(found, wanted, strict=True):
        assert got.numpy().dtype == answer.dtype
        np.testing.assert_allclose(got.numpy(), answer, rtol=1e-5, atol=1e-6)
