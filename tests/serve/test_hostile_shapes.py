"""Shapes that promise much where nothing is sent."""

import pytest

from modelctl.manifest import TensorSpec
from modelctl.serve.refusal import Refused
from modelctl.serve.tensors import check_shape

FREE = TensorSpec(name="x", dtype="float32", shape=("a", "b", "c", "d"))


@pytest.mark.parametrize("shape", [[0, *[2**31 - 1] * 3], [2**31 - 1, 0, 1, 1], [2**24 + 1, 1, 1, 0]])
def test_an_empty_tensor_can_not_claim_a_huge_one(shape: list[int]) -> None:
    with pytest.raises(Refused, match="without elements"):
        check_shape("x", shape, FREE)


def test_an_empty_tensor_may_have_a_shape() -> None:
    assert check_shape("x", [0, 3, 224, 224], FREE) == (0, 3, 224, 224)
