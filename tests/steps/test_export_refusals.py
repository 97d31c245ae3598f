"""What export refuses: sources that are not what they seem, results that are not the same model. One line, no file."""

import os
import pickle
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from modelctl.cli.main import status_of
from modelctl.factory import build

AUTHORS = Path(__file__).with_name("authors.py")
MLP = ("--input", "x:float32[batch,4]")


class Bomb:
    """A pickle that makes a file when it is loaded."""

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, ("touch exploded",)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of everything that can be wrong."""
    folder = tmp_path_factory.mktemp("author")
    shutil.copy(AUTHORS, folder / "nets.py")
    (folder / "broken.py").write_text("def make(:\n")
    (folder / "lost.py").write_text("import no_such_library\n")
    (folder / "leaving.py").write_text("raise SystemExit(3)\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        module = build("nets:mlp")[0]
    state = module.state_dict()
    torch.save(state, folder / "good.pt")
    torch.save(state | {"bomb": Bomb()}, folder / "bomb.pt")
    (folder / "plain-bomb.pt").write_bytes(pickle.dumps(Bomb()))
    torch.save({"layers.0.weight": torch.zeros(8, 5), "other": torch.zeros(1)}, folder / "mismatch.pt")
    torch.save([1, 2, 3], folder / "list.pt")
    torch.save(state | {"layers.0.bias": torch.full((8,), float("nan"))}, folder / "nan.pt")
    data = (folder / "good.pt").read_bytes()
    (folder / "cut.pt").write_bytes(data[: len(data) // 2])
    (folder / "empty.pt").write_bytes(b"")
    (folder / "noise.pt").write_bytes(bytes(range(256)) * 4)
    with zipfile.ZipFile(folder / "zip.pt", "w") as archive:
        archive.writestr("readme.txt", "hello")
    save_file(state, folder / "good.safetensors")
    (folder / "cut.safetensors").write_bytes((folder / "good.safetensors").read_bytes()[:60])
    (folder / "empty.safetensors").write_bytes(b"")
    (folder / "model.h5").write_bytes(b"hdf")
    for name in ("empty.pt2", "empty.onnx"):
        (folder / name).write_bytes(b"")
    (folder / "noise.onnx").write_bytes(bytes(range(256)) * 4)
    (folder / "noise.pt2").write_bytes(bytes(range(256)) * 4)
    _programs(folder, module)
    return folder


def _programs(folder: Path, module: torch.nn.Module) -> None:
    """Exported programs of fixed batch, in training mode, with sizes and example inputs that would run code."""
    torch.export.save(torch.export.export(module.eval(), (torch.randn(4, 4),)), folder / "fixed.pt2")
    torch.export.save(torch.export.export(module.train(), (torch.randn(4, 4),)), folder / "training.pt2")
    batch = torch.export.Dim("batch")
    program = torch.export.export(module.eval(), (torch.randn(4, 4),), dynamic_shapes=({0: batch},))
    torch.export.save(program, folder / "good.pt2")
    data = (folder / "good.pt2").read_bytes()
    (folder / "cut.pt2").write_bytes(data[: len(data) // 2])
    with zipfile.ZipFile(folder / "good.pt2") as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    example = next(name for name in files if name.endswith("sample_inputs/model.pt"))
    graph = next(name for name in files if name.endswith("models/model.json"))
    bomb = folder / "example.pt"
    torch.save(Bomb(), bomb)
    evil = files[graph].replace(
        b"Symbol('s77', positive=True, integer=True)", b"__import__('os').system('touch exploded')"
    )
    assert evil != files[graph]
    for name, changed in (("bomb.pt2", {example: bomb.read_bytes()}), ("size.pt2", {graph: evil})):
        with zipfile.ZipFile(folder / name, "w") as archive:
            for entry, content in (files | changed).items():
                archive.writestr(entry, content)


@pytest.fixture(autouse=True)
def _there(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(made)


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    """Exit status and message of an export that must fail and leave nothing."""
    before = sorted(Path().rglob("*"))
    status = status_of(["export", *words, "-o", "out.onnx"])
    said = capsys.readouterr()
    assert said.out == ""
    lines = [line for line in said.err.splitlines() if not line.startswith("modelctl: note:")]
    assert lines[0].startswith("modelctl: error: "), said.err
    assert len(lines) == 1 or (len(lines) == 2 and lines[1].startswith("modelctl: hint: ")), said.err
    assert sorted(Path().rglob("*")) == before
    return status, "\n".join(lines)


NOT_THE_SAME = {
    "Branch": "what torch traced does the same, so the code takes another way",
    "Nan": "never a number",
    "Dead": "does not depend on the input",
    "Random": "; first differs at 'rand_like' (RandomUniformLike)",
    "Dropping": "left in training mode: dropout",
    "Counting": "left in training mode: it changes its own 'calls'",
}


@pytest.mark.parametrize("factory", NOT_THE_SAME)
def test_a_model_that_is_not_the_same_is_refused(factory: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, said = refusal(capsys, f"nets:{factory}", *MLP)
    assert status == 1
    assert NOT_THE_SAME[factory] in said


def test_a_dimension_that_is_not_free_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    status, said = refusal(capsys, "nets:Fixed", *MLP)
    assert status == 1 and "batch" in said
    status, said = refusal(capsys, "fixed.pt2", *MLP)
    assert status == 1 and "'batch'" in said and "4 for good" in said


def test_a_program_exported_in_training_mode_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    status, said = refusal(capsys, "training.pt2")
    assert status == 1 and "training mode" in said


BAD_SOURCES = {
    "nets:missing": "the module has no 'missing'",
    "nets:constant": "is int, and a factory is a function",
    "nets:number": "returns int",
    "nets:raises": "nets.py:",
    "nowhere:make": "no module 'nowhere'",
    "broken:make": "broken.py: not Python",
    "lost:make": "lost.py:1: ModuleNotFoundError",
    "leaving:make": "leaving.py:1: SystemExit",
    "nets:Raising": "KeyError",
    "nets:Rare": "nets:Rare: can't be written as ONNX: DispatchError",
    "nets:Listing": "forward returns str",
    "no.onnx": "no such file",
    "model.h5": ".h5",
    "good.pt": "holds weights",
    "empty.onnx": "empty.onnx: ",
    "noise.onnx": "not an ONNX model",
    "empty.pt2": "is empty",
    "noise.pt2": "not an exported program",
    "cut.pt2": "not an exported program",
    "bomb.pt2": "would run code",
    "size.pt2": "would run code",
}


@pytest.mark.parametrize("source", BAD_SOURCES)
def test_a_source_that_is_none_is_refused_in_one_line(source: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, said = refusal(capsys, source, *(MLP if ":" in source else ()))
    assert status == 2
    assert BAD_SOURCES[source] in said
    assert not Path("exploded").exists()


BAD_WEIGHTS = {
    "bomb.pt": "a pickle that would run code: it names posix.system",
    "plain-bomb.pt": "a pickle that would run code: it names posix.system",
    "mismatch.pt": "has besides 'other'; 'layers.0.weight' is [8, 5], the model has [8, 4]",
    "list.pt": "holds a list",
    "nan.pt": "'layers.0.bias' holds NaN",
    "cut.pt": "cut short",
    "empty.pt": "is empty",
    "noise.pt": "not a torch checkpoint",
    "zip.pt": "not a torch checkpoint",
    "cut.safetensors": "cut short",
    "empty.safetensors": "is empty",
    "no.pt": "no such file",
    "model.h5": ".h5",
}


@pytest.mark.parametrize("weights", BAD_WEIGHTS)
def test_weights_that_are_none_are_refused_in_one_line(weights: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, said = refusal(capsys, "nets:mlp", "--weights", weights, *MLP)
    assert status == 2
    assert BAD_WEIGHTS[weights] in said
    assert weights in said
    assert not Path("exploded").exists()


BAD_INPUTS = {
    "x": "not name:dtype[shape]",
    "x:float33[batch,4]": "float33",
    "x:float32[batch,-4]": "'-4'",
    "x:float32[batch,0]": "'0'",
    "x:float32[batch,5]": "nets.py:",
}


@pytest.mark.parametrize("text", BAD_INPUTS)
def test_inputs_that_make_no_sense_are_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, said = refusal(capsys, "nets:mlp", "--input", text)
    assert status == 2 and BAD_INPUTS[text] in said


def test_without_inputs_the_refusal_shows_how_to_spell_them(capsys: pytest.CaptureFixture[str]) -> None:
    status, said = refusal(capsys, "nets:mlp")
    assert status == 2 and "--input 'x:float32[batch,1,28,28]'" in said


def test_samples_of_the_wrong_shape_are_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x=np.zeros((40, 5), np.float32))
    status, said = refusal(capsys, "nets:mlp", *MLP, "--data", str(tmp_path / "data.npz"))
    assert status == 2 and "expected float32[N,4], found float32[" in said


def test_samples_are_looked_at_before_the_model_is_built(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x=np.zeros((40, 5), np.float32))
    status, said = refusal(capsys, "nets:raises", *MLP, "--data", str(tmp_path / "data.npz"))
    assert status == 2 and "expected float32[N,4], found float32[" in said


def test_weights_are_for_factories_only(capsys: pytest.CaptureFixture[str]) -> None:
    status, said = refusal(capsys, "good.pt2", "--weights", "good.pt")
    assert status == 2 and "--weights" in said


def test_only_onnx_is_written(capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of(["export", "nets:mlp", "-o", "out.safetensors", *MLP]) == 2
    assert ".onnx" in capsys.readouterr().err


def test_a_dead_model_is_accepted_where_that_is_allowed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "dead.onnx"
    assert status_of(["export", "nets:Dead", "-o", str(out), *MLP, "--allow-vacuous"]) == 0
    assert "vacuous" in capsys.readouterr().out


def test_an_unsafe_pickle_is_loaded_where_that_is_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"state_dict": build("nets:mlp")[0].state_dict(), "when": np.float64(3)}, tmp_path / "mine.pt")
    words = ["export", "nets:mlp", "-o", str(tmp_path / "a.onnx"), "--weights", str(tmp_path / "mine.pt"), *MLP]
    assert status_of(words) == 2
    assert "--unsafe-pickle" in capsys.readouterr().err
    assert status_of([*words, "--unsafe-pickle"]) == 0
