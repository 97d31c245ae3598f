"""ONNX's own node tests, run against `TrainableGraph`: which are counted, and what each of them says.

A node test belongs to the operators of its model, and is counted when all of them are in KNOWN. The cases are those
of `onnx.backend.test` (onnx makes them when asked, from its reference code).
"""

import functools
import textwrap
import warnings
from collections import Counter
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper

from modelctl.errors import ModelctlError
from modelctl.graph.operators import OPERATORS
from modelctl.graph.operators.node import to_torch
from modelctl.graph.quantizing.rounding import DOMAIN
from modelctl.graph.trainable import TrainableGraph

# What a file may hold; a graph that learns to be rounded holds more, and is never written so.
KNOWN = {key: one for key, one in OPERATORS.items() if key[0] != DOMAIN}

HALF = "half precision: one rounding away from the reference, or not, as this machine's kernels sum"
ROUNDING = 2**-7  # of bfloat16, near 1

# Reason: patterns of the names of counted tests that are not meant to pass. Every one that matches has to fail, but for
# those of HALF, which are not the same on every machine.
EXCEPTIONS: dict[str, tuple[str, ...]] = {
    HALF: (
        "test_attention_4d_fp16",
        "test_attention_4d_causal_fp16*",
        "test_attention_4d_causal_bf16*",
        "test_attention_4d_padded_kv_bf16*",
        "test_attention_4d_causal_padded_kv_bf16*",
        "test_attention_4d_attn_mask_causal_bf16*",
        "test_attention_3d_causal_bf16*",
        "test_linear_attention_fp16",
    ),
    "dropout while learning draws other numbers than the reference's generator": (
        "test_training_dropout",
        "test_training_dropout_mask",
        "test_training_dropout_default*",
    ),
    "is of opset 1; training begins at opset 7": ("test_not_?d",),
    "compares strings, which are not tensors": ("test_equal_string*",),
}


def reason(name: str) -> str | None:
    """Why a counted test is not meant to pass; None when it is."""
    found = (why for why, patterns in EXCEPTIONS.items() if any(fnmatchcase(name, one) for one in patterns))
    return next(found, None)


@functools.cache
def counted() -> dict[str, Any]:
    """The test cases by name whose operators are all claimed."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        from onnx.backend.test.loader import load_model_tests

        cases = load_model_tests(kind="node")
    return {case.name: case for case in cases if operators_of(case) <= KNOWN.keys()}


def operators_of(case: Any) -> set[tuple[str, str]]:
    """Domain and name of every operator in a case's model."""
    return {(node.domain, node.op_type) for node in case.model.graph.node}


@functools.cache
def trouble(name: str, tolerance: float | None = None) -> str:
    """What is wrong with the answer in a counted test, by its own tolerances or another; empty when it passes."""
    case = counted()[name]
    rtol, atol = (case.rtol, case.atol) if tolerance is None else (tolerance, tolerance)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            graph = TrainableGraph(case.model, name).eval()
            for inputs, outputs in case.data_sets:
                found = graph(*(_torch(one) for one in inputs))
                for got, wanted in zip(found, outputs, strict=True):
                    if told := _difference(got, _torch(wanted), rtol, atol):
                        return told
    except (ModelctlError, TypeError) as error:
        return str(error)
    return ""


def section() -> str:
    """README's part about this, in Markdown: the operators, and their tests."""
    names = sorted(":".join(filter(None, key)) for key in KNOWN)
    left = Counter(filter(None, map(reason, counted())))
    passed = len(counted()) - left.total()
    return "\n".join(
        (
            textwrap.fill(f"{len(names)} operators are known: {', '.join(names)}.", 120),
            "",
            f"Of ONNX's own node tests that are about these operators and no others, {passed:,} of {len(counted()):,} "
            f"({100 * passed / len(counted()):.1f} %) pass.\nThe rest:",
            "",
            "| tests | why not |",
            "|---|---|",
            *(f"| {count} | {why} |" for why, count in left.most_common()),
            "",
        )
    )


def _torch(value: Any) -> Any:
    """What a case holds (array, protobuf, list of arrays) as the graph takes it."""
    if isinstance(value, onnx.TensorProto):
        return to_torch(value)
    if isinstance(value, onnx.SequenceProto):
        return [_torch(one) for one in value.tensor_values]
    if isinstance(value, list):
        return [_torch(one) for one in value]
    if value is None or isinstance(value, onnx.OptionalProto | dict):
        raise TypeError("optional values and maps are not tensors")
    array = np.asarray(value)
    if array.dtype.kind in "OUS":
        raise TypeError("strings are not tensors")
    proto = onnx.TensorProto(dims=array.shape, data_type=helper.np_dtype_to_tensor_dtype(array.dtype))
    if array.dtype.itemsize and proto.data_type in _PACKED:
        return to_torch(numpy_helper.from_array(array))
    proto.raw_data = np.ascontiguousarray(array).tobytes()
    return to_torch(proto)


_PACKED = frozenset(getattr(onnx.TensorProto, name) for name in ("INT4", "UINT4", "INT2", "UINT2", "FLOAT4E2M1"))


def _difference(got: Any, wanted: Any, rtol: float, atol: float) -> str:
    if isinstance(wanted, list):
        if not isinstance(got, list) or len(got) != len(wanted):
            return f"a sequence of {len(wanted)} was wanted"
        told = (_difference(one, other, rtol, atol) for one, other in zip(got, wanted, strict=True))
        return next(filter(None, told), "")
    if not isinstance(got, torch.Tensor):
        return f"a tensor was wanted, {type(got).__name__} came"
    if got.dtype != wanted.dtype:
        return f"is {got.dtype}, should be {wanted.dtype}"
    if got.shape != wanted.shape:
        return f"is of shape {tuple(got.shape)}, should be {tuple(wanted.shape)}"
    one, other = _numbers(got), _numbers(wanted)
    if not np.allclose(one, other, rtol=rtol, atol=atol, equal_nan=True):
        return f"differs by up to {np.nanmax(np.abs(one - other)):.3g}"
    return ""


def _numbers(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    tensor = tensor.detach()
    if tensor.dtype.is_complex or tensor.dtype in (torch.int64, torch.uint64):
        return tensor.numpy()
    return tensor.to(torch.float64).numpy()
