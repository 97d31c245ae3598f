from pathlib import Path
from typing import Any

import nets
import numpy as np
import onnx
import pytest
from artifacts import names
from listening import Listener
from onnx import helper

from modelctl.artifact import Artifact
from modelctl.errors import ArtifactError, CheckFailed, DataError, UnsupportedError, UsageError
from modelctl.graph import latency
from modelctl.graph.quantizing import trials
from modelctl.options import Calibration, Method, QuantizeOptions
from modelctl.steps.quantize import origin, quantize


@pytest.fixture(autouse=True)
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """Timing as seldom as can be: what is told of speed here is allowed, or too clear to be mistaken."""
    monkeypatch.setattr(trials, "SECONDS", 0.01)


def asked(**options: Any) -> QuantizeOptions:
    return QuantizeOptions(threads=1, **options)


def kinds(made: Artifact) -> list[str]:
    return [node.op_type for node in onnx.load(made.path).graph.node]


def test_static_with_samples(net: Artifact, data: str, tmp_path: Path) -> None:
    options = asked(method=Method.STATIC, data=data, max_drop=3, allow_regression=True)
    made = quantize(net, tmp_path / "q.onnx", options)
    found = made.manifest.metrics
    assert found["accuracy_before"]["value"] > 0.8
    assert found["drop_pp"] <= 3
    assert found["agreement"] > 0.9
    assert found["size_ratio"] > 2
    assert found["accuracy"]["samples"] == 100
    assert "speedup" in found["latency"]
    assert made.manifest.made_by is not None
    choices = made.manifest.made_by.choices
    assert choices["method"] == "static"
    assert choices["float_nodes"] == ["conv1"]
    assert [one.name for one in (*made.manifest.inputs, *made.manifest.outputs)] == ["x", "logits"]
    assert kinds(made)[-1] == "Gemm"  # the answers themselves stay in float
    assert names(tmp_path) == {"net.onnx", "samples.npz", "q.onnx", "q.onnx.manifest.json"}


@pytest.mark.parametrize("method", [Method.STATIC, Method.DYNAMIC, Method.FIXED_POINT])
def test_the_same_again_gives_the_same_bytes(net: Artifact, data: str, tmp_path: Path, method: Method | None) -> None:
    options = asked(data=None if method is Method.FIXED_POINT else data, method=method, allow_regression=True)
    first = quantize(net, tmp_path / "a.onnx", options)
    second = quantize(net, tmp_path / "b.onnx", options)
    assert first.digest == second.digest
    assert origin(net, options).is_current(tmp_path / "a.onnx")


def test_weights_alone_without_samples(net: Artifact, tmp_path: Path) -> None:
    listener = Listener()
    made = quantize(net, tmp_path / "q.onnx", asked(allow_regression=True), listener)
    assert made.manifest.metrics["size_ratio"] > 2
    assert "accuracy" not in made.manifest.metrics
    assert any("the accuracy is not known" in one for one in listener.told)
    pictures, _ = nets.samples(100)
    before, after = nets.run(onnx.load(net.path), pictures), nets.run(onnx.load(made.path), pictures)
    assert (before.argmax(1) == after.argmax(1)).mean() > 0.97


@pytest.mark.parametrize("calibration", list(Calibration))
def test_every_calibration(net: Artifact, data: str, tmp_path: Path, calibration: Calibration) -> None:
    given: dict[str, Any] = {"method": Method.STATIC, "data": data, "calibration": calibration, "samples": 48}
    options = asked(**given, allow_regression=True, per_channel=False, max_drop=10)
    made = quantize(net, tmp_path / "q.onnx", options)
    assert made.manifest.made_by is not None
    assert made.manifest.made_by.choices["per_channel"] is False


def test_only_what_is_named_and_not_excluded(net: Artifact, data: str, tmp_path: Path) -> None:
    given: dict[str, Any] = {"method": Method.STATIC, "op_types": ("Conv",), "excludes": ("conv2",)}
    options = asked(data=data, **given, allow_regression=True)
    made = onnx.load(quantize(net, tmp_path / "q.onnx", options).path)
    maker = {name: node.op_type for node in made.graph.node for name in node.output}
    fed = {node.name: maker.get(node.input[1]) for node in made.graph.node if node.op_type in ("Conv", "Gemm")}
    assert fed == {"conv1": "DequantizeLinear", "conv2": None, "dense": None}


def test_an_old_opset_and_a_fixed_batch_are_fine(data: str, tmp_path: Path) -> None:
    old = Artifact.open(nets.save(nets.linear(opset=9), tmp_path / "old.onnx"))
    made = quantize(old, tmp_path / "q.onnx", asked(method=Method.STATIC, data=data, allow_regression=True, max_drop=5))
    assert made.manifest.metrics["agreement"] > 0.9
    fixed = Artifact.open(nets.save(nets.convolutional(batch=3), tmp_path / "fixed.onnx"))
    made = quantize(
        fixed, tmp_path / "qf.onnx", asked(method=Method.STATIC, data=data, allow_regression=True, max_drop=5)
    )
    assert made.manifest.metrics["latency"]["batch"] == 3


def test_without_labels_agreement_is_told_and_no_drop_can_be_held(net: Artifact, tmp_path: Path) -> None:
    data = str(nets.save_npz(tmp_path / "bare.npz", x=nets.samples(100)[0]))
    made = quantize(net, tmp_path / "q.onnx", asked(method=Method.STATIC, data=data, allow_regression=True))
    assert made.manifest.metrics["agreement"] > 0.8
    assert "accuracy" not in made.manifest.metrics
    with pytest.raises(DataError, match="no labels"):
        quantize(net, tmp_path / "r.onnx", asked(data=data, max_drop=1))


def test_a_larger_result_is_not_written(data: str, tmp_path: Path) -> None:
    small = Artifact.open(nets.save(nets.brightness(), tmp_path / "small.onnx"))
    before = names(tmp_path)
    with pytest.raises(CheckFailed, match=r"not accepted: the result .*is larger than its input") as caught:
        quantize(small, tmp_path / "q.onnx", asked(method=Method.STATIC, data=data))
    assert caught.value.facts is not None
    assert names(tmp_path) == before


def test_a_lost_budget_is_not_written_even_if_regressions_are_allowed(net: Artifact, data: str, tmp_path: Path) -> None:
    before = names(tmp_path)
    options = asked(method=Method.STATIC, data=data, min_speedup=900, allow_regression=True)
    with pytest.raises(CheckFailed, match="at least ×900 was asked for"):
        quantize(net, tmp_path / "q.onnx", options)
    assert names(tmp_path) == before


def test_a_slower_result_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "SECONDS", 0.5)
    random = np.random.default_rng(0)
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["c"], "a", pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["c", "w2"], ["logits"], "b", pads=[1, 1, 1, 1]),
    ]
    held = {"w1": random.standard_normal((32, 3, 3, 3)), "w2": random.standard_normal((32, 32, 3, 3))}
    model = nets.model_of(
        nodes, {name: one.astype(np.float32) for name, one in held.items()}, ["n", 3, 32, 32], ["n", 32, 32, 32]
    )
    net = Artifact.open(nets.save(model, tmp_path / "net.onnx"))
    options = asked(method=Method.DYNAMIC, op_types=("Conv",))
    with pytest.raises(CheckFailed, match="is slower than its input"):  # at a fifth of its speed, on any x86
        quantize(net, tmp_path / "q.onnx", options)
    assert names(tmp_path) == {"net.onnx"}


def test_what_is_quantized_is_not_quantized_again(net: Artifact, data: str, tmp_path: Path) -> None:
    static = asked(method=Method.STATIC, data=data, allow_regression=True)
    for place, options in enumerate((asked(allow_regression=True), static)):
        made = quantize(net, tmp_path / f"q{place}.onnx", options)
        with pytest.raises(UnsupportedError, match="is quantized already"):
            quantize(made, tmp_path / "again.onnx", asked())


def test_the_rest_of_a_partly_quantized_graph_is_quantized(net: Artifact, data: str, tmp_path: Path) -> None:
    shared: dict[str, Any] = {"data": data, "method": Method.STATIC, "allow_regression": True}
    half = quantize(net, tmp_path / "half.onnx", asked(**shared, op_types=("Gemm",)))
    whole = quantize(half, tmp_path / "whole.onnx", asked(**shared, op_types=("Conv", "Gemm"), max_drop=5))
    assert whole.manifest.metrics["agreement"] > 0.9
    made = onnx.load(whole.path)
    maker = {name: node for node in made.graph.node for name in node.output}
    for node in made.graph.node:
        if node.op_type in ("Conv", "Gemm") and node.name != "conv1":
            assert maker[node.input[1]].op_type == "DequantizeLinear"
            stored = maker[node.input[1]].input[0]
            assert sum(stored in one.input for one in made.graph.node) == 1


def test_what_can_not_be_asked(net: Artifact, tmp_path: Path) -> None:
    for options, says in ((asked(excludes=("nothing",)), "no node of that name"),):
        with pytest.raises(UsageError, match=says):
            quantize(net, tmp_path / "q.onnx", options)
    with pytest.raises(UnsupportedError, match="holds nothing that dynamic could quantize"):
        quantize(net, tmp_path / "q.onnx", asked(method=Method.DYNAMIC, op_types=("LSTM",)))
    with pytest.raises(UnsupportedError, match=r"quantize writes \.onnx"):
        quantize(net, tmp_path / "q.pt2", asked())
    assert names(tmp_path) == {"net.onnx"}


@pytest.mark.parametrize("content", [b"", b"\x08\x07", b"no model at all"])
def test_what_is_no_model(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.onnx").write_bytes(content)
    with pytest.raises(ArtifactError, match=r"bad\.onnx: (not an ONNX model|is empty)"):
        quantize(Artifact.open(tmp_path / "bad.onnx"), tmp_path / "q.onnx", asked())
    assert names(tmp_path) == {"bad.onnx"}


def test_another_format_is_sent_to_the_step_that_reads_it(tmp_path: Path) -> None:
    (tmp_path / "net.pt2").write_bytes(b"x")
    with pytest.raises(UnsupportedError, match="quantize reads onnx, this is pt2") as caught:
        quantize(Artifact.open(tmp_path / "net.pt2"), tmp_path / "q.onnx", asked())
    assert caught.value.hint is not None
    assert caught.value.hint.startswith("modelctl export")


def test_the_best_is_searched_for_and_everything_is_told(net: Artifact, data: str, tmp_path: Path) -> None:
    picture = tmp_path / "frontier.svg"
    options = asked(data=data, max_drop=2, allow_regression=True, explain=True, plot=str(picture))
    made = quantize(net, tmp_path / "q.onnx", options)
    found = made.manifest.metrics
    assert found["drop_pp"] <= 2
    assert found["accuracy"]["samples"] == 100  # the test part, which the search has not seen
    assert [row["verdict"] for row in found["candidates"]].count("chosen") == 1
    assert [row["node"] for row in found["nodes"]] == ["conv1", "conv2", "dense"]
    assert {row["decision"] for row in found["nodes"]} != {"float"}
    assert made.manifest.made_by is not None
    choices = made.manifest.made_by.choices
    assert choices["candidates_tried"] == len(found["candidates"])
    drawn = picture.read_text()
    assert all(row["candidate"] in drawn for row in found["candidates"] if row["speed"])
    assert names(tmp_path) == {"net.onnx", "samples.npz", "q.onnx", "q.onnx.manifest.json", "frontier.svg"}
    again = quantize(net, tmp_path / "r.onnx", asked(data=data, max_drop=2, allow_regression=True))
    assert "candidates" not in again.manifest.metrics


def test_a_picture_of_something_else_is_not_overwritten(net: Artifact, data: str, tmp_path: Path) -> None:
    (tmp_path / "mine.svg").write_text("<svg/>")
    with pytest.raises(UsageError, match="stands already, and quantize did not draw it"):
        quantize(net, tmp_path / "q.onnx", asked(data=data, plot=str(tmp_path / "mine.svg")))
    assert (tmp_path / "mine.svg").read_text() == "<svg/>"


def test_nothing_within_the_budget_is_exit_1_and_tells_all_that_was_tried(
    net: Artifact, data: str, tmp_path: Path
) -> None:
    before = names(tmp_path)
    with pytest.raises(
        CheckFailed, match=r"net\.onnx: not accepted: none of .* candidates that keep the answers is fast"
    ) as no:
        quantize(net, tmp_path / "q.onnx", asked(data=data, min_speedup=900))
    assert no.value.facts is not None
    assert len(no.value.facts["candidates"]) > 3
    assert names(tmp_path) == before


def test_agreement_is_a_gate_where_there_are_no_labels(net: Artifact, tmp_path: Path) -> None:
    data = str(nets.save_npz(tmp_path / "bare.npz", x=nets.samples(400)[0]))
    given: dict[str, Any] = {"data": data, "method": Method.DYNAMIC, "allow_regression": True}
    made = quantize(net, tmp_path / "q.onnx", asked(**given, min_agreement=0.9))
    assert made.manifest.metrics["alike"] == pytest.approx(made.manifest.metrics["cosine"])
    with pytest.raises(CheckFailed, match=r"answers 0\.99\d* like its input, at least 1 was asked for"):
        quantize(net, tmp_path / "r.onnx", asked(**given, min_agreement=1))


@pytest.mark.parametrize(
    ("labels", "kind", "says"),
    [
        (np.zeros(400, np.int64), DataError, "labels are of class 0, and a model that always says so is right"),
        (np.arange(400) % 4, CheckFailed, "is not above chance"),
        (None, DataError, "has no labels 'y'"),
    ],
)
def test_a_drop_that_tells_nothing_is_refused(
    net: Artifact, tmp_path: Path, labels: Any, kind: type[Exception], says: str
) -> None:
    held = {"x": nets.samples(400)[0]} | ({} if labels is None else {"y": labels})
    data = str(nets.save_npz(tmp_path / "odd.npz", **held))
    before = names(tmp_path)
    with pytest.raises(kind, match=says):
        quantize(net, tmp_path / "q.onnx", asked(data=data, max_drop=1))
    assert names(tmp_path) == before


def test_few_bits_are_learned(net: Artifact, data: str, tmp_path: Path) -> None:
    shared: dict[str, Any] = {"data": data, "bits": 3, "allow_regression": True}
    rounded = quantize(net, tmp_path / "r.onnx", asked(**shared, method=Method.STATIC))
    taught = quantize(net, tmp_path / "q.onnx", asked(**shared, method=Method.QAT, epochs=3))
    lost = [one.manifest.metrics["drop_pp"] for one in (rounded, taught)]
    assert lost[1] <= lost[0]
    assert taught.manifest.made_by is not None
    assert taught.manifest.made_by.choices["stored_bits"] == 4


def test_fixed_point_counts_inputs_between_0_and_1(tmp_path: Path) -> None:
    x, y = nets.samples(400)
    scaled = (x - x.min()) / (x.max() - x.min())
    data = str(nets.save_npz(tmp_path / "scaled.npz", x=scaled.astype(np.float32), y=y))
    net = Artifact.open(nets.save(nets.convolutional(), tmp_path / "net.onnx"))
    options = asked(method=Method.FIXED_POINT, data=data, allow_regression=True, explain=True)
    made = quantize(net, tmp_path / "q.onnx", options)
    assert "QuantizeLinear" in kinds(made)
    assert made.manifest.made_by is not None
    assert set(made.manifest.made_by.choices["p"]) >= {"w2", "w3"}
    wide = str(nets.save_npz(tmp_path / "wide.npz", x=x, y=y))
    with pytest.raises(DataError, match="fixed-point counts from 0 to 1"):
        quantize(net, tmp_path / "r.onnx", asked(method=Method.FIXED_POINT, data=wide))


def test_a_kernel_that_is_missing_is_one_line(net: Artifact, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="--provider openvino: the installed onnxruntime has cpu"):
        quantize(net, tmp_path / "q.onnx", asked(provider="openvino"))
