"""Plain students: the largest MLP or small CNN of at most so many parameters, shaped by what the teacher takes."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from modelctl.errors import UnsupportedError
from modelctl.manifest import TensorSpec

LARGEST_MAP = 8  # height and width are halved until the map that is flattened is no larger than this
LIMIT_WIDTH = 1 << 14
BLOCK = 16  # channels that onnxruntime computes at once with AVX-512; a width between two blocks pays for the upper one


def plain(inputs: tuple[TensorSpec, ...], classes: int, size: int) -> tuple[nn.Module, dict[str, Any]]:
    """A student of at most `size` parameters, running statistics included, and what was chosen: kind and widths.

    An image, float32 [batch, C, H, W], gets convolutions; any other float32 input is flattened. UnsupportedError when
    the input is neither, or `size` is below the smallest possible.
    """
    if len(inputs) != 1:
        names = ", ".join(spec.name for spec in inputs)
        raise UnsupportedError(
            f"a plain student takes one input, the teacher takes {names}", "--student module:factory"
        )
    shape = inputs[0].shape[1:]
    sizes = tuple(one for one in shape if isinstance(one, int))
    if len(sizes) != len(shape) or not sizes or inputs[0].dtype != "float32":
        told = f"{inputs[0].dtype}[{','.join(map(str, inputs[0].shape))}]"
        raise UnsupportedError(
            f"a plain student takes float32 of a fixed shape, the teacher takes {told}", "--student module:factory"
        )
    if len(sizes) == 3 and min(sizes[1:]) >= 2:
        kind, module = "cnn", _widest_cnn(sizes, classes, size)
    else:
        kind, module = "mlp", _mlp(sizes, classes, _widest(lambda width: _mlp(sizes, classes, width), size))
    widths = [len(part.weight) for part in module.modules() if isinstance(part, nn.Conv2d | nn.Linear)]
    return module, {"student": kind, "widths": widths, "parameters": parameters(module)}


def parameters(module: nn.Module) -> int:
    """How many floats the module holds: parameters and buffers, as the ONNX file will."""
    held = {id(one): one for one in (*module.parameters(), *module.buffers())}
    return sum(one.numel() for one in held.values() if one.is_floating_point())


def _widest(build: Callable[[int], nn.Module], size: int) -> int:
    """The largest width whose module has at most `size` parameters, by bisection."""

    def count(width: int) -> int:
        with torch.device("meta"):  # shapes alone: nothing is drawn, nothing allocated
            return parameters(build(width))

    if count(1) > size:
        raise UnsupportedError(
            f"a plain student for this teacher has at least {count(1)} parameters, {size} were asked for",
            f"--student-size {count(1)}",
        )
    low, high = 1, LIMIT_WIDTH
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if count(middle) <= size else (low, middle - 1)
    return low


def _widest_cnn(sizes: tuple[int, ...], classes: int, size: int) -> nn.Module:
    """Convolutions as wide as they may be; what is left over by rounding to whole blocks goes to the last one."""
    width = _whole(_widest(lambda width: _cnn(sizes, classes, width, 2 * width), size))
    return _cnn(sizes, classes, width, _whole(_widest(lambda last: _cnn(sizes, classes, width, last), size)))


def _whole(width: int) -> int:
    return width - width % BLOCK if width > BLOCK else width


def _cnn(sizes: tuple[int, ...], classes: int, width: int, last: int) -> nn.Module:
    """Convolutions of `width`, twice that, and `last`, each with batch norm, the map halved until it is small."""
    channels, height, breadth = sizes
    parts: list[nn.Module] = [nn.BatchNorm2d(channels)]
    before, halvings = channels, 0
    while min(height, breadth) >= 2 and (max(height, breadth) > LARGEST_MAP or halvings == 0):
        after = width if halvings == 0 else 2 * width
        parts += [nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU(), nn.MaxPool2d(2)]
        before, height, breadth, halvings = after, height // 2, breadth // 2, halvings + 1
    parts += [nn.Conv2d(before, last, 3, padding=1, bias=False), nn.BatchNorm2d(last), nn.ReLU()]
    return nn.Sequential(*parts, nn.Flatten(), nn.Linear(last * height * breadth, classes))


def _mlp(sizes: tuple[int, ...], classes: int, width: int) -> nn.Module:
    """Two hidden layers of `width`, the inputs brought to one scale first."""
    flat = 1
    for one in sizes:
        flat *= one
    return nn.Sequential(
        nn.Flatten(),
        nn.BatchNorm1d(flat),
        nn.Linear(flat, width),
        nn.ReLU(),
        nn.Linear(width, width),
        nn.ReLU(),
        nn.Linear(width, classes),
    )
