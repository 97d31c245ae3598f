"""Models in a row that answer as one."""

from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import servers
from onnx import helper
from servers import v2

from modelctl import manifest
from modelctl.artifact import Artifact, manifest_path
from modelctl.chains import Argmax, Softmax, Table
from modelctl.chains.forms import Number
from modelctl.errors import ArtifactError, IntegrityError, ModelctlError, UnsupportedError, UsageError
from modelctl.making import Origin, create
from modelctl.options import EncryptOptions, ServeOptions, SignOptions, StepOptions
from modelctl.serve.models import Model, load_all
from modelctl.steps.encrypt import encrypt
from modelctl.steps.sign import sign

make = helper.make_node
WEIGHTED = '[[model]]\nsource = "affine.onnx"\n[[model]]\nsource = "weigh.onnx"\ninputs = {x = "y"}\n'
X = np.random.default_rng(3).standard_normal((5, 4)).astype(np.float32)


def weigh(path: Path, wide: int = 3) -> Path:
    """p = softmax(x · by), of x[n, wide] and by[n, 1]."""
    nodes = [make("Mul", ["x", "by"], ["m"]), make("Softmax", ["m"], ["p"], axis=1)]
    return servers.save(path, nodes, [("x", 1, ["n", wide]), ("by", 1, ["n", 1])], [("p", 1, ["n", wide])], {})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    servers.affine(tmp_path / "affine.onnx")
    weigh(tmp_path / "weigh.onnx")
    (tmp_path / "both.toml").write_text(WEIGHTED)
    return tmp_path


def by_hand(folder: Path, x: np.ndarray, by: np.ndarray) -> np.ndarray:
    y = ort.InferenceSession(str(folder / "affine.onnx")).run(None, {"x": x})[0]
    found: np.ndarray = ort.InferenceSession(str(folder / "weigh.onnx")).run(None, {"x": y, "by": by})[0]
    return found


def served(source: Path, **options: object) -> Model:
    (found,) = load_all([str(source)], ServeOptions(**options))  # type: ignore[arg-type]
    return found


def test_tensors_go_from_model_to_model_and_the_answer_names_them_all(folder: Path) -> None:
    by = np.full((5, 1), 2, np.float32)
    with servers.running([folder / "both.toml", folder / "affine.onnx"]) as server:
        found = server.ask("/v2/models/both/infer", {"inputs": [v2("x", X, "FP32"), v2("by", by, "FP32")]})
        assert found.status == 200
        assert np.allclose(found.json["outputs"][0]["data"], by_hand(folder, X, by).ravel(), atol=1e-6)
        told = server.ask("/v2/models/both").json
        assert told["platform"] == "ensemble"
        assert [(one["name"], one["shape"]) for one in told["inputs"]] == [("x", [-1, 4]), ("by", [-1, 1])]
        assert [one["name"] for one in told["outputs"]] == ["p"]
        assert found.headers["modelctl-model"] == f"both@sha256:{served(folder / 'both.toml').digest}"
        lacking = server.ask("/v2/models/both/infer", {"inputs": [v2("x", X, "FP32")]})
        assert lacking.status == 400 and "by" in lacking.error
        uneven = server.ask("/v2/models/both/infer", {"inputs": [v2("x", X, "FP32"), v2("by", by[:2], "FP32")]})
        assert uneven.status == 400
        assert server.stop() == (0, "")


def test_rows_of_several_requests_share_a_run_of_all_models(folder: Path) -> None:
    assert served(folder / "both.toml").pace.rows_are_independent


def test_the_digest_is_of_the_file_and_of_all_models(folder: Path) -> None:
    first = served(folder / "both.toml")
    weigh(folder / "weigh.onnx")
    assert served(folder / "both.toml").digest == first.digest
    (folder / "both.toml").write_text(WEIGHTED + 'outputs = {p = "share"}\n')
    assert served(folder / "both.toml").digest != first.digest
    (folder / "both.toml").write_text(WEIGHTED)
    servers.affine(folder / "affine.onnx", wide=6)
    last = served(folder / "both.toml")
    assert last.digest != first.digest
    members = [Artifact.open(folder / name).digest for name in ("affine.onnx", "weigh.onnx")]
    assert last.manifest.made_by is not None and list(last.manifest.made_by.parents) == members
    assert {one.digest for one in last.manifest.lineage} == set(members)
    assert manifest.parse(last.manifest.text().encode()) == last.manifest


def test_tensors_are_renamed_and_outputs_chosen(folder: Path) -> None:
    (folder / "c.toml").write_text(
        'name = "chosen"\nversion = "7"\noutputs = ["share", "raw"]\n'
        '[[model]]\nsource = "affine.onnx"\ninputs = {x = "picture"}\noutputs = {y = "raw"}\n'
        '[[model]]\nsource = "weigh.onnx"\ninputs = {x = "raw", by = "heat"}\noutputs = {p = "share"}\n'
    )
    found = served(folder / "c.toml")
    assert (found.name, found.version) == ("chosen", "7")
    assert {name: spec.shape for name, spec in found.inputs.items()} == {"picture": ("batch", 4), "heat": ("batch", 1)}
    assert {name: spec.shape for name, spec in found.outputs.items()} == {"share": ("batch", 3), "raw": ("batch", 3)}


@pytest.mark.parametrize(
    ("text", "kind", "says"),
    [
        ("", UsageError, "no ensemble: .*model"),
        ("model = []", UsageError, "no ensemble"),
        ("[[model]\n", UsageError, "not sound TOML"),
        ('[[model]]\nsource = "affine.onnx"\nweight = 1', UsageError, "unknown field `weight`"),
        ('[[model]]\nsource = "gone.onnx"', ArtifactError, r"gone\.onnx: no such file"),
        ('[[model]]\nsource = "both.toml"', UsageError, "is an ensemble itself"),
        ('[[model]]\nsource = "root.pt"', UnsupportedError, "serve runs onnx"),
        ('[[model]]\nsource = "affine.onnx"\ninputs = {z = "a"}', UsageError, "has no input 'z', but x"),
        ('[[model]]\nsource = "affine.onnx"\noutputs = {z = "a"}', UsageError, "has no output 'z', but y"),
        ('outputs = ["z"]\n[[model]]\nsource = "affine.onnx"', UsageError, "no model gives 'z'; given are y"),
        ('[[model]]\nsource = "affine.onnx"\noutputs = {y = "x"}', UsageError, "'x' is read before it is given"),
        ('[[model]]\nsource = "affine.onnx"\n' * 2, UsageError, "'y' is given twice"),
        (
            WEIGHTED.replace("weigh", "wide"),
            UsageError,
            r"wide\.onnx takes float32\[n,8\] as 'x', and 'y' is float32\[batch,3\]",
        ),
    ],
)
def test_what_does_not_fit_together_is_one_clear_line(
    folder: Path, text: str, kind: type[ModelctlError], says: str
) -> None:
    weigh(folder / "wide.onnx", wide=8)
    (folder / "root.pt").write_bytes(b"weights")
    (folder / "bad.toml").write_text(text)
    with pytest.raises(kind, match=says):
        served(folder / "bad.toml")


def made(folder: Path, name: str, **declared: object) -> Artifact:
    """The model of that name as an artifact, exported, with what it declares."""
    plain = folder / f"{name}.onnx"
    out = folder / "made" / f"{name}.onnx"
    out.parent.mkdir(exist_ok=True)
    with create(out, Origin("export", StepOptions(), (Artifact.open(plain),))) as draft:
        draft.path.write_bytes(plain.read_bytes())
        for field, value in declared.items():
            setattr(draft, field, value)
    return Artifact.open(out)


def test_what_models_declare_is_declared_by_the_ensemble(folder: Path) -> None:
    columns = tuple(Number(name=letter) for letter in "abcd")
    made(folder, "affine", preprocess=(Table(input="x", columns=columns),))
    scores = servers.save(
        folder / "scores.onnx", [make("Neg", ["x"], ["p"])], [("x", 1, ["n", 3])], [("p", 1, ["n", 3])], {}
    )
    made(folder, scores.stem, postprocess=(Softmax(output="p"), Argmax(output="p", labels=("low", "mid", "high"))))
    (folder / "made" / "all.toml").write_text(
        '[[model]]\nsource = "affine.onnx"\n[[model]]\nsource = "scores.onnx"\ninputs = {x = "y"}\n'
    )
    y = ort.InferenceSession(str(folder / "affine.onnx")).run(None, {"x": X[:1]})[0]
    with servers.running([folder / "made" / "all.toml"]) as server:
        row = {name: float(value) for name, value in zip("abcd", X[0], strict=True)}
        found = server.ask("/predict", {"instances": [row]})
        assert found.status == 200, found.body
        (answer,) = found.json["predictions"]
        assert answer["label"] == ("low", "mid", "high")[int(y.argmin())]


def test_sealed_models_are_opened_and_all_must_be_signed(folder: Path, key_folder: Path) -> None:
    for name in ("affine", "weigh"):
        artifact = made(folder, name)
        if name == "affine":
            artifact = encrypt(
                artifact,
                folder / "made" / "affine.sealed",
                EncryptOptions(recipients=(str(key_folder / "rsa.pub.pem"),)),
            )
        sign(artifact, SignOptions(key=str(key_folder / "ed.pem")))
    toml = folder / "made" / "both.toml"
    toml.write_text(WEIGHTED.replace("affine.onnx", "affine.sealed"))
    opening = {"identities": (str(key_folder / "rsa.pem"),), "require_signature": str(key_folder / "ed.pub.pem")}
    assert served(toml, **opening).digest
    with pytest.raises(ModelctlError):
        served(toml)
    path = manifest_path(folder / "made" / "weigh.onnx")
    path.with_name("weigh.onnx.dsse.json").unlink()
    with pytest.raises(IntegrityError, match=r"weigh\.onnx"):
        served(toml, **opening)


def test_a_model_that_changes_is_noticed(folder: Path) -> None:
    one = np.ones((1, 1), np.float32)
    asked = {"inputs": [v2("x", X[:1], "FP32"), v2("by", one, "FP32")]}
    with servers.running([folder / "both.toml"], "--watch") as server:
        before = server.ask("/v2/models/both/infer", asked).headers["modelctl-model"]
        nodes = [make("Add", ["x", "by"], ["p"])]
        servers.save(
            folder / "new.onnx", nodes, [("x", 1, ["n", 3]), ("by", 1, ["n", 1])], [("p", 1, ["n", 3])], {}
        ).replace(folder / "weigh.onnx")
        servers.eventually(lambda: server.ask("/v2/models/both/infer", asked).headers["modelctl-model"] != before)
        y = ort.InferenceSession(str(folder / "affine.onnx")).run(None, {"x": X[:1]})[0]
        assert np.allclose(server.ask("/v2/models/both/infer", asked).json["outputs"][0]["data"], y.ravel() + 1)
