"""Small nets of the kinds that the larger ones of the bench are not: depthwise, recurrent, tabular, old, of two inputs.

    python tests/bench/small.py mobilenet|lstm|two|old|mlp|gru OUT.pt [--epochs N] [--threads N]

`mobilenet`, `lstm`, `two` and `old` learn Fashion-MNIST as the nets of `fashion.py` do, `mlp` and `gru` the digits that
ship with modelctl (the training part of seed 0, so that no step is scored on what was learned).
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fashion
import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from torch.nn import functional

from modelctl.data import digits, open_data
from modelctl.manifest import TensorSpec

DIGIT = TensorSpec(name="x", dtype="float32", shape=("batch", 1, 8, 8))


def _separable(before: int, after: int, stride: int) -> list[nn.Module]:
    """A depthwise 3 × 3 convolution and a 1 × 1 one, as in MobileNet."""
    depthwise = nn.Conv2d(before, before, 3, stride, 1, groups=before, bias=False)
    pointwise = nn.Conv2d(before, after, 1, bias=False)
    return [depthwise, nn.BatchNorm2d(before), nn.ReLU6(), pointwise, nn.BatchNorm2d(after), nn.ReLU6()]


def mobilenet() -> nn.Module:
    """A MobileNet for pictures of 28 × 28, about 95,000 parameters."""
    layers = [(32, 64, 1), (64, 96, 2), (96, 96, 1), (96, 192, 2), (192, 192, 1)]
    stem = [nn.Conv2d(1, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU6()]
    body = [one for sizes in layers for one in _separable(*sizes)]
    return nn.Sequential(*stem, *body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(192, 10))


class Rows(nn.Module):
    """A picture read row by row by a recurrent layer."""

    def __init__(self, layer: type[nn.LSTM] | type[nn.GRU], row: int, width: int) -> None:
        super().__init__()
        self.layer = layer(row, width, batch_first=True)
        self.head = nn.Linear(width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        seen, _ = self.layer(x.squeeze(1))
        answer: torch.Tensor = self.head(seen[:, -1])
        return answer


def lstm() -> nn.Module:
    """An LSTM 128 wide over 28 rows of 28."""
    return Rows(nn.LSTM, 28, 128)


def gru() -> nn.Module:
    """A GRU 96 wide over 8 rows of 8."""
    return Rows(nn.GRU, 8, 96)


def mlp() -> nn.Module:
    """Three dense layers on the 64 values of a digit."""
    layers = [nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 10)]
    return nn.Sequential(nn.Flatten(), *layers)


class Halves(nn.Module):
    """The upper and the lower half of a picture, each seen by its own convolutions; trained on whole ones."""

    def __init__(self) -> None:
        super().__init__()
        self.upper, self.lower = self._eye(), self._eye()
        self.mix = nn.Sequential(nn.Linear(2 * 32 * 4 * 7, 128), nn.ReLU())
        self.head = nn.Linear(128, 10)

    @staticmethod
    def _eye() -> nn.Module:
        layers = [nn.Conv2d(1, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU(), nn.Flatten()]
        return nn.Sequential(*layers)

    def seen(self, upper: torch.Tensor, lower: torch.Tensor) -> torch.Tensor:
        mixed: torch.Tensor = self.mix(torch.cat([self.upper(upper), self.lower(lower)], 1))
        return mixed

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        answer: torch.Tensor = self.head(self.seen(x[:, :, :14], x[:, :, 14:]))
        return answer


class Apart(nn.Module):
    """`Halves` as it is exported: two inputs, and two outputs, logits and what they were made from."""

    def __init__(self) -> None:
        super().__init__()
        self.halves = Halves()

    def forward(self, upper: torch.Tensor, lower: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        seen = self.halves.seen(upper, lower)
        return self.halves.head(seen), seen


def two() -> nn.Module:
    """What `two.pt` holds the weights of, as it is exported."""
    return Apart()


def old() -> nn.Module:
    """Two convolutions and two dense layers, to be written as exporters wrote in 2019."""
    first = [nn.Conv2d(1, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    second = [nn.Conv2d(16, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU()]
    return nn.Sequential(*first, *second, nn.Flatten(), nn.Linear(32 * 49, 96), nn.ReLU(), nn.Linear(96, 10))


def old_onnx(weights: dict[str, torch.Tensor]) -> onnx.ModelProto:
    """`old` in opset 9 and IR 3: weights are inputs too, batch norms and a dropout still there, Reshape."""
    held = {name: one.numpy() for name, one in weights.items() if not name.endswith("tracked")}
    held["shape"] = np.array([-1, 32 * 49], np.int64)
    conv: dict[str, Any] = {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}

    def norm(at: int, taken: str, given: str) -> onnx.NodeProto:
        parts = [f"{at}.{name}" for name in ("weight", "bias", "running_mean", "running_var")]
        return helper.make_node("BatchNormalization", [taken, *parts], [given], epsilon=1e-5)

    nodes = [
        helper.make_node("Conv", ["x", "0.weight"], ["c1"], **conv),
        norm(1, "c1", "n1"),
        helper.make_node("Relu", ["n1"], ["r1"]),
        helper.make_node("Conv", ["r1", "3.weight"], ["c2"], **conv),
        norm(4, "c2", "n2"),
        helper.make_node("Relu", ["n2"], ["r2"]),
        helper.make_node("Reshape", ["r2", "shape"], ["flat"]),
        helper.make_node("Dropout", ["flat"], ["kept"], ratio=0.5),
        helper.make_node("Gemm", ["kept", "7.weight", "7.bias"], ["h"], transB=1),
        helper.make_node("Relu", ["h"], ["r3"]),
        helper.make_node("Gemm", ["r3", "9.weight", "9.bias"], ["logits"], transB=1),
    ]
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 1, 28, 28]),
        *(
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(one.dtype), one.shape)
            for name, one in held.items()
        ),
    ]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 10])]
    graph = helper.make_graph(
        nodes, "old", inputs, outputs, [numpy_helper.from_array(one, name) for name, one in held.items()]
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 9)], ir_version=3)


FASHION: dict[str, Callable[[], nn.Module]] = {"mobilenet": mobilenet, "lstm": lstm, "two": Halves, "old": old}
DIGITS: dict[str, Callable[[], nn.Module]] = {"mlp": mlp, "gru": gru}
EPOCHS = {"mobilenet": 4, "lstm": 4, "two": 4, "old": 4, "mlp": 60, "gru": 80}


def weights(name: str, data: Path = fashion.FASHION_MNIST, epochs: int | None = None) -> dict[str, torch.Tensor]:
    """The trained weights of a net, named as in what is exported."""
    torch.manual_seed(0)
    epochs = epochs or EPOCHS[name]
    if name in DIGITS:
        net = DIGITS[name]()
        learn_digits(net, epochs)
    else:
        net = FASHION[name]()
        fashion.train(net, data, epochs, transformer=True)
    prefix = "halves." if name == "two" else ""
    return {prefix + key: one.contiguous() for key, one in net.state_dict().items()}


def learn_digits(net: nn.Module, epochs: int) -> None:
    """Teach `net` in place the training part of the digits: AdamW, one cycle, steps of 64."""
    train = open_data(str(digits.path()), [DIGIT], 0).train
    assert train.labels is not None
    pictures, labels = torch.from_numpy(train.inputs["x"]), torch.from_numpy(train.labels)
    steps = len(labels) // 64
    optimizer = torch.optim.AdamW(net.parameters(), 3e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=epochs * steps)
    net.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(labels))[: steps * 64].reshape(steps, 64):
            loss = functional.cross_entropy(net(pictures[rows]), labels[rows], label_smoothing=0.05)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
    net.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("net", choices=[*FASHION, *DIGITS])
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", type=Path, default=fashion.FASHION_MNIST)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.save(weights(given.net, given.data, given.epochs), given.out)


if __name__ == "__main__":
    main()
