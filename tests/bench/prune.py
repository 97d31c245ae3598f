"""Pruning on Fashion-MNIST, on one thread, timed in turns with the input; prints one table.

    python tests/bench/prune.py [residual] [peer] [sparse] [vit] [--folder DIR] [--seeds N] [--seconds S]

Trains the nets of `fashion.py` first, unless `--folder` holds their exports, `residual.onnx` and `vit.onnx`. The
residual net loses half of its multiply-accumulates, once with each seed, and is quantized then; Torch-Pruning does the
same at its defaults (`pip install torch-pruning`), fine-tuned by the same recipe. No choice sees the test split.
"""

import argparse
import contextlib
import copy
import importlib.util
import tempfile
from dataclasses import dataclass
from pathlib import Path

import fashion
import torch
from torch import nn

from modelctl.artifact import Artifact
from modelctl.data import open_data
from modelctl.formats import onnx as onnx_format
from modelctl.graph import measure
from modelctl.graph.session import Session
from modelctl.options import ExportOptions, PruneOptions, PruneSchedule, QuantizeOptions
from modelctl.steps.export import Source, export
from modelctl.steps.prune import prune
from modelctl.steps.quantize import quantize

EPOCHS = {"residual": 14, "vit": 12}
BATCHES = (1, 64)


@dataclass(frozen=True)
class Bench:
    """Where things are, and how long a model is timed."""

    folder: Path
    data: str
    seeds: int
    seconds: float

    def row(self, name: str, before: Artifact, after: Path) -> None:
        """Print what `after` is beside `before`."""
        old, new = before.load(), onnx_format.open_model(after).load()
        data = open_data(self.data, Session(old).inputs, 0)
        speeds = []
        for batch in BATCHES:
            trial = measure.Trial(samples=data.test, data=data.sha256, batch=batch, threads=2, seconds=self.seconds)
            found = measure.compare(old, new, trial)
            speeds.append(f"×{found['latency']['speedup']['value']:.2f}")
        size, accuracy = found["size_bytes"] / found["size_bytes_before"], found["accuracy"]["value"]
        print(f"{name:<44} {accuracy:>8.2%} {speeds[0]:>8} {speeds[1]:>8} {size:>7.3f} {1 / size:>7.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=["residual", "peer", "sparse", "vit"])
    parser.add_argument(
        "--folder", type=Path, help="where to work and what to use again; by default a temporary folder"
    )
    parser.add_argument("--data", type=Path, default=fashion.FASHION_MNIST)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0)
    given = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = given.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        bench = Bench(folder, str(given.data), given.seeds, given.seconds)
        print(f"{'model':<44} {'accuracy':>8} {'batch 1':>8} {'batch 64':>8} {'size':>7} {'÷':>7}")
        for part in given.parts:
            {"residual": residual, "peer": peer, "sparse": sparse, "vit": vit}[part](bench)


def residual(bench: Bench) -> None:
    """Half of the multiply-accumulates, then int8; and the same by Torch-Pruning."""
    model = trained(bench, "residual")
    bench.row("residual net", model, model.path)
    for seed in range(bench.seeds):
        small = bench.folder / f"residual-half-{seed}.onnx"
        options = PruneOptions(
            target="macs=0.5,params=0.45", data=bench.data, flip=True, seed=seed, threads=0, force=True
        )
        prune(model, small, options)
        bench.row(f"prune --target {options.target}, seed {seed}", model, small)
        int8 = bench.folder / f"residual-half-int8-{seed}.onnx"
        quantize(Artifact.open(small), int8, QuantizeOptions(data=bench.data, seed=seed, force=True))
        bench.row(f"  then quantize, seed {seed}", model, int8)


def peer(bench: Bench) -> None:
    """Half of the multiply-accumulates by Torch-Pruning."""
    model = trained(bench, "residual")
    for round_to in (None, 8):
        torch_pruned(bench, model, round_to)


def sparse(bench: Bench) -> None:
    """90 % of the weights zero."""
    model = trained(bench, "residual")
    out = bench.folder / "residual-sparse.onnx"
    options = PruneOptions(
        sparsity=0.9, schedule=PruneSchedule.ITERATIVE, epochs=1, data=bench.data, flip=True, threads=0, force=True
    )
    prune(model, out, options)
    bench.row("prune --sparsity 0.9", model, out)


def vit(bench: Bench) -> None:
    """Heads and hidden widths of a transformer."""
    model = trained(bench, "vit")
    bench.row("vision transformer", model, model.path)
    out = bench.folder / "vit-half.onnx"
    prune(model, out, PruneOptions(target="macs=0.55", data=bench.data, flip=True, threads=0, force=True))
    bench.row("prune --target macs=0.55", model, out)


def trained(bench: Bench, name: str) -> Artifact:
    """The export of a net of `fashion.py`, which is trained if it is not there."""
    out = bench.folder / f"{name}.onnx"
    if not out.exists():
        net = {"residual": fashion.residual, "vit": fashion.vit}[name]()
        fashion.train(net, Path(bench.data), EPOCHS[name], transformer=name == "vit")
        weights = bench.folder / f"{name}.pt"
        torch.save(net.state_dict(), weights)
        exported(f"fashion:{name}", weights, out)
    return Artifact.open(out)


def exported(factory: str, weights: Path, out: Path) -> None:
    options = ExportOptions(weights=weights, inputs=("x:float32[batch,1,28,28]",), force=True)
    export(Source.parse(factory), out, options)


def torch_pruned(bench: Bench, model: Artifact, round_to: int | None) -> None:
    """Torch-Pruning's magnitude pruner to half the multiply-accumulates, and our recipe of fine-tuning by hand."""
    label = f"Torch-Pruning, {'defaults' if round_to is None else f'round_to={round_to}'}"
    if importlib.util.find_spec("torch_pruning") is None:
        print(f"{label}: not installed")
        return
    import torch_pruning as tp

    whole = fashion.residual()
    whole.load_state_dict(torch.load(bench.folder / "residual.pt", weights_only=True))
    example = torch.zeros(1, 1, 28, 28)
    goal = tp.utils.count_ops_and_params(whole, example)[0] / 2
    for percent in range(5, 95):
        net = copy.deepcopy(whole).train()
        ignored = [one for one in net.modules() if isinstance(one, nn.Linear)]
        pruner = tp.pruner.BasePruner(
            net,
            example,
            importance=tp.importance.GroupMagnitudeImportance(),
            pruning_ratio=percent / 100,
            ignored_layers=ignored,
            round_to=round_to,
        )
        pruner.step()
        if tp.utils.count_ops_and_params(net, example)[0] <= goal:
            break
    else:
        print(f"{label}: does not come down to half")
        return
    fashion.fine_tune(net, whole.eval(), Path(bench.data), epochs=2)
    out = bench.folder / "torch-pruning.onnx"
    batch = torch.export.Dim("batch", max=1024)
    torch.onnx.export(
        net.eval(),
        (example.repeat(2, 1, 1, 1),),
        out,
        dynamo=True,
        dynamic_shapes=({0: batch},),
        input_names=["x"],
        external_data=False,
        verbose=False,
    )
    bench.row(label, model, out)


if __name__ == "__main__":
    main()
