"""The pipeline file: checked whole before anything runs, and only what is stale is run."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from modelctl.artifact import Artifact
from modelctl.cli.main import status_of
from modelctl.errors import CheckFailed, IntegrityError, ModelctlError, StoreError, UsageError
from modelctl.knobs import Options
from modelctl.pipeline import execution, plan
from modelctl.report import Report

SEAL = """
model = "model.onnx"

[[step]]
run = "sign"
key = "ed.pem"

[[step]]
run = "encrypt"
out = "build/model.sealed"
recipients = ["rsa.pub.pem"]

[[step]]
run = "push"
to = "sqlite:///models.db/model:1"

[[step]]
run = "verify"
from = "model.onnx"
keys = ["ed.pub.pem"]
roots = ["root.pt"]
"""


@pytest.fixture
def project(tmp_path: Path, make_artifact: Callable[..., Artifact], key_folder: Path) -> Path:
    """A folder with a model, keys and a pipeline that seals it, pushes it and verifies it."""
    make_artifact()
    for name in ("rsa.pem", "rsa.pub.pem", "ed.pem", "ed.pub.pem", "rsa2.pub.pem"):
        (tmp_path / name).write_bytes((key_folder / name).read_bytes())
        (tmp_path / name).chmod(0o600)
    (tmp_path / "modelctl.toml").write_text(SEAL)
    return tmp_path


def run(project: Path, **options: Any) -> Report:
    return execution.run(project / "modelctl.toml", Options(), **options)


def states(report: Report) -> dict[str, str]:
    return {row["step"]: row["state"] for row in report.facts["steps"]}


def told_of(project: Path, text: str) -> ModelctlError:
    (project / "modelctl.toml").write_text(text)
    before = sorted(project.rglob("*"))
    with pytest.raises(ModelctlError) as caught:
        run(project)
    assert sorted(project.rglob("*")) == before
    assert caught.value.message.startswith(f"{project / 'modelctl.toml'}: ")
    caught.value.message = caught.value.message.removeprefix(f"{project / 'modelctl.toml'}: ")
    return caught.value


def test_only_what_is_stale_is_run(project: Path) -> None:
    assert states(run(project)) == {"sign": "signed", "encrypt": "made", "push": "pushed", "verify": "checked"}
    sealed = (project / "build" / "model.sealed").read_bytes()
    assert states(run(project))["encrypt"] == "current"
    assert (project / "build" / "model.sealed").read_bytes() == sealed


def test_changed_option_makes_its_step_stale_and_what_it_made_is_replaced(project: Path) -> None:
    run(project)
    text = SEAL.replace('["rsa.pub.pem"]', '["rsa.pub.pem", "rsa2.pub.pem"]').replace("model:1", "model:2")
    (project / "modelctl.toml").write_text(text)
    assert states(run(project))["encrypt"] == "made"
    sealed = Artifact.open(project / "build" / "model.sealed").manifest.encryption
    assert sealed is not None
    assert len(sealed.recipients) == 2


def test_changed_model_makes_what_comes_after_it_stale(
    project: Path, make_artifact: Callable[..., Artifact], capsys: pytest.CaptureFixture[str]
) -> None:
    run(project)
    make_artifact(data=b"another graph")
    plan_of = states(run(project, dry_run=True))
    assert plan_of == {"sign": "runs", "encrypt": "stale", "push": "runs", "verify": "runs"}
    with pytest.raises(CheckFailed, match=r"step 3 \(push\)"):  # the tag stands on the older one
        run(project)
    assert states(run(project, dry_run=True))["encrypt"] == "current"  # what was finished stays


def test_dry_run_does_nothing(project: Path) -> None:
    before = sorted(project.rglob("*"))
    assert states(run(project, dry_run=True))["encrypt"] == "stale"
    assert sorted(project.rglob("*")) == before


def test_what_reads_something_stale_is_stale(project: Path) -> None:
    text = SEAL + '\n[[step]]\nrun = "decrypt"\nout = "model.onnx2"\nfrom = "build/model.sealed"\n'
    text = text.replace('out = "model.onnx2"', 'out = "back/model.onnx"\nidentities = ["rsa.pem"]')
    (project / "modelctl.toml").write_text(text)
    assert states(run(project, dry_run=True))["decrypt"] == "stale"
    assert states(run(project))["decrypt"] == "made"
    assert states(run(project))["decrypt"] == "current"
    assert (project / "back" / "model.onnx").read_bytes() == b"graph"
    (project / "back" / "model.onnx").write_bytes(b"other")
    assert states(run(project, dry_run=True))["decrypt"] == "stale"


def test_pulled_artifact_can_be_named_before_it_is_there(project: Path) -> None:
    pull = (
        '\n[[step]]\nrun = "pull"\nfrom = "sqlite:///models.db/model:1"\nout = "elsewhere"\n'
        '\n[[step]]\nrun = "verify"\nfrom = "elsewhere/model.sealed"\n'
    )
    (project / "modelctl.toml").write_text(SEAL + pull)
    assert [row["state"] for row in run(project).facts["steps"]][-2:] == ["pulled", "checked"]
    assert (project / "elsewhere" / "model.sealed").is_file()


def test_failing_step_ends_the_run_with_its_own_error(project: Path) -> None:
    run(project)
    (project / "model.onnx").write_bytes(b"tampered")
    with pytest.raises(IntegrityError, match=r"modelctl.toml: step 1 \(sign\): .*model.onnx"):
        run(project)
    (project / "modelctl.toml").write_text(
        'model = "model.onnx"\n[[step]]\nrun = "pull"\nfrom = "sqlite:///no.db/a:1"\nout = "deep/x"'
    )
    with pytest.raises(StoreError, match=r"step 1 \(pull\)"):
        run(project)
    assert not (project / "deep").exists()


def test_working_folder_and_import_path_are_put_back(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    (project / "elsewhere").mkdir()
    monkeypatch.chdir(project / "elsewhere")
    before = list(sys.path)
    execution.run(Path("../modelctl.toml"), Options())
    assert Path.cwd() == project / "elsewhere"
    assert sys.path == before


STEP = '[[step]]\nrun = "{run}"\n{rest}\n'


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("model = ", "not sound TOML"),
        ("\xff", "not sound TOML"),
        ('modle = "x"', "unknown key 'modle'"),
        ("model = 3", "model: expected `str | null`, got `int`"),
        ('model = "model.onnx"', "holds no step"),
        ('[step]\nrun = "sign"', "step: expected `array`"),
        ("[[step]]\nout = 'x'", "step 1: names nothing to run"),
        ("[[step]]\nrun = 'fly'", "step 1: there is no step 'fly'"),
        ("[[step]]\nrun = ['sign']", "step 1: there is no step ['sign']"),
    ],
)
def test_file_that_is_no_pipeline_is_refused(project: Path, text: str, told: str) -> None:
    error = told_of(project, text)
    assert error.message.startswith(told)
    assert isinstance(error, UsageError)


@pytest.mark.parametrize(
    ("run", "rest", "told"),
    [
        ("encrypt", 'out = "a.sealed"', "encrypt needs someone who may open the file"),
        ("encrypt", 'recipients = ["no.pem"]\nout = "a.sealed"', "recipients: no.pem: no such file"),
        ("encrypt", 'recipients = ["env:NO_SUCH"]\nout = "a.sealed"', "recipients: the environment has no NO_SUCH"),
        ("encrypt", 'recipients = "rsa.pub.pem"\nout = "a.sealed"', "recipients: expected `array`, got `str`"),
        ("encrypt", 'recipients = ["rsa.pub.pem"]\nout = "a.txt"', "a.txt: no format goes by"),
        ("encrypt", 'recipients = ["rsa.pub.pem"]\nout = "model.onnx"', "out: model.onnx: is what the step reads"),
        (
            "encrypt",
            'recipients = ["rsa.pub.pem"]\nout = "root.pt"',
            "out: root.pt: stands already, and encrypt did not",
        ),
        ("encrypt", 'recipients = ["rsa.pub.pem"]', "out is missing"),
        ("quantize", 'out = "a.onnx"\nmax_drop = 200', "max_drop: 200 must be 0 to 100"),
        ("quantize", 'out = "a.onnx"\nmax_drop = "1"', "max_drop: expected `float | null`, got `str`"),
        ("quantize", 'out = "a.onnx"\nmax_drop = 1', "max_drop needs samples to score"),
        ("quantize", 'out = "a.onnx"\ndata = "no.npz"', "no.npz: no such file or folder"),
        ("quantize", 'out = "a.onnx"\nmethod = "magic"', "method: invalid enum value 'magic'"),
        ("quantize", 'out = "a.onnx"\nbit = 8', "unknown option: bit"),
        ("quantize", 'out = "a.onnx"\nseed = 1979-05-27', "seed: expected `int`, got `date`"),
        ("quantize", "out = 3", "out: expected a name in quotes, got 3"),
        ("prune", 'out = "a.onnx"', "prune takes exactly one of sparsity, threshold, keep"),
        ("eval", 'out = "a.onnx"', "unknown key 'out'"),
        ("eval", 'baseline = "no.onnx"', "baseline: no.onnx: no such file"),
        ("verify", 'from = "no.onnx"', "from: no.onnx: no such file, and no step before it writes it"),
        ("sign", 'from = "build"', "from: build: no such file"),
        ("push", "", "to is missing"),
        ("pull", 'out = "deep/x"', "from is missing"),
        ("sign", 'key = "ed.pem"\nto = "x"', "unknown key 'to'"),
    ],
)
def test_step_that_cannot_run_is_refused_before_any_runs(project: Path, run: str, rest: str, told: str) -> None:
    error = told_of(
        project,
        SEAL + STEP.format(run=run, rest='from = "model.onnx"\n' * ("from" not in rest and run != "pull") + rest),
    )
    assert error.message.startswith(f"step 5 ({run}): {told}")
    assert "--" not in error.message + ("" if (error.hint or "").startswith("modelctl ") else error.hint or "")


def test_out_is_written_once_and_read_only_after(project: Path) -> None:
    seal = 'out = "{out}"\nrecipients = ["rsa.pub.pem"]\nfrom = "model.onnx"'
    twice = STEP.format(run="encrypt", rest=seal.format(out="build/../build/model.sealed"))
    assert "step 2 writes it already" in told_of(project, SEAL + twice).message
    early = STEP.format(run="verify", rest='from = "b.sealed"') + STEP.format(
        run="encrypt", rest=seal.format(out="b.sealed")
    )
    assert "no step before it writes it" in told_of(project, early).message


def test_first_step_without_anything_to_read_is_refused(project: Path) -> None:
    assert "there is nothing to read" in told_of(project, "[[step]]\nrun = 'verify'").message


def test_environment_goes_before_the_file_and_the_flag_before_both(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = 'model = "model.onnx"\n[[step]]\nrun = "quantize"\nout = "q.onnx"\nthreads = 3\nsamples = 7\n'
    (project / "modelctl.toml").write_text(text)
    monkeypatch.chdir(project)
    monkeypatch.setenv("MODELCTL_SAMPLES", "9")
    told = plan.read(Path("modelctl.toml"))
    (step,) = plan.checked(told, Path("modelctl.toml"), Options(threads=2))
    assert (step.options.threads, step.options.samples) == (2, 9)  # type: ignore[attr-defined]
    monkeypatch.setenv("MODELCTL_SAMPLES", "many")
    with pytest.raises(UsageError, match="MODELCTL_SAMPLES: expected `int`"):
        plan.checked(told, Path("modelctl.toml"), Options())


@pytest.mark.parametrize(
    ("run", "hint", "told"),
    [
        ("quantize", "add --force to replace it", "add force = true to replace it"),
        ("export", "add --data samples.npz, or --allow-vacuous", 'add data = "samples.npz", or allow_vacuous = true'),
        ("export", "add --input 'x:float32[batch,1]'", 'add inputs = ["x:float32[batch,1]"]'),
        ("prune", "--sparsity 0.5", "sparsity = 0.5"),
        ("distill", "a smaller --lr", "a smaller lr"),
        ("encrypt", "modelctl keygen -o rsa.pem --force", "modelctl keygen -o rsa.pem --force"),
        ("sign", None, None),
    ],
)
def test_hint_speaks_the_words_of_the_file(run: str, hint: str | None, told: str | None) -> None:
    assert plan.located(UsageError("no", hint), Path("modelctl.toml"), 1, run).hint == told


def test_missing_extra_is_told_before_anything_runs(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    text = '[[step]]\nrun = "export"\nfrom = "net:build"\nout = "a.onnx"\n'
    error = told_of(project, text)
    assert error.hint == "pip install 'modelctl[torch]'"


def test_json_is_one_document(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of(["run", str(project / "modelctl.toml"), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [row["step"] for row in document["result"]["steps"]] == ["sign", "encrypt", "push", "verify"]
    assert status_of(["run", str(project / "none.toml"), "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["kind"] == "UsageError"
