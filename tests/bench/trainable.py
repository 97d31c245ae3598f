"""Forward and backward of an ONNX graph as modelctl trains it, against the same net written by hand in torch.

    python tests/bench/trainable.py [--rounds N] [--batch N]

The nets of `fashion.py` are exported through modelctl and read back as graphs. Steps of both (forward, cross-entropy,
backward) are taken in turns on the same pictures, in training mode, on one thread and on two, in float32 and with
torch's autocast in bfloat16; printed is the median of the ratios of their times, and of the forward's alone. Kernels
and pictures of the net by hand lie with their channels last, where it is faster so.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import fashion
import numpy as np
import torch
from torch.nn import functional

from modelctl.artifact import Artifact
from modelctl.formats import onnx as onnx_format
from modelctl.graph.trainable import TrainableGraph
from modelctl.options import ExportOptions
from modelctl.steps.export import Source, export

REACH = 1.3


class Step:
    """A net, and one step of its training."""

    def __init__(self, net: torch.nn.Module, pictures: torch.Tensor, labels: torch.Tensor, bfloat16: bool) -> None:
        self.net, self.pictures, self.labels, self.bfloat16 = net, pictures, labels, bfloat16

    def run(self) -> tuple[float, float]:
        """Seconds that the forward took, and the whole step."""
        started = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bfloat16):
            found: Any = self.net(self.pictures)
        answers = found[0] if isinstance(found, tuple) else found
        loss = functional.cross_entropy(answers.float(), self.labels)
        forward = time.perf_counter() - started
        self.net.zero_grad()
        torch.autograd.backward(loss)
        return forward, time.perf_counter() - started


def graph_of(name: str, folder: Path) -> tuple[torch.nn.Module, TrainableGraph]:
    """A net by hand, and as modelctl reads it from its own file."""
    net = {"residual": fashion.residual, "vit": fashion.vit}[name]()
    torch.save(net.state_dict(), folder / f"{name}.pt")
    options = ExportOptions(weights=folder / f"{name}.pt", inputs=("x:float32[batch,1,28,28]",))
    export(Source.parse(f"fashion:{name}"), folder / f"{name}.onnx", options)
    model = onnx_format.parse(Artifact.open(folder / f"{name}.onnx").load())
    return net, TrainableGraph(model, name)


def ratios(by_hand: Step, graph: Step, rounds: int) -> tuple[float, float, float]:
    """Medians over rounds in turns: graph to net by hand, the forward and the whole step; milliseconds by hand."""
    for one in (by_hand, graph, by_hand, graph):
        one.run()
    found = []
    for place in range(rounds):
        first, second = (by_hand, graph) if place % 2 == 0 else (graph, by_hand)
        times = {first: first.run(), second: second.run()}
        hand, ours = times[by_hand], times[graph]
        found.append((ours[0] / hand[0], ours[1] / hand[1], 1e3 * hand[1]))
    forward, step, ms = np.median(found, axis=0)
    return float(forward), float(step), float(ms)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--batch", type=int, default=128)
    given = parser.parse_args()
    torch.manual_seed(0)
    pictures, labels = torch.randn(given.batch, 1, 28, 28), torch.randint(0, 10, (given.batch,))
    print("| net | threads | numbers | by hand, ms a step | forward | forward and backward |")
    print("|---|---|---|---|---|---|")
    worst = 0.0
    with tempfile.TemporaryDirectory() as folder:
        for name in ("residual", "vit"):
            net, graph = graph_of(name, Path(folder))
            net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            net.train()
            graph.train()
            for threads in (1, 2):
                torch.set_num_threads(threads)
                for bfloat16 in (False, True):
                    laid = pictures.contiguous(memory_format=torch.channels_last)
                    steps = (Step(net, laid, labels, bfloat16), Step(graph, pictures, labels, bfloat16))
                    forward, step, ms = ratios(*steps, given.rounds)
                    worst = max(worst, step)
                    kind = "bfloat16" if bfloat16 else "float32"
                    print(f"| {name} | {threads} | {kind} | {ms:.1f} | ×{forward:.2f} | ×{step:.2f} |", flush=True)
    print(f"\nworst ×{worst:.2f}, to reach ×{REACH}")


if __name__ == "__main__":
    main()
