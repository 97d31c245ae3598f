"""`modelctl inspect` and `modelctl log`: what is told of artifacts, foreign files and sealed ones."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from modelctl.artifact import Artifact
from modelctl.cli.main import status_of
from modelctl.making import Origin, create
from modelctl.manifest import TensorSpec
from modelctl.options import StepOptions

Capture = pytest.CaptureFixture[str]


def make(name: str, step: str, *parents: str, **metrics: object) -> Artifact:
    options = StepOptions(annotations=("commit=1a2b",))
    with create(Path(name), Origin(step, options, tuple(Artifact.open(Path(one)) for one in parents))) as draft:
        draft.path.write_bytes(name.encode() * 100)
        draft.metrics = metrics
        draft.inputs = (TensorSpec(name="x", dtype="float32", shape=("batch", 1, 28, 28)),)
        draft.outputs = (TensorSpec(name="y", dtype="float32", shape=("batch", 10)),)
    return Artifact.open(Path(name))


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.chdir(tmp_path)
    Path("net.pt").write_bytes(b"weights")
    make("digits.onnx", "export", "net.pt", parameters=12)
    make("thin.onnx", "prune", "digits.onnx", parameters=12, sparsity=0.5)
    assert status_of(["keygen", "-o", "author.pem", "--type", "ed25519", "-q"]) == 0
    capsys.readouterr()


def told(capsys: Capture, *arguments: str) -> str:
    assert status_of(list(arguments)) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out


def result(capsys: Capture, *arguments: str) -> dict[str, object]:
    document = json.loads(told(capsys, *arguments, "--json"))
    assert document["ok"] and document["command"] == arguments[0]
    found: dict[str, object] = document["result"]
    return found


def test_log_is_a_tree_down_to_the_checkpoint(capsys: Capture) -> None:
    thin, digits, net = (Artifact.open(Path(name)) for name in ("thin.onnx", "digits.onnx", "net.pt"))
    assert told(capsys, "log", "thin.onnx").splitlines() == [
        f"thin  onnx  prune  sha256:{thin.digest[:12]}  12 parameters  50.0 % zeros",
        f"└── digits  onnx  export  sha256:{digits.digest[:12]}  12 parameters",
        f"    └── net  checkpoint  sha256:{net.digest[:12]}",
    ]
    facts = result(capsys, "log", "thin.onnx")
    assert isinstance(facts["chain"], list)
    assert [one["digest"] for one in facts["chain"]] == [net.digest, digits.digest, thin.digest]
    assert facts["chain"][2]["made_by"]["step"] == "prune" and facts["chain"][2]["metrics"]["sparsity"] == 0.5
    assert facts["roots"] == [{"name": "net", "digest": net.digest}]


def test_log_of_a_foreign_file_is_that_file(capsys: Capture) -> None:
    assert told(capsys, "log", "net.pt").startswith("net  checkpoint  sha256:")


def test_log_of_a_broken_chain_is_exit_1(capsys: Capture) -> None:
    sidecar = Path("thin.onnx.manifest.json")
    plain = json.loads(sidecar.read_text())
    plain["lineage"] = plain["lineage"][1:]
    sidecar.write_text(json.dumps(plain))
    assert status_of(["log", "thin.onnx"]) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("modelctl: error: thin.onnx: the lineage is broken")


def test_inspect_tells_what_an_artifact_is(capsys: Capture) -> None:
    thin = Artifact.open(Path("thin.onnx"))
    assert told(capsys, "inspect", "thin.onnx").splitlines() == [
        f"thin.onnx  artifact, onnx, 900 bytes  sha256:{thin.digest}",
        "  file: thin.onnx  900 bytes",
        "  input: x  float32[batch,1,28,28]",
        "  output: y  float32[batch,10]",
        f"  made by: prune {thin.manifest.made_by and thin.manifest.made_by.version}",
        "  chain: root → export → prune",
        "  figures: 12 parameters, 50.0 % zeros",
        "  annotation: commit=1a2b",
        "  not signed",
    ]
    facts = result(capsys, "inspect", "thin.onnx")
    assert facts["kind"] == "artifact" and facts["parameters"] == 12 and facts["signature"] is None
    assert facts["inputs"] == [{"name": "x", "dtype": "float32", "shape": ["batch", 1, 28, 28]}]


@pytest.mark.parametrize("command", ["inspect", "verify"])
def test_a_history_of_two_roots_is_told_as_log_draws_it(command: str, capsys: Capture) -> None:
    Path("teacher.onnx").write_bytes(b"trained elsewhere")
    make("student.onnx", "distill", "thin.onnx", "teacher.onnx")
    drawn = told(capsys, "log", "student.onnx").splitlines()
    lines = told(capsys, command, "student.onnx").splitlines()
    place = lines.index("  chain:") + 1
    assert lines[place : place + len(drawn)] == [f"    {line}" for line in drawn]
    assert len(drawn) == 5 and drawn[-1].startswith("└── teacher  onnx  sha256:")


def test_inspect_tells_of_signatures_and_that_they_are_not_checked(capsys: Capture) -> None:
    assert status_of(["sign", "thin.onnx", "--key", "author.pem", "-q"]) == 0
    capsys.readouterr()
    assert told(capsys, "inspect", "thin.onnx").splitlines()[-1].endswith("  not checked")
    assert status_of(["sign", "digits.onnx", "--key", "author.pem", "-q"]) == 0
    Path("digits.onnx.dsse.json").replace("thin.onnx.dsse.json")
    capsys.readouterr()
    assert "  signature: not good: " in told(capsys, "inspect", "thin.onnx")


def test_inspect_tells_of_files_that_are_missing_or_of_another_size(capsys: Capture) -> None:
    Path("thin.onnx").write_bytes(b"short")
    assert "  file: thin.onnx  900 bytes  has 5 bytes\n" in told(capsys, "inspect", "thin.onnx")
    facts = result(capsys, "inspect", "thin.onnx")
    assert isinstance(facts["files"], list) and facts["files"][0]["found_bytes"] == 5


def test_inspect_of_a_foreign_file_says_so(capsys: Capture) -> None:
    out = told(capsys, "inspect", "net.pt").splitlines()
    assert out[0].startswith("net.pt  foreign file, checkpoint, 7 bytes")
    assert out[-1] == "  no manifest: nothing is known of how it was made"
    assert result(capsys, "inspect", "net.pt")["manifest"] is None


def test_inspect_of_a_sealed_file_tells_who_may_open_it(capsys: Capture) -> None:
    assert status_of(["keygen", "-o", "reader.pem", "--type", "rsa", "--bits", "2048", "-q"]) == 0
    assert status_of(["encrypt", "thin.onnx", "-o", "thin.sealed", "--recipient", "reader.pub.pem", "-q"]) == 0
    capsys.readouterr()
    out = told(capsys, "inspect", "thin.sealed")
    assert "  opened by: rsa-oaep-sha256 " in out and "  chain: root → export → prune → encrypt\n" in out
    facts = result(capsys, "inspect", "thin.sealed")
    sealed = facts["sealed"]
    assert isinstance(sealed, dict) and sealed["digest"] == Artifact.open(Path("thin.onnx")).digest == facts["digest"]
    Path("thin.sealed.manifest.json").unlink()
    out = told(capsys, "inspect", "thin.sealed")
    assert "sealed file without a manifest" in out and "  opened by: rsa-oaep-sha256 " in out


@pytest.mark.parametrize("command", ["inspect", "log"])
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none.onnx", "none.onnx: no such file"),
        (".", ".: is a folder, not a model file"),
        ("odd.txt", "odd.txt: no format goes by the suffix '.txt'"),
        ("bad.onnx", "bad.onnx.manifest.json: not sound JSON"),
    ],
)
def test_what_is_no_model_file_is_exit_2(command: str, name: str, message: str, capsys: Capture) -> None:
    Path("odd.txt").write_text("x")
    Path("bad.onnx").write_text("x")
    Path("bad.onnx.manifest.json").write_text("{")
    assert status_of([command, name]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(f"modelctl: error: {message}")


def test_a_sealed_file_that_is_none_is_exit_2(capsys: Capture) -> None:
    Path("bad.sealed").write_bytes(b"MCTLSEAL")
    assert status_of(["inspect", "bad.sealed"]) == 2
    assert capsys.readouterr().err.startswith("modelctl: error: bad.sealed: ")


def test_inspect_and_log_start_without_a_tensor_library() -> None:
    code = """
import sys
import modelctl.steps.inspect, modelctl.steps.log
print(sorted({"torch", "onnx", "onnxruntime", "numpy"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\n"
