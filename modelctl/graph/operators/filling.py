"""Tensors made from little: ranges, constants, diagonals, one-hot rows, windows."""

import math

import torch

from modelctl.graph.operators.node import Call, Node, operator, plain


@operator("Constant")
def constant(node: Node) -> Call:
    """Numbers have become initializers before a graph is read, so that this one holds strings."""
    raise node.refuse("holds strings, which torch can't compute with")


@operator("ConstantOfShape")
def constant_of_shape(node: Node) -> Call:
    """One number everywhere."""
    held = node.tensor("value")
    value, dtype = (0.0, torch.float32) if held is None else (held.item(), held.dtype)
    return lambda dims: torch.full(dims.tolist(), value, dtype=dtype, device=dims.device)


def _range(start: torch.Tensor, limit: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
    """From a start, in steps, before a limit; half precision counts in float32."""
    first, last, by = start.item(), limit.item(), step.item()
    count = max(0, math.ceil((last - first) / by))
    half = start.dtype in (torch.float16, torch.bfloat16)
    places = torch.arange(count, dtype=torch.float32 if half else start.dtype, device=_device(start, limit, step))
    return (first + places * by).to(start.dtype)


def _device(*tensors: torch.Tensor) -> torch.device:
    return next((one.device for one in tensors if one.device.type != "cpu"), tensors[0].device)


plain("Range", _range, host=(0, 1, 2))


@operator("EyeLike")
def eye_like(node: Node) -> Call:
    """Ones on a diagonal."""
    diagonal = node.integer("k")
    wanted = node.dtype("dtype")

    def run(x: torch.Tensor) -> torch.Tensor:
        rows = torch.arange(x.shape[0], device=x.device).unsqueeze(1)
        return (rows + diagonal == torch.arange(x.shape[1], device=x.device)).to(wanted or x.dtype)

    return run


@operator("Trilu", host=(1,))
def trilu(node: Node) -> Call:
    """The upper or the lower triangle, zeros elsewhere."""
    call = torch.triu if node.integer("upper", 1) else torch.tril
    held = node.constant(1)
    if node.has(1) and held is None:
        return lambda x, diagonal: call(x, int(diagonal))
    diagonal = 0 if held is None else int(held)
    return lambda x, *_: call(x, diagonal)


@operator("OneHot", host=(1,), fixed=(2,))
def one_hot(node: Node) -> Call:
    """A new axis that is `values[1]` at the index, else `values[0]`."""
    axis = node.integer("axis", -1)

    def run(indices: torch.Tensor, depth: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        size, indices = int(depth), indices.to(torch.int64)
        places = torch.where(indices < 0, indices + size, indices).unsqueeze(axis)
        across = [1] * places.dim()
        across[axis] = size
        hot = places == torch.arange(size, device=indices.device).reshape(across)
        return torch.where(hot, values[1], values[0])

    return run


@operator("HannWindow", "HammingWindow", "BlackmanWindow", host=(0,))
def window(node: Node) -> Call:
    """A sum of cosines (onnx.proto's coefficients), for spectra; periodic, or symmetric."""
    dtype = node.dtype("output_datatype") or torch.float32
    periodic = bool(node.integer("periodic", 1))
    parts = {
        "HannWindow": (0.5, -0.5, 0.0),
        "HammingWindow": (25 / 46, -21 / 46, 0.0),
        "BlackmanWindow": (0.42, -0.5, 0.08),
    }[node.proto.op_type]

    def run(size: torch.Tensor) -> torch.Tensor:
        count = int(size)
        turn = 2 * math.pi / max(1, count if periodic else count - 1)
        angle = torch.arange(count, dtype=torch.float64, device=size.device) * turn
        return (parts[0] + parts[1] * torch.cos(angle) + parts[2] * torch.cos(2 * angle)).to(dtype)

    return run
