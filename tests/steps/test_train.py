"""Training an ONNX file further: better, reproducible, resumable after a kill; or nothing at all."""

import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import nets
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from modelctl import integrity
from modelctl.artifact import Artifact
from modelctl.cli.main import status_of
from modelctl.data.samples import Array
from modelctl.errors import CheckFailed, DataError, ModelctlError, UnsupportedError, UsageError
from modelctl.options import Device, Loss, Optimizer, Precision, TrainOptions
from modelctl.steps.train import origin, train

OPTIONS = TrainOptions(data="samples.npz", epochs=8, batch_size=32, lr=0.02, threads=1)
QUICK = replace(OPTIONS, epochs=1)


def samples(count: int = 400) -> tuple[Array, Array]:
    """Points in the plane around three centres, and which."""
    labels = np.arange(count) % 3
    centres = np.array([[0, 2], [2, -1], [-2, -1]])
    noise = np.random.default_rng(0).normal(0, 0.5, (count, 2))
    return (centres[labels] + noise).astype(np.float32), labels.astype(np.int64)


def dense(path: Path, last: str = "logits", outputs: int = 3, batch: int | str = "batch", hidden: int = 16) -> None:
    """An untrained net of two layers with random weights; a Softmax or a Sigmoid at its end if `last` is that."""
    random = np.random.default_rng(1)
    weights = {
        "first.weight": random.normal(size=(2, hidden)),
        "first.bias": random.normal(size=hidden),
        "second.weight": random.normal(size=(hidden, outputs)),
        "second.bias": np.zeros(outputs),
    }
    nodes = [
        helper.make_node("Gemm", ["x", "first.weight", "first.bias"], ["h"]),
        helper.make_node("Relu", ["h"], ["features"]),
        helper.make_node("Gemm", ["features", "second.weight", "second.bias"], ["logits"]),
    ]
    if last != "logits":
        nodes.append(helper.make_node(last, ["logits"], ["shares"]))
    name = "logits" if last == "logits" else "shares"
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 2])],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, outputs]),
            helper.make_tensor_value_info("features", TensorProto.FLOAT, [batch, hidden]),
        ],
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)


def in_half(model: onnx.ModelProto, path: Path) -> None:
    """Write a model of float32 as one of float16."""
    for one in model.graph.initializer:
        one.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(one).astype(np.float16), one.name))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    onnx.save(model, path)


def weights_of(path: Path | str) -> dict[str, Array]:
    """A model's initializers by name."""
    return {one.name: numpy_helper.to_array(one) for one in onnx.load(path).graph.initializer}


@pytest.fixture(scope="module")
def school(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a net, samples, and what the net becomes."""
    folder = tmp_path_factory.mktemp("school")
    x, y = samples()
    np.savez(folder / "samples.npz", x=x, y=y)
    dense(folder / "net.onnx")
    options = replace(OPTIONS, data=str(folder / "samples.npz"))
    train(Artifact.open(folder / "net.onnx"), folder / "taught.onnx", options)
    return folder


@pytest.fixture
def here(school: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder: the net, the samples, and nothing else."""
    for name in ("net.onnx", "samples.npz"):
        (tmp_path / name).write_bytes((school / name).read_bytes())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def taught(options: TrainOptions, out: str = "t.onnx") -> Artifact:
    return train(Artifact.open(Path("net.onnx")), Path(out), options)


def refused(here: Path, kind: type[ModelctlError], told: str, options: TrainOptions, out: str = "t.onnx") -> None:
    before = sorted(here.iterdir())
    with pytest.raises(kind, match=told):
        taught(options, out)
    assert sorted(here.iterdir()) == before


def test_a_net_is_taught_measured_and_proven(school: Path) -> None:
    made = Artifact.open(school / "taught.onnx")
    integrity.check(made)
    metrics = made.manifest.metrics
    assert metrics["accuracy_before"]["value"] < 0.7
    assert metrics["accuracy"]["value"] > 0.95
    assert metrics["accuracy"]["samples"] == 40  # the test part alone
    assert len(metrics["loss"]) == len(metrics["validation_loss"]) == 8
    assert metrics["loss"][-1] < metrics["loss"][0]
    assert metrics["kept_epoch"] == 8
    assert metrics["learned"] == metrics["parameters"] == 2 * 16 + 16 + 16 * 3 + 3
    assert metrics["parity"]["batches"] == [1, 3, 8]
    assert "speedup" in metrics["latency"]
    step = made.manifest.made_by
    assert step is not None
    assert step.parents == (Artifact.open(school / "net.onnx").digest,)
    assert step.choices == {"loss": "cross-entropy", "taught": "logits", "device": "cpu"}


def test_the_graph_stays_what_it_was_but_for_its_weights(school: Path) -> None:
    before, after = onnx.load(school / "net.onnx"), onnx.load(school / "taught.onnx")
    for model in (before, after):
        for one in model.graph.initializer:
            one.raw_data = b""
    assert before == after


def test_same_seed_gives_the_same_bytes(school: Path, here: Path) -> None:
    taught(OPTIONS)
    assert (here / "t.onnx").read_bytes() == (school / "taught.onnx").read_bytes()
    assert origin(Artifact.open(Path("net.onnx")), OPTIONS).is_current(Path("t.onnx"))
    taught(replace(OPTIONS, seed=1), "other.onnx")
    assert (here / "other.onnx").read_bytes() != (school / "taught.onnx").read_bytes()


def test_what_goes_into_a_softmax_is_what_is_taught(here: Path) -> None:
    dense(here / "net.onnx", "Softmax")
    made = taught(OPTIONS)
    assert made.manifest.made_by is not None
    assert made.manifest.made_by.choices["taught"] == "logits"
    assert made.manifest.metrics["accuracy"]["value"] > 0.95


def test_a_sigmoid_learns_yes_and_no(here: Path) -> None:
    dense(here / "net.onnx", "Sigmoid", outputs=1)
    x, y = samples()
    np.savez(here / "samples.npz", x=x, y=(y == 0).astype(np.int64))
    made = taught(replace(OPTIONS, loss=Loss.BCE))
    assert made.manifest.made_by is not None
    assert made.manifest.made_by.choices["taught"] == "logits"
    accuracy = made.manifest.metrics["accuracy"]
    assert (accuracy["metric"], accuracy["value"] < 0.2) == ("rmse", True)


@pytest.mark.parametrize("loss", [Loss.AUTO, Loss.L1])
def test_float_labels_are_numbers_to_come_near_to(here: Path, loss: Loss) -> None:
    x, _ = samples()
    np.savez(here / "samples.npz", x=x, y=np.stack([x[:, 0], x[:, 1], x.sum(1)], 1))
    metrics = taught(replace(OPTIONS, loss=loss)).manifest.metrics
    assert metrics["accuracy"]["value"] < metrics["accuracy_before"]["value"] / 4


def test_another_output_can_be_the_one_that_learns(here: Path) -> None:
    x, _ = samples()
    np.savez(here / "samples.npz", x=x, y=np.tile(x[:, :1], 16))
    made = taught(replace(OPTIONS, output="features"))
    before, after = weights_of("net.onnx"), weights_of("t.onnx")
    assert [name for name in before if not np.array_equal(before[name], after[name])] == ["first.weight", "first.bias"]
    assert made.manifest.metrics["accuracy"]["value"] < made.manifest.metrics["accuracy_before"]["value"]


def test_only_what_is_not_frozen_learns(here: Path) -> None:
    made = taught(replace(QUICK, onlys=("second.*",), freezes=("*.bias",)))
    before, after = weights_of("net.onnx"), weights_of("t.onnx")
    assert [name for name in before if not np.array_equal(before[name], after[name])] == ["second.weight"]
    assert made.manifest.metrics["learned"] == 48


def test_a_teacher_is_followed_and_is_a_parent(school: Path, here: Path) -> None:
    (here / "teacher.onnx").write_bytes((school / "taught.onnx").read_bytes())
    x, _ = samples()
    np.savez(here / "samples.npz", x=x)
    made = taught(replace(OPTIONS, teacher=Path("teacher.onnx")))
    assert made.manifest.made_by is not None
    assert made.manifest.made_by.parents[1] == Artifact.open(Path("teacher.onnx")).digest
    assert made.manifest.metrics["loss"][-1] < made.manifest.metrics["loss"][0] / 10


def test_pictures_learn_flipped_with_a_teacher_in_bfloat16_on_whole_batches(here: Path) -> None:
    nets.save(nets.convolutional(batch=20), here / "net.onnx")
    nets.save_npz(here / "samples.npz", 500)
    options = replace(QUICK, flip=True, teacher=Path("net.onnx"), precision=Precision.BFLOAT16, optimizer=Optimizer.SGD)
    made = taught(replace(options, lr=0.002, clip=1.0))
    assert made.manifest.metrics["accuracy"]["value"] > 0.6
    before, after = weights_of("net.onnx"), weights_of("t.onnx")
    assert not np.array_equal(before["mean"], after["mean"])  # batch normalization has seen the samples


def test_weights_in_few_bits_learn(here: Path) -> None:
    in_half(onnx.load("net.onnx"), here / "net.onnx")
    made = taught(replace(OPTIONS, lr=1e-4, epochs=3))
    losses = made.manifest.metrics["loss"]
    assert losses == sorted(losses, reverse=True)
    assert losses[2] < losses[0] - 0.01  # steps as small as these are lost where half-precision sums are rounded
    assert made.manifest.inputs[0].dtype == "float16"


def test_patience_ends_a_training_that_gains_nothing(here: Path) -> None:
    made = taught(replace(OPTIONS, epochs=30, patience=2, lr=1.0))
    metrics = made.manifest.metrics
    told = metrics["validation_loss"]
    assert len(told) == metrics["kept_epoch"] + 2 < 30
    assert told[metrics["kept_epoch"] - 1] == min(told)


SLOW = ["train", "net.onnx", "-o", "t.onnx", "--data", "samples.npz", "--threads", "1", "--epochs", "6"]
SLOW += ["--batch-size", "2", "--lr", "0.001", "--patience", "5", "-q"]


@pytest.mark.slow
def test_a_killed_training_goes_on_to_the_same_bytes(here: Path) -> None:
    assert status_of([*SLOW, "--checkpoint", "elsewhere"]) == 0
    assert not (here / "elsewhere").exists()
    whole = (here / "t.onnx").read_bytes()
    for name in ("t.onnx", "t.onnx.manifest.json"):
        (here / name).unlink()
    command = [sys.executable, "-m", "modelctl", *SLOW, "--checkpoint", "kept"]
    with subprocess.Popen(command, cwd=here, stderr=subprocess.DEVNULL) as process:
        try:
            while process.poll() is None and not (here / "kept" / "checkpoint.pt").exists():
                time.sleep(0.01)
        finally:
            process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert (here / "kept" / "checkpoint.pt").exists()
    assert not (here / "t.onnx").exists()
    done = subprocess.run([*command[:-3], *command[-2:]], cwd=here, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "going on from kept/checkpoint.pt: epoch " in done.stderr
    assert (here / "t.onnx").read_bytes() == whole
    assert sorted(one.name for one in here.iterdir()) == ["net.onnx", "samples.npz", "t.onnx", "t.onnx.manifest.json"]


def test_a_checkpoint_is_left_where_a_gate_says_no_and_is_of_one_training_only(here: Path) -> None:
    options = replace(QUICK, checkpoint=Path("kept"))
    with pytest.raises(CheckFailed, match="runs at"):
        taught(replace(options, min_speedup=100))
    assert sorted(one.name for one in here.iterdir()) == ["kept", "net.onnx", "samples.npz"]
    with pytest.raises(UsageError, match=r"kept/checkpoint\.pt: belongs to a training of another model"):
        taught(replace(options, seed=3))
    taught(options)  # the gate aside, it is the same training
    assert sorted(one.name for one in here.iterdir()) == ["net.onnx", "samples.npz", "t.onnx", "t.onnx.manifest.json"]
    taught(QUICK, "again.onnx")
    assert (here / "again.onnx").read_bytes() == (here / "t.onnx").read_bytes()


@pytest.mark.parametrize(
    ("changed", "kind", "told"),
    [
        ({"lr": 10.0, "optimizer": Optimizer.SGD, "epochs": 8}, CheckFailed, "training diverged in epoch"),
        ({"max_drop": 0.0, "lr": 1e-9, "min_speedup": 50.0}, CheckFailed, "not accepted: the result runs at"),
        ({"output": "nothing"}, UsageError, "--output nothing: net.onnx has no such output"),
        ({"freezes": ("third.*",)}, UsageError, r"--freeze third\.\*: net.onnx learns no weight of that name"),
        ({"freezes": ("*",)}, UnsupportedError, "net.onnx: no weight is left that learns"),
        ({"freezes": ("first*",), "output": "features", "loss": Loss.MSE}, UnsupportedError, "does not depend on"),
        ({"flip": True}, UnsupportedError, "net.onnx: only pictures"),
        ({"loss": Loss.BCE}, DataError, "samples.npz: bce learns from as many labels as answers"),
        ({"teacher": Path("net.onnx"), "loss": Loss.MSE}, UnsupportedError, "learned as classes, not by mse"),
        ({"teacher": Path("nobody.onnx")}, ModelctlError, "nobody.onnx: no such file"),
        ({"checkpoint": Path("net.onnx")}, UsageError, "net.onnx: is no folder to keep checkpoints in"),
    ],
)
def test_what_can_not_be_learned_is_refused(
    here: Path, changed: dict[str, object], kind: type[ModelctlError], told: str
) -> None:
    refused(here, kind, told, replace(QUICK, **changed))  # type: ignore[arg-type]


def test_samples_that_do_not_fit_are_refused(here: Path) -> None:
    x, y = samples()
    np.savez(here / "samples.npz", x=x)
    refused(here, DataError, "samples.npz: has no labels 'y' to learn from", QUICK)
    np.savez(here / "samples.npz", x=x, y=y + 1)
    refused(here, DataError, "labels run from 1 to 3, but the model answers 3 classes", QUICK)
    np.savez(here / "samples.npz", x=x[:, :1], y=y)
    refused(here, DataError, "expected float32", QUICK)
    dense(here / "net.onnx", batch=64)
    np.savez(here / "samples.npz", x=x[:70], y=y[:70])
    refused(here, DataError, "holds 56 samples to learn from, and the model takes 64 at a time", QUICK)


def test_a_device_that_is_not_there_is_told(here: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is one here")
    refused(
        here, UnsupportedError, "--device cuda: torch finds no CUDA device here", replace(QUICK, device=Device.CUDA)
    )


def test_graphs_that_can_not_be_trained_are_refused_by_name(here: Path) -> None:
    model = onnx.load("net.onnx")
    model.graph.node[1].op_type = "Hardmax"
    model.graph.node[1].name = "choice"
    model.graph.node[1].domain = "elsewhere"
    del model.graph.initializer[:]
    (here / "net.onnx").write_bytes(model.SerializeToString())
    refused(here, ModelctlError, "elsewhere|can't load", QUICK)
    relu = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        "bare",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 2])],
    )
    onnx.save(helper.make_model(relu, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), here / "net.onnx")
    refused(here, UnsupportedError, "net.onnx: holds no float weights that could learn", QUICK)
    refused(here, UnsupportedError, "train writes .onnx", QUICK, out="t.safetensors")


def test_command_tells_in_one_line_what_it_can_not_do(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of(["train", "net.onnx", "-o", "t.onnx"]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "modelctl: error: train needs samples to learn from",
        "modelctl: hint: add --data samples.npz",
    ]
    nodes = [helper.make_node("NonMaxSuppression", ["x", "w"], ["i"], "boxes")]
    graph = helper.make_graph(
        [*nodes, helper.make_node("Gather", ["w", "i"], ["logits"])],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, "boxes", 4])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.ones((1, 1, 5), np.float32), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    (here / "boxes.onnx").write_bytes(model.SerializeToString())
    assert status_of(["train", "boxes.onnx", "-o", "t.onnx", "--data", "samples.npz"]) == 2
    assert capsys.readouterr().err.splitlines()[0] == (
        "modelctl: error: boxes.onnx: the operator NonMaxSuppression (boxes) can be run, not trained"
    )
    command = ["train", "net.onnx", "-o", "t.onnx", "--data", "samples.npz", "--dry-run"]
    assert status_of(command) == 0
    assert not (here / "t.onnx").exists()


def test_a_pipeline_trains_once(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "modelctl.toml").write_text(
        'model = "net.onnx"\ndata = "samples.npz"\n[[step]]\nrun = "train"\nout = "build/t.onnx"\nepochs = 1\n'
        'freezes = ["first.*"]\nlabel_smoothing = 0.1\nfirst = 1\n'
    )
    assert status_of(["run"]) == 2
    assert "unknown option: first" in capsys.readouterr().err
    text = (here / "modelctl.toml").read_text().replace("first = 1\n", "")
    (here / "modelctl.toml").write_text(text)
    assert status_of(["run"]) == 0
    made = (here / "build" / "t.onnx").stat().st_mtime_ns
    assert status_of(["run"]) == 0
    assert (here / "build" / "t.onnx").stat().st_mtime_ns == made


def test_missing_torch_is_told_with_its_extra(here: Path) -> None:
    code = "import sys; sys.modules['torch'] = None; from modelctl.cli.main import main; main()"
    command = ["train", "net.onnx", "-o", "t.onnx", "--data", "samples.npz"]
    done = subprocess.run([sys.executable, "-c", code, *command], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "train needs torch, which is not installed" in done.stderr
    assert not (here / "t.onnx").exists()
