"""Distilling: a student that is smaller, taught, measured, reproducible; or nothing at all."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from modelctl import integrity
from modelctl.artifact import Artifact
from modelctl.cli.main import status_of
from modelctl.data.samples import Array
from modelctl.errors import CheckFailed, DataError, ModelctlError, UnsupportedError, UsageError
from modelctl.graph.session import Session
from modelctl.options import DistillOptions
from modelctl.steps.distill import distill, origin

OPTIONS = DistillOptions(student_size=200, data="samples.npz", epochs=12, batch_size=32, lr=0.02, threads=1)
OPTIONS = replace(OPTIONS, allow_regression=True)  # models as small as these are as fast as the noise lets them be
QUICK = replace(OPTIONS, epochs=1)

STUDENT = """
import torch
from torch import nn

class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.1), nn.Linear(8, 3))

    def forward(self, x):
        return self.layers(x)

class Many(Small):
    def forward(self, x):
        return super().forward(x), x

class Narrow(Small):
    def forward(self, x):
        return super().forward(x)[:, :2]

class Failing(Small):
    def forward(self, x):
        if self.training:
            raise RuntimeError("not today")
        return super().forward(x)

class Whole(Small):
    def forward(self, x):
        return super().forward(x).round().long()

class Frozen(Small):
    def __init__(self):
        super().__init__()
        self.requires_grad_(False)

class Detached(Small):
    def forward(self, x):
        return super().forward(x).detach()

class Lazy(Small):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.LazyLinear(8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.1), nn.LazyLinear(3))

def text():
    return "no module"
"""


def samples(count: int = 400) -> tuple[Array, Array]:
    labels = np.arange(count) % 3
    centres = np.array([[0, 2], [2, -1], [-2, -1]])
    noise = np.random.default_rng(0).normal(0, 0.5, (count, 2))
    return (centres[labels] + noise).astype(np.float32), labels.astype(np.int64)


def write_teacher(path: Path, last: str = "logits", hidden: int = 256) -> None:
    """A wide net with random features and a fitted last layer: about 1,500 parameters, all but always right."""
    x, y = samples()
    random = np.random.default_rng(1)
    first, bias = random.normal(size=(2, hidden)).astype(np.float32), random.normal(size=hidden).astype(np.float32)
    features = np.maximum(x @ first + bias, 0)
    second = 8 * np.linalg.solve(features.T @ features + 10 * np.eye(hidden), features.T @ np.eye(3)[y])
    weights = {"first": first, "bias": bias, "second": second.astype(np.float32)}
    nodes = [
        helper.make_node("Gemm", ["x", "first", "bias"], ["h"]),
        helper.make_node("Relu", ["h"], ["features"]),
        helper.make_node("MatMul", ["features", "second"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"]),
        helper.make_node("ReduceMax", ["logits"], ["top"], keepdims=0, axes=[1]),
    ]
    shape: list[str | int | None] = ["batch"] if last == "top" else ["batch", 3]
    graph = helper.make_graph(
        nodes[: {"logits": 3, "probabilities": 4}.get(last)],
        "teacher",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 2])],
        [helper.make_tensor_value_info(last, TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, path)


@pytest.fixture(scope="module")
def school(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a teacher, samples, and a student made of them."""
    folder = tmp_path_factory.mktemp("school")
    x, y = samples()
    np.savez(folder / "samples.npz", x=x, y=y)
    write_teacher(folder / "teacher.onnx")
    (folder / "pupils.py").write_text(STUDENT)
    data = str(folder / "samples.npz")
    distill(Artifact.open(folder / "teacher.onnx"), folder / "student.onnx", replace(OPTIONS, data=data))
    return folder


@pytest.fixture
def here(school: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder: the teacher, the samples, the pupils' code, and nothing else."""
    for name in ("teacher.onnx", "samples.npz", "pupils.py"):
        (tmp_path / name).write_bytes((school / name).read_bytes())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(here: Path, kind: type[ModelctlError], told: str, options: DistillOptions, out: str = "s.onnx") -> None:
    before = sorted(here.iterdir())
    with pytest.raises(kind, match=told):
        distill(Artifact.open(Path("teacher.onnx")), Path(out), options)
    assert sorted(one for one in here.iterdir() if one.name != "__pycache__") == before


def test_student_is_small_good_and_measured(school: Path) -> None:
    made = Artifact.open(school / "student.onnx")
    metrics = made.manifest.metrics
    assert metrics["parameters"] <= 200
    assert metrics["parameters_before"] == 2 * 256 + 256 + 256 * 3
    assert metrics["parameter_ratio"] > 7
    assert metrics["accuracy_before"]["value"] > 0.97
    assert metrics["accuracy"]["value"] > 0.95
    assert metrics["accuracy"]["samples"] == 40  # the test part alone
    assert metrics["agreement"] > 0.95
    assert metrics["latency"]["speedup"]["value"] > 0
    assert metrics["size_bytes"] == made.size_bytes < metrics["size_bytes_before"]
    assert metrics["parity"]["batches"] == [1, 3, 8]


def test_manifest_names_teacher_data_and_choices(school: Path) -> None:
    made = Artifact.open(school / "student.onnx")
    teacher = Artifact.open(school / "teacher.onnx")
    integrity.check(made)
    step = made.manifest.made_by
    assert step is not None
    assert step.parents == (teacher.digest,)
    assert [one.digest for one in made.manifest.lineage] == [teacher.digest]
    assert step.options["data"]["name"] == "samples.npz"
    assert step.choices["student"] == "mlp"
    assert step.choices["teacher_answers"] == "logits"
    assert step.choices["parameters"] == made.manifest.metrics["parameters"]
    session = Session(made.load())
    assert [one.name for one in (*session.inputs, *session.outputs)] == ["x", "logits"]
    assert made.manifest.inputs == session.inputs


def test_same_seed_gives_the_same_bytes(school: Path, here: Path) -> None:
    distill(Artifact.open(Path("teacher.onnx")), Path("again.onnx"), OPTIONS)
    assert (here / "again.onnx").read_bytes() == (school / "student.onnx").read_bytes()
    assert origin(Artifact.open(Path("teacher.onnx")), OPTIONS).is_current(Path("again.onnx"))
    other = replace(OPTIONS, seed=1)
    assert not origin(Artifact.open(Path("teacher.onnx")), other).is_current(Path("again.onnx"))


def test_own_student_learns_from_probabilities_without_labels(here: Path) -> None:
    write_teacher(here / "teacher.onnx", last="probabilities")
    np.savez(here / "samples.npz", x=samples()[0])
    options = replace(OPTIONS, student="pupils:Lazy", student_size=None)
    made = distill(Artifact.open(Path("teacher.onnx")), Path("s.onnx"), options)
    assert made.manifest.metrics["agreement"] > 0.9
    assert "accuracy" not in made.manifest.metrics
    assert made.manifest.made_by is not None
    assert made.manifest.made_by.choices["teacher_answers"] == "probabilities"
    assert list(made.manifest.made_by.options["student"]["files"]) == ["pupils.py"]


def test_student_that_is_no_smaller_is_refused(here: Path) -> None:
    refused(here, CheckFailed, "no smaller than its teacher", replace(QUICK, student_size=100_000))


def test_student_over_its_budget_is_not_written(here: Path) -> None:
    options = replace(QUICK, student_size=40, lr=1e-9, max_drop=1.0)
    refused(here, CheckFailed, "not accepted: the result loses .* points of top1, at most 1", options)


def test_impossible_size_is_refused(here: Path) -> None:
    refused(here, UnsupportedError, "has at least 19 parameters", replace(QUICK, student_size=5))


@pytest.mark.parametrize(
    ("student", "kind", "told"),
    [
        ("pupils:Narrow", UsageError, r"answers float32\[3,2\] where the teacher answers float32\[3,3\]"),
        ("pupils:Whole", UsageError, r"answers int64\[3,3\] where"),
        ("pupils:Frozen", UnsupportedError, "no parameter that learns"),
        ("pupils:Detached", UnsupportedError, "don't depend on anything that learns"),
        ("pupils:Many", ModelctlError, "names 1 outputs, but forward returns 2"),
        ("pupils:Failing", ModelctlError, "failed in training: pupils.py:.*not today"),
        ("pupils:text", UsageError, "a factory returns a torch.nn.Module"),
        ("pupils:nobody", UsageError, "has no 'nobody'"),
    ],
)
def test_student_that_cannot_learn_is_refused(here: Path, student: str, kind: type[ModelctlError], told: str) -> None:
    refused(here, kind, told, replace(QUICK, student=student, student_size=None))


def test_teacher_that_is_no_classifier_is_refused(here: Path) -> None:
    write_teacher(here / "teacher.onnx", last="top")
    refused(here, UnsupportedError, r"answers float32\[320\], and distill learns from \[batch, classes\]", QUICK)


def test_labels_that_are_not_the_teachers_classes_are_refused(here: Path) -> None:
    np.savez(here / "samples.npz", x=samples()[0], y=samples()[1] + 1)
    refused(here, UnsupportedError, "labels are not classes from 0 to 2", QUICK)
    np.savez(here / "samples.npz", x=np.zeros((40, 5), np.float32))
    refused(here, DataError, "expected float32", QUICK)


def test_other_formats_are_refused(here: Path) -> None:
    refused(here, UnsupportedError, "distill writes .onnx", QUICK, out="s.safetensors")
    (here / "weights.pt").write_bytes(b"weights")
    with pytest.raises(UnsupportedError, match="distill reads onnx, this is checkpoint"):
        distill(Artifact.open(Path("weights.pt")), Path("s.onnx"), QUICK)


def test_command_says_what_is_missing(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of(["distill", "teacher.onnx", "-o", "s.onnx", "--student-size", "100"]) == 2
    assert "distill needs samples to learn from" in capsys.readouterr().err
    assert status_of(["distill", "teacher.onnx", "-o", "s.onnx", "--data", "samples.npz"]) == 2
    assert "exactly one of --student, --student-size" in capsys.readouterr().err
    command = ["distill", "teacher.onnx", "-o", "s.onnx", "--data", "samples.npz", "--student-size", "100", "--dry-run"]
    assert status_of(command) == 0
    assert not (here / "s.onnx").exists()


def test_missing_torch_is_told_with_its_extra(here: Path) -> None:
    code = "import sys; sys.modules['torch'] = None; from modelctl.cli.main import main; main()"
    command = ["distill", "teacher.onnx", "-o", "s.onnx", "--data", "samples.npz", "--student-size", "100"]
    done = subprocess.run([sys.executable, "-c", code, *command], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "distill needs torch, which is not installed" in done.stderr
    assert "modelctl: hint: pip install 'modelctl[torch]'" in done.stderr
    assert not (here / "s.onnx").exists()
