"""An ONNX file of someone else becomes an artifact: checked, clean, whole, its operator set as it was."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from modelctl.artifact import Artifact
from modelctl.cli.main import status_of
from modelctl.errors import ArtifactError, CheckFailed, IntegrityError, UnsupportedError, UsageError
from modelctl.graph.session import Session
from modelctl.options import ExportOptions
from modelctl.steps.export import Source, export

WEIGHTS = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)


def model(
    shape: Sequence[Any] = ("batch", 4), opset: int = 13, nodes: Sequence[onnx.NodeProto] = ()
) -> onnx.ModelProto:
    """y = x @ w, with words of its author everywhere."""
    default = helper.make_node("MatMul", ["x", "w"], ["y"], name="dense", doc_string="File /home/author/net.py, line 3")
    weight = numpy_helper.from_array(WEIGHTS, "w")
    weight.doc_string = "secret of the author"
    graph = helper.make_graph(
        list(nodes) or [default],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape, doc_string="secret of the author")],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [shape[0], 3])],
        [weight],
        doc_string="secret of the author",
    )
    made = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8, doc_string="secret of the author"
    )
    helper.set_model_props(made, {"path": "/home/author"})
    entry = made.graph.node[0].metadata_props.add()
    entry.key, entry.value = "stack", "/home/author/net.py"
    return made


def adopt(made: onnx.ModelProto, folder: Path, **options: Any) -> Artifact:
    onnx.save(made, folder / "foreign.onnx")
    return export(Source.parse(str(folder / "foreign.onnx")), folder / "own.onnx", ExportOptions(**options))


def test_a_foreign_file_becomes_an_artifact_with_itself_as_root(tmp_path: Path) -> None:
    own = adopt(model(), tmp_path)
    assert [one.digest for one in own.manifest.lineage] == [Artifact.open(tmp_path / "foreign.onnx").digest]
    assert own.manifest.metrics["parity"]["max_difference"] == 0
    assert own.manifest.metrics["parity"]["batches"] == [1, 3, 8]
    assert own.manifest.metrics["parameters"] == 12
    loaded = onnx.load(own.path)
    assert loaded.opset_import[0].version == 13
    assert [node.op_type for node in loaded.graph.node] == ["MatMul"]
    for word in (b"author", b"secret", b"home"):
        assert word not in own.path.read_bytes()


def test_the_operator_set_is_raised_where_that_is_asked_for(tmp_path: Path) -> None:
    softmax = helper.make_node("Softmax", ["x"], ["y"], axis=1)  # whose meaning changed with opset 13
    own = adopt(model(("batch", 3), opset=11, nodes=[softmax]), tmp_path, opset=21)
    assert [one.version for one in onnx.load(own.path).opset_import] == [21]
    assert own.manifest.made_by is not None and own.manifest.made_by.options["opset"] == 21
    assert own.manifest.metrics["parity"]["max_difference"] < 1e-6
    again = export(Source.parse(str(own.path)), tmp_path / "again.onnx", ExportOptions(opset=21))
    assert again.digest == own.digest


def test_an_operator_set_that_cannot_be_had_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="is of opset 20, and can't be lowered to 18"):
        adopt(model(opset=20), tmp_path, opset=18)
    fused = model(nodes=[helper.make_node("FusedMatMul", ["x", "w"], ["y"], domain="com.microsoft")])
    fused.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    with pytest.raises(UnsupportedError, match=r"uses com\.microsoft, and can't be raised to opset 20"):
        adopt(fused, tmp_path, opset=20)
    assert not (tmp_path / "own.onnx").exists()


@pytest.mark.parametrize("free", [None, -1])
def test_free_dimensions_without_a_name_get_one(tmp_path: Path, free: int | None) -> None:
    made = model((free, 4))
    own = adopt(made, tmp_path)
    assert own.manifest.inputs[0].shape == ("batch", 4)
    assert own.manifest.outputs[0].shape == ("batch", 3)
    assert own.manifest.metrics["parity"]["batches"] == [1, 3, 8]


def test_names_of_dimensions_can_be_asked_for(tmp_path: Path) -> None:
    own = adopt(model(("N", 4)), tmp_path, inputs=("x:float32[rows,4]",))
    assert own.manifest.inputs[0].shape == ("rows", 4)
    assert own.manifest.outputs[0].shape == ("rows", 3)


def test_a_fixed_batch_stays_fixed_and_is_refused_where_it_was_to_be_free(tmp_path: Path) -> None:
    with pytest.raises(CheckFailed, match="'batch' of 'x' was to be free, but it is 2 for good"):
        adopt(model((2, 4)), tmp_path, inputs=("x:float32[batch,4]",))
    own = adopt(model((2, 4)), tmp_path)
    assert own.manifest.inputs[0].shape == (2, 4)


def test_weights_beside_the_file_are_taken_in(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    onnx.save(model(), tmp_path / "a" / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    own = export(Source.parse(str(tmp_path / "a" / "m.onnx")), tmp_path / "own.onnx", ExportOptions())
    assert [entry.path for entry in own.manifest.files] == ["own.onnx"]
    x = np.ones((2, 4), np.float32)
    np.testing.assert_allclose(Session(own.load()).run({"x": x})["y"], x @ WEIGHTS, rtol=1e-5)
    # Other weights are another origin.
    before = own.manifest.made_by
    (tmp_path / "a" / "w.bin").write_bytes(np.ones(12, np.float32).tobytes())
    again = export(Source.parse(str(tmp_path / "a" / "m.onnx")), tmp_path / "own.onnx", ExportOptions(force=True))
    assert before is not None and again.manifest.made_by is not None
    assert again.manifest.made_by.parents != before.parents
    with pytest.raises(IntegrityError):
        (tmp_path / "own.onnx").write_bytes(b"")
        own.load()


@pytest.mark.parametrize("location", ["../secret.bin", "/etc/hostname", "sub/secret.bin", "link.bin", "missing.bin"])
def test_weights_are_read_from_beside_the_file_only(tmp_path: Path, location: str) -> None:
    folder = tmp_path / "here"
    (folder / "sub").mkdir(parents=True)
    for place in (tmp_path / "secret.bin", folder / "sub" / "secret.bin"):
        place.write_bytes(bytes(48))
    (folder / "link.bin").symlink_to(tmp_path / "secret.bin")
    made = model()
    weight = made.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value=location)
    (folder / "m.onnx").write_bytes(made.SerializeToString())
    with pytest.raises(ArtifactError):
        export(Source.parse(str(folder / "m.onnx")), folder / "own.onnx", ExportOptions())
    assert not (folder / "own.onnx").exists()


def test_weights_that_are_inputs_too_are_inputs_no_more(tmp_path: Path) -> None:
    made = model(opset=9)
    made.ir_version = 3
    made.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, (4, 3)))
    own = adopt(made, tmp_path)
    assert [value.name for value in onnx.load(own.path).graph.input] == ["x"]
    assert [spec.name for spec in own.manifest.inputs] == ["x"]


def test_custom_operators_are_named(tmp_path: Path) -> None:
    made = model(nodes=[helper.make_node("Magic", ["x", "w"], ["y"], domain="my.own")])
    made.opset_import.append(helper.make_opsetid("my.own", 1))
    with pytest.raises(UnsupportedError, match=r"my\.own:Magic"):
        adopt(made, tmp_path)


def test_an_unknown_operator_is_refused(tmp_path: Path) -> None:
    with pytest.raises((ArtifactError, UnsupportedError), match="Magic"):
        adopt(model(nodes=[helper.make_node("Magic", ["x", "w"], ["y"])]), tmp_path)


def test_a_graph_that_is_not_sound_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"foreign\.onnx"):
        adopt(model(nodes=[helper.make_node("MatMul", ["x", "nowhere"], ["y"])]), tmp_path)


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9, 0.99])
def test_a_truncated_file_is_refused_in_one_line(
    tmp_path: Path, share: float, capsys: pytest.CaptureFixture[str]
) -> None:
    data = model().SerializeToString()
    (tmp_path / "cut.onnx").write_bytes(data[: int(len(data) * share)])
    assert status_of(["export", str(tmp_path / "cut.onnx"), "-o", str(tmp_path / "own.onnx")]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("modelctl: error: ") and "cut.onnx" in said.err
    assert [file.name for file in tmp_path.iterdir()] == ["cut.onnx"]


def test_a_dead_model_is_refused(tmp_path: Path) -> None:
    made = model()
    made.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.zeros((4, 3), np.float32), "w"))
    with pytest.raises(CheckFailed, match="does not depend on the input"):
        adopt(made, tmp_path)
    assert adopt(made, tmp_path, allow_vacuous=True).manifest.metrics["parity"]["vacuous"] == ["y"]


def test_the_files_of_the_source_are_not_written_over(tmp_path: Path) -> None:
    onnx.save(model(), tmp_path / "m.onnx", save_as_external_data=True, location="own.onnx.data", size_threshold=0)
    before = (tmp_path / "own.onnx.data").read_bytes()
    for out in ("m.onnx", "own.onnx"):
        with pytest.raises(UsageError):
            export(Source.parse(str(tmp_path / "m.onnx")), tmp_path / out, ExportOptions(force=True))
    assert (tmp_path / "own.onnx.data").read_bytes() == before


def test_torch_is_not_needed_to_adopt(tmp_path: Path) -> None:
    onnx.save(model(), tmp_path / "m.onnx")
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from modelctl.cli.main import status_of\n"
        "assert status_of(['export', 'm.onnx', '-o', 'own.onnx']) == 0\n"
        "assert status_of(['export', 'net:make', '-o', 'other.onnx']) == 2\n"
    )
    (tmp_path / "net.py").write_text("")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "pip install 'modelctl[torch]'" in done.stderr
