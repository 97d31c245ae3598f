"""The nets that the benchmarks prune and train on Fashion-MNIST, and how they came by their weights.

    python tests/bench/fashion.py residual OUT.pt [--data FOLDER] [--epochs N] [--threads N]

`residual` is a ResNet of three stages of two blocks, 16, 32 and 64 wide (about 175,000 parameters); `vit` is a vision
transformer of four layers, 96 wide, four heads, on patches of 4 × 4 (about 455,000). Both learn from the training split
alone, flipped at random.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from modelctl.data import idx

FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")


class Block(nn.Module):
    """Two 3 × 3 convolutions beside a shortcut, which is a 1 × 1 convolution where the shape changes."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or before != after:
            self.shortcut = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = functional.relu(self.bn1(self.conv1(x)))
        return functional.relu(self.bn2(self.conv2(inner)) + self.shortcut(x))


def residual() -> nn.Module:
    """A ResNet for pictures of 28 × 28."""
    blocks = [
        Block(16, 16, 1),
        Block(16, 16, 1),
        Block(16, 32, 2),
        Block(32, 32, 1),
        Block(32, 64, 2),
        Block(64, 64, 1),
    ]
    stem = [nn.Conv2d(1, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


class Attention(nn.Module):
    """Multi-head self-attention with one matrix each for queries, keys and values."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        q, k, v = (
            one(x).reshape(batch, length, self.heads, width // self.heads).transpose(1, 2)
            for one in (self.q, self.k, self.v)
        )
        mixed = functional.scaled_dot_product_attention(q, k, v)
        answer: torch.Tensor = self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        return answer


class Layer(nn.Module):
    """A transformer layer, normalized first."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.norm1(x))
        answer: torch.Tensor = x + self.mlp(self.norm2(x))
        return answer


class Vit(nn.Module):
    """A vision transformer on 49 patches, which it averages at the end."""

    def __init__(self, width: int = 96, heads: int = 4, layers: int = 4) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, 4, 4)
        self.places = nn.Parameter(torch.randn(1, 49, width) * 0.02)
        self.layers = nn.Sequential(*(Layer(width, heads, 4 * width) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.places
        answer: torch.Tensor = self.head(self.norm(self.layers(tokens)).mean(1))
        return answer


def vit() -> nn.Module:
    """A ViT-tiny for pictures of 28 × 28."""
    return Vit()


def train(net: nn.Module, data: Path, epochs: int, *, transformer: bool = False, seed: int = 0) -> None:
    """Teach `net` in place: SGD with Nesterov (AdamW for a transformer), one cycle, flips."""
    torch.manual_seed(seed)
    pictures, labels = _read(data, "train")
    if transformer:
        optimizer: torch.optim.Optimizer = torch.optim.AdamW(net.parameters(), 2e-3, weight_decay=0.05)
        top = 2e-3
    else:
        top = 0.2
        optimizer = torch.optim.SGD(net.parameters(), top, momentum=0.9, nesterov=True, weight_decay=5e-4)
        net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    steps = len(labels) // 128
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, top, total_steps=epochs * steps, pct_start=0.2)
    for epoch in range(epochs):
        started = time.monotonic()
        net.train()
        order = torch.randperm(len(labels))
        for step in range(steps):
            rows = order[step * 128 : (step + 1) * 128]
            batch = pictures[rows]
            flipped = torch.rand(len(rows)) < 0.5
            batch[flipped] = batch[flipped].flip(3)
            found = net(batch.to(memory_format=torch.channels_last))
            loss = functional.cross_entropy(found, labels[rows], label_smoothing=0.05)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
        print(f"epoch {epoch + 1}: loss {loss.item():.4f}, {time.monotonic() - started:.0f} s", flush=True)
    net.eval()


def fine_tune(net: nn.Module, teacher: nn.Module, data: Path, epochs: int, *, seed: int = 0) -> None:
    """Teach a pruned `net` in place what `teacher` answers, as `prune` does: SGD, one cycle, flips, T = 4."""
    torch.manual_seed(seed)
    pictures, labels = _read(data, "train")
    pictures, labels = pictures[: len(pictures) * 9 // 10], labels[: len(labels) * 9 // 10]
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    steps = len(labels) // 128
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=epochs * steps)
    for _ in range(epochs):
        net.train()
        order = torch.randperm(len(labels))
        for step in range(steps):
            rows = order[step * 128 : (step + 1) * 128]
            batch = pictures[rows]
            flipped = torch.rand(len(rows)) < 0.5
            batch[flipped] = batch[flipped].flip(3)
            with torch.no_grad():
                wanted = functional.log_softmax(teacher(batch) / 4, dim=1)
            answers = net(batch)
            mine = functional.log_softmax(answers / 4, dim=1)
            soft = functional.kl_div(mine, wanted, reduction="batchmean", log_target=True) * 16
            loss = 0.9 * soft + 0.1 * functional.cross_entropy(answers, labels[rows])
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
    net.eval()


def accuracy(net: nn.Module, data: Path) -> float:
    """Share of the test split that `net` tells right."""
    pictures, labels = _read(data, "test")
    with torch.no_grad():
        found = torch.cat([net(pictures[at : at + 500]) for at in range(0, len(pictures), 500)])
    return float((found.argmax(1) == labels).float().mean())


def _read(data: Path, split: str) -> tuple[torch.Tensor, torch.Tensor]:
    samples = idx.scaled(idx.read(data, split, "x"))
    assert samples.labels is not None
    return torch.from_numpy(samples.inputs["x"]), torch.from_numpy(samples.labels.astype(np.int64))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("net", choices=["residual", "vit"])
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", type=Path, default=FASHION_MNIST)
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    net = {"residual": residual, "vit": vit}[given.net]()
    train(net, given.data, given.epochs, transformer=given.net == "vit")
    torch.save(net.state_dict(), given.out)
    parameters = sum(one.numel() for one in net.parameters())
    print(f"{given.net}: {parameters} parameters, {accuracy(net, given.data):.2%} of the test split")


if __name__ == "__main__":
    main()
