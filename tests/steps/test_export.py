"""Good sources become ONNX: the same answers, the same bytes each time, nothing of the author's."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from listening import Listener
from safetensors.torch import save_file

from modelctl.artifact import Artifact
from modelctl.graph.session import Session
from modelctl.integrity import check
from modelctl.options import ExportOptions
from modelctl.steps.export import Source, export, origin

AUTHORS = Path(__file__).with_name("authors.py")
MLP = "x:float32[batch,4]"
IMAGE = "image:float32[batch,1,8,8]"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The author's folder: the code, weights in two formats, an exported program, and what is exported from each."""
    folder = tmp_path_factory.mktemp("home-of-the-author")
    shutil.copy(AUTHORS, folder / "nets.py")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        from modelctl.factory import build

        torch.save(build("nets:mlp")[0].state_dict(), folder / "mlp.pt")
        module = build("nets:convolutional")[0]
        torch.save({"model": module.state_dict(), "epoch": 3}, folder / "conv.pt")
        save_file(module.state_dict(), folder / "conv.safetensors")
        batch = torch.export.Dim("batch")
        program = torch.export.export(module.eval(), (torch.randn(4, 1, 8, 8),), dynamic_shapes=({0: batch},))
        torch.export.save(program, folder / "conv.pt2")
        export(
            Source.parse("nets:convolutional"),
            folder / "conv.onnx",
            ExportOptions(weights=Path("conv.pt"), inputs=(IMAGE,)),
        )
    return folder


@pytest.fixture(autouse=True)
def _at_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)


def exported(source: str, out: Path, **options: Any) -> Artifact:
    return export(Source.parse(source), out, ExportOptions(**options))


def texts(model: onnx.ModelProto) -> list[str]:
    """Every docstring and metadata entry in a model."""
    found = [model.doc_string, *(entry.value for entry in model.metadata_props)]
    parts: tuple[Any, ...] = (
        model.graph,
        *model.graph.node,
        *model.graph.input,
        *model.graph.output,
        *model.graph.initializer,
    )
    for part in parts:
        found += [part.doc_string, *(entry.value for entry in part.metadata_props)]
    return [text for text in found if text]


def test_a_checkpoint_becomes_onnx_with_its_normalization_left_in_place(home: Path) -> None:
    made = Artifact.open(home / "conv.onnx")
    model = onnx.load(home / "conv.onnx")
    assert [node.op_type for node in model.graph.node].count("BatchNormalization") == 1
    assert [(one.version, one.domain) for one in model.opset_import] == [(20, "")]
    (taken,), (given,) = made.manifest.inputs, made.manifest.outputs
    assert (taken.name, taken.dtype, taken.shape) == ("image", "float32", ("batch", 1, 8, 8))
    assert (given.name, given.shape) == ("output", ("batch", 10))
    parity = made.manifest.metrics["parity"]
    assert parity["batches"] == [1, 3, 8]
    assert parity["max_difference"] <= parity["allowed"]
    assert parity["top1_agreement"] == 1.0
    assert made.manifest.metrics["size_bytes"] == made.size_bytes
    check(made)


def test_the_manifest_remembers_checkpoint_and_code(home: Path) -> None:
    made = Artifact.open(home / "conv.onnx").manifest
    assert [record.digest for record in made.lineage] == [Artifact.open(home / "conv.pt").digest]
    assert made.made_by is not None
    assert list(made.made_by.options["source"]["files"]) == ["nets.py"]
    assert {"torch", "onnx", "onnxscript", "onnxruntime"} <= set(made.made_by.environment)
    options = ExportOptions(weights=Path("conv.pt"), inputs=(IMAGE,))
    assert origin(Source.parse("nets:convolutional"), options).is_current(home / "conv.onnx")


def test_the_answers_are_those_of_the_author(home: Path) -> None:
    from modelctl.factory import build

    images = np.random.default_rng(1).random((5, 1, 8, 8), np.float32)
    module = build("nets:convolutional")[0].eval()
    with torch.no_grad():
        wanted = module(torch.from_numpy(images)).numpy()
    found = Session(Artifact.open(home / "conv.onnx").load()).run({"image": images})["output"]
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_safetensors_and_pt2_give_the_same_graph(home: Path, tmp_path: Path) -> None:
    whole = exported("nets:convolutional", tmp_path / "a.onnx", weights=Path("conv.safetensors"), inputs=(IMAGE,))
    assert whole.digest == Artifact.open(home / "conv.onnx").digest
    program = exported("conv.pt2", tmp_path / "b.onnx")
    assert program.digest == whole.digest
    assert program.manifest.lineage[0].format == "pt2"


def test_nothing_of_the_author_is_in_the_file(home: Path, tmp_path: Path) -> None:
    for made in (home / "conv.onnx", exported("conv.pt2", tmp_path / "b.onnx").path):
        data = made.read_bytes()
        for word in (str(home), "home-of-the-author", "nets.py", "nets", "forward", "Convolutional", "author", ".py"):
            assert word.encode() not in data, word
        assert texts(onnx.load(made)) == []


@pytest.mark.slow
def test_another_process_with_another_hash_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    inputs = ("tokens:int64[batch,length]", "mask:float32[batch,length]")
    here = exported("nets:transformer", tmp_path / "here.onnx", inputs=inputs)
    words = ["nets:transformer", "-o", str(tmp_path / "there.onnx"), "--json"]
    words += [word for text in inputs for word in ("--input", text)]
    environment = {**os.environ, "PYTHONHASHSEED": "77"}
    command = [sys.executable, "-m", "modelctl", "export", *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    notes = [line for line in done.stderr.splitlines() if line.startswith("modelctl: note: ")]  # not those of progress
    assert done.returncode == 0 and len(notes) == 1 and "evaluation mode" in notes[0], done.stderr
    assert json.loads(done.stdout)["result"]["digest"] == here.digest
    assert [(spec.name, spec.shape) for spec in here.manifest.outputs] == [
        ("each", ("batch", "length", 5)),
        ("all", ("batch", 5)),
    ]
    sizes = here.manifest.metrics["parity"]["sizes"]["length"]
    assert 1 in sizes and len(sizes) > 2


def test_attention_that_sees_nothing_gives_zeros_and_all_tokens_are_tried(tmp_path: Path) -> None:
    inputs = ("tokens:int64[batch,length]", "mask:bool[batch,length]")
    made = exported("nets:Masked", tmp_path / "a.onnx", inputs=inputs)
    assert made.manifest.metrics["parity"]["ranges"] == {"tokens": [0, 299]}
    feeds = {"tokens": np.full((1, 3), 299, np.int64), "mask": np.zeros((1, 3), np.bool_)}
    assert not Session(made.load()).run(feeds)["output"].any()


@pytest.mark.slow
def test_recurrent_layers_take_sequences_of_any_length(tmp_path: Path) -> None:
    made = exported("nets:Recurrent", tmp_path / "a.onnx", inputs=("x:float32[batch,length,4]",))
    assert made.manifest.metrics["parity"]["sizes"]["length"] == [1, 5, 8, 9, 16]
    operators = [node.op_type for node in onnx.load(made.path).graph.node]
    assert (operators.count("LSTM"), operators.count("GRU")) == (2, 1)


def test_two_inputs_share_a_free_dimension_and_outputs_are_numbered(tmp_path: Path) -> None:
    made = exported("nets:Two", tmp_path / "two.onnx", inputs=("left:float32[n,3]", "right:float32[n,3]"), opset=18)
    assert [spec.name for spec in made.manifest.outputs] == ["output_0", "output_1"]
    assert [spec.shape for spec in made.manifest.outputs] == [("n", 3), ("n",)]
    assert onnx.load(made.path).opset_import[0].version == 18


def test_inputs_that_are_outputs_keep_their_names(tmp_path: Path) -> None:
    made = exported("nets:Passing", tmp_path / "a.onnx", inputs=(MLP,))
    assert [spec.name for spec in made.manifest.inputs] == ["x"]
    assert [spec.shape for spec in made.manifest.outputs] == [("batch", 4), ("batch", 4), ("4*batch",)]


def test_bfloat16_outputs_are_compared_as_such(tmp_path: Path) -> None:
    made = exported("nets:Brain", tmp_path / "a.onnx", inputs=(MLP,))
    assert made.manifest.outputs[0].dtype == "bfloat16"


def test_large_weights_lie_beside_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modelctl.formats.onnx.INLINE_LIMIT_BYTES", 100)
    monkeypatch.setattr("modelctl.formats.onnx.ALIGNMENT_BYTES", 16)
    made = exported("nets:mlp", tmp_path / "a.onnx", inputs=(MLP,))
    assert [entry.path for entry in made.manifest.files] == ["a.onnx", "a.onnx.data"]
    again = exported(str(made.path), tmp_path / "b.onnx")
    assert again.manifest.metrics["parity"]["max_difference"] == 0
    assert [record.format for record in again.manifest.history()] == ["onnx", "onnx"]


def test_inputs_may_be_called_otherwise_than_the_parameters(tmp_path: Path) -> None:
    made = exported("nets:mlp", tmp_path / "a.onnx", inputs=("features:float32[rows,4]",), weights=Path("mlp.pt"))
    assert [(spec.name, spec.shape) for spec in made.manifest.inputs] == [("features", ("rows", 4))]


def test_example_inputs_of_the_author_stand_in_for_input(tmp_path: Path) -> None:
    made = exported("nets:Shown", tmp_path / "a.onnx")
    assert [(spec.name, spec.shape) for spec in made.manifest.inputs] == [("x", ("batch", 4))]
    assert made.manifest.lineage == ()


@pytest.mark.slow
def test_a_model_without_weights_is_the_same_each_time(tmp_path: Path) -> None:
    one, other = (exported("nets:Mlp", tmp_path / name, inputs=(MLP,)) for name in ("a.onnx", "b.onnx"))
    assert one.digest == other.digest


def test_parity_is_checked_on_the_users_samples_too(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x=np.random.default_rng(0).random((40, 4), np.float32), y=np.zeros(40, np.int64))
    made = exported("nets:mlp", tmp_path / "a.onnx", inputs=(MLP,), data=f"{tmp_path / 'data.npz'}#split=train")
    plain = exported("nets:mlp", tmp_path / "b.onnx", inputs=(MLP,))
    assert made.manifest.metrics["parity"]["samples"] > plain.manifest.metrics["parity"]["samples"]


def test_a_module_left_in_training_mode_is_put_into_evaluation_mode_and_said_so(tmp_path: Path) -> None:
    heard = Listener()
    export(Source.parse("nets:mlp"), tmp_path / "a.onnx", ExportOptions(inputs=(MLP,)), heard)
    assert len(heard.told) == 1 and "evaluation mode" in heard.told[0]


def test_nothing_is_written_beside_the_authors_files(home: Path) -> None:
    assert not (home / "__pycache__").exists()
    assert str(home) not in sys.path
