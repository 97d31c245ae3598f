"""Nets of every kind that channels can be cut from, with random weights, exported by torch as users do.

`exported` writes a module as ONNX with a free batch, by the exporter that traces programs or by the older one that
traces scripts: they write the same net in different ways. Normalization layers get statistics of their own, so that
no two are alike by chance.
"""

import warnings
from collections.abc import Callable
from io import BytesIO
from typing import Any

import kept
import numpy as np
import onnx
import onnxruntime as ort
import torch
from bench.fashion import Vit, residual
from torch import nn
from torch.nn import functional

from modelctl.artifact import Payload
from modelctl.data.samples import Array
from modelctl.formats import onnx as onnx_format
from modelctl.formats.program import Traced, bind
from modelctl.graph import lower
from modelctl.graph.signature import parse_inputs

Tensor = torch.Tensor


class Squeeze(nn.Module):
    """Squeeze-excite: each channel weighed by what all of them are on average."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(width, inner, 1), nn.Conv2d(inner, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.up(functional.relu(self.down(functional.adaptive_avg_pool2d(x, 1)))))


class Inverted(nn.Module):
    """An inverted residual block: widened, depthwise, squeezed, narrowed."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(width, inner, 1, bias=False),
            nn.BatchNorm2d(inner),
            nn.Hardswish(),
            nn.Conv2d(inner, inner, 3, padding=1, groups=inner, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU6(),
            Squeeze(inner, 6),
            nn.Conv2d(inner, width, 1, bias=False),
            nn.BatchNorm2d(width),
        )

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = x + self.layers(x)
        return answer


def mobilenet() -> nn.Module:
    """Depthwise convolutions, squeeze-excite, and a flattened map in front of the dense layer."""
    stem = [nn.Conv2d(1, 8, 3, 2, 1), Inverted(8, 20), Inverted(8, 12), nn.MaxPool2d(2)]
    return nn.Sequential(*stem, nn.Flatten(), nn.Linear(8 * 9, 10))


class Unet(nn.Module):
    """Down and up again, with the maps on the way down laid beside those on the way up."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 12, 3, padding=1)
        self.up = nn.ConvTranspose2d(12, 6, 2, 2)
        self.third, self.last = nn.Conv2d(8 + 6 + 12, 10, 3, padding=1), nn.Conv2d(10, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        fine = functional.relu(self.first(x))
        coarse = functional.relu(self.second(functional.max_pool2d(fine, 2)))
        stretched = functional.interpolate(coarse, scale_factor=2.0, mode="nearest")
        answer: Tensor = self.last(functional.relu(self.third(torch.cat([fine, self.up(coarse), stretched], 1))))
        return answer


class Dense(nn.Module):
    """Every layer reads all before it."""

    def __init__(self) -> None:
        super().__init__()
        widths = [6, 4, 5]
        self.convs = nn.ModuleList(nn.Conv2d(1 + sum(widths[:at]), one, 3, 1, 1) for at, one in enumerate(widths))
        self.norms = nn.ModuleList(nn.BatchNorm2d(1 + sum(widths[:at])) for at in range(3))
        self.last = nn.Linear(1 + sum(widths), 10)

    def forward(self, x: Tensor) -> Tensor:
        for norm, conv in zip(self.norms, self.convs, strict=True):
            x = torch.cat([x, functional.relu(conv(norm(x)))], 1)
        answer: Tensor = self.last(x.mean((2, 3)))
        return answer


class Shuffle(nn.Module):
    """Half of the channels goes by, then all are shuffled, twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 24, 3, 2, 1)
        self.branches = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(12, 16, 1),
                nn.BatchNorm2d(16),
                nn.ReLU(),
                nn.Conv2d(16, 16, 3, 1, 1, groups=16),
                nn.Conv2d(16, 12, 1),
                nn.ReLU(),
            )
            for _ in range(2)
        )
        self.last = nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.stem(x))
        for branch in self.branches:
            left, right = x.chunk(2, 1)
            x = torch.cat([left, branch(right)], 1)
            batch, channels, height, width = x.shape
            x = x.reshape(batch, 2, channels // 2, height, width).transpose(1, 2)
            x = x.reshape(batch, channels, height, width)
        answer: Tensor = self.last(x.mean((2, 3)))
        return answer


class Grouped(nn.Module):
    """A ResNeXt block, and a grouped transposed convolution behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 10, 3, 2, 1)
        self.down, self.mid, self.up = nn.Conv2d(10, 24, 1), nn.Conv2d(24, 12, 3, 1, 1, groups=4), nn.Conv2d(12, 10, 1)
        self.norm, self.slope = nn.BatchNorm2d(12), nn.PReLU(10)
        self.wide, self.last = nn.ConvTranspose2d(10, 8, 2, 2, groups=2), nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        inner = functional.relu(self.norm(self.mid(functional.relu(self.down(x)))))
        answer: Tensor = self.last(self.wide(self.slope(x + self.up(inner))))
        return answer


class Norms(nn.Module):
    """Group, instance and layer normalization over convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(1, 12, 3, 2, 1), nn.Conv2d(12, 8, 3, 1, 1)
        self.three, self.last = nn.Conv2d(8, 10, 3, 1, 1), nn.Linear(10, 10)
        self.group, self.instance, self.layer = nn.GroupNorm(3, 12), nn.InstanceNorm2d(8, affine=True), nn.LayerNorm(10)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.group(self.one(x)))
        x = functional.elu(self.instance(self.two(x)))
        x = self.layer(self.three(x).permute(0, 2, 3, 1))
        answer: Tensor = self.last(x.mean((1, 2)))
        return answer


class Recurrent(nn.Module):
    """Two recurrent layers over the rows of a picture, and a dense layer on the last state."""

    def __init__(self, kind: type[nn.LSTM | nn.GRU], both: bool) -> None:
        super().__init__()
        self.before = nn.Linear(12, 9)
        self.net = kind(9, 11, 2, bidirectional=both, batch_first=True)
        self.last = nn.Linear(22 if both else 11, 10)

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.last(self.net(torch.tanh(self.before(x[:, 0])))[0][:, -1])
        return answer


class Bert(nn.Module):
    """Two encoder layers, normalized last, with one matrix for queries, keys and values, on embedded numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(20, 24), nn.Parameter(torch.randn(1, 64, 24))
        self.fused = nn.ModuleList(nn.Linear(24, 72) for _ in range(2))
        self.out = nn.ModuleList(nn.Linear(24, 24) for _ in range(2))
        self.wide = nn.ModuleList(nn.Linear(24, 40) for _ in range(2))
        self.narrow = nn.ModuleList(nn.Linear(40, 24) for _ in range(2))
        self.norms = nn.ModuleList(nn.LayerNorm(24) for _ in range(5))
        self.last = nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.norms[4](self.words(x) + self.places[:, : x.shape[1]])
        for at in range(2):
            q, k, v = (one.unflatten(-1, (3, 8)).transpose(1, 2) for one in self.fused[at](tokens).chunk(3, -1))
            weights = torch.softmax(q @ k.transpose(-1, -2) / 8**0.5, -1)
            tokens = self.norms[2 * at](tokens + self.out[at]((weights @ v).transpose(1, 2).flatten(2)))
            inner = functional.gelu(self.wide[at](tokens))
            tokens = self.norms[2 * at + 1](tokens + self.narrow[at](inner))
        answer: Tensor = self.last(tokens[:, 0])
        return answer


class Rotary(nn.Module):
    """Attention with turned queries and keys, two heads to a key, root-mean-square norms and a gated MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.norm = nn.Linear(12, 24), nn.RMSNorm(24)
        self.q, self.k, self.v = nn.Linear(24, 24, bias=False), nn.Linear(24, 12, bias=False), nn.Linear(24, 12)
        self.out, self.gate, self.up = nn.Linear(24, 24), nn.Linear(24, 30), nn.Linear(24, 30)
        self.down, self.last = nn.Linear(30, 24), nn.Linear(24, 10)
        angles = torch.outer(torch.arange(12.0), 1 / 10 ** (torch.arange(0, 6, 2) / 6))
        self.register_buffer("cos", torch.cat([angles.cos(), angles.cos()], -1))
        self.register_buffer("sin", torch.cat([angles.sin(), angles.sin()], -1))

    def turned(self, x: Tensor) -> Tensor:
        first, second = x.chunk(2, -1)
        return x * self.get_buffer("cos") + torch.cat([-second, first], -1) * self.get_buffer("sin")

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x[:, 0])
        seen = self.norm(x)
        q = self.turned(self.q(seen).unflatten(-1, (4, 6)).transpose(1, 2))
        k = self.turned(self.k(seen).unflatten(-1, (2, 6)).transpose(1, 2))
        v = self.v(seen).unflatten(-1, (2, 6)).transpose(1, 2)
        k, v = (one[:, :, None].expand(-1, -1, 2, -1, -1).flatten(1, 2) for one in (k, v))
        weights = torch.softmax(q @ k.transpose(-1, -2) / 6**0.5, -1)
        x = x + self.out((weights @ v).transpose(1, 2).flatten(2))
        x = x + self.down(functional.silu(self.gate(x)) * self.up(x))
        answer: Tensor = self.last(x.mean(1))
        return answer


def mlp() -> nn.Module:
    """Dense layers with batch norm, slopes and dropout."""
    hidden = [nn.Linear(144, 20), nn.BatchNorm1d(20), nn.PReLU(), nn.Linear(20, 14), nn.Dropout(), nn.SELU()]
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(14, 10))


def tiny_vit() -> nn.Module:
    """The benchmarks' vision transformer, narrower, for pictures of 28 × 28."""
    return Vit(width=32, heads=4, layers=2)


NETS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "residual": (residual, "x:float32[batch,1,28,28]"),
    "vit": (tiny_vit, "x:float32[batch,1,28,28]"),
    "mobilenet": (mobilenet, "x:float32[batch,1,12,12]"),
    "unet": (Unet, "x:float32[batch,1,12,12]"),
    "dense": (Dense, "x:float32[batch,1,12,12]"),
    "shuffle": (Shuffle, "x:float32[batch,1,12,12]"),
    "grouped": (Grouped, "x:float32[batch,1,12,12]"),
    "norms": (Norms, "x:float32[batch,1,12,12]"),
    "lstm": (lambda: Recurrent(nn.LSTM, both=False), "x:float32[batch,1,12,12]"),
    "lstm-both": (lambda: Recurrent(nn.LSTM, both=True), "x:float32[batch,1,12,12]"),
    "gru": (lambda: Recurrent(nn.GRU, both=False), "x:float32[batch,1,12,12]"),
    "gru-both": (lambda: Recurrent(nn.GRU, both=True), "x:float32[batch,1,12,12]"),
    "bert": (Bert, "x:int64[batch,length]"),
    "rotary": (Rotary, "x:float32[batch,1,12,12]"),
    "mlp": (mlp, "x:float32[batch,1,12,12]"),
}


def built(name: str) -> nn.Module:
    """A net by name, in evaluation mode, its normalization layers as after some training."""
    torch.manual_seed(0)
    module = NETS[name][0]().eval()
    with torch.no_grad():
        for part in module.modules():
            for key in ("weight", "bias", "running_mean", "running_var"):
                held = getattr(part, key, None)
                if "Norm" in type(part).__name__ and isinstance(held, Tensor):
                    held.copy_(torch.rand_like(held) + 0.5)
    return module


def exported(name: str, old: bool = False) -> onnx.ModelProto:
    """A net as ONNX, by the exporter that modelctl uses, or by the older one."""
    return onnx.load_model_from_string(kept.once(f"{name}-{'old' if old else 'new'}.onnx", lambda: _written(name, old)))


def _written(name: str, old: bool) -> bytes:
    module = built(name)
    inputs = parse_inputs((NETS[name][1],))
    if not old:
        traced = Traced(name, module, inputs, bind(module, inputs))
        sizes = {"batch": 3, "length": 5}
        free = {dim: size for dim, size in sizes.items() if dim in inputs[0].shape}
        return lower.lower(traced, free, 18).model.SerializeToString()
    example = torch.zeros(2, 5, dtype=torch.int64) if name == "bert" else torch.zeros(2, *map(int, inputs[0].shape[1:]))
    free_axes = {"x": {at: dim for at, dim in enumerate(inputs[0].shape) if isinstance(dim, str)}}
    written: Any = BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module, (example,), written, input_names=["x"], dynamic_axes=free_axes, dynamo=False, opset_version=17
        )
    return bytes(written.getvalue())


def payload(model: onnx.ModelProto) -> Payload:
    """A model as a payload that was never on disk."""
    return onnx_format.undescribed({"m.onnx": model.SerializeToString()})


def run(model: onnx.ModelProto, feeds: dict[str, Array]) -> Array:
    """What onnxruntime itself answers, the first output."""
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, feeds)[0])


def inputs(net: str, count: int, seed: int) -> dict[str, Array]:
    """Random samples for a net by name."""
    random = np.random.default_rng(seed)
    if net == "bert":
        return {"x": random.integers(0, 20, (count, 16))}
    size = 28 if net == "vit" else 12
    return {"x": random.standard_normal((count, 1, size, size)).astype(np.float32)}
