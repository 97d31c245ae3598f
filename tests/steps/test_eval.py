from pathlib import Path
from typing import Any

import nets
import numpy as np
import pytest
from artifacts import names
from onnx import helper

from modelctl.artifact import Artifact
from modelctl.errors import ArtifactError, CheckFailed, DataError, KeyFileError, UnsupportedError, UsageError
from modelctl.options import EncryptOptions, EvalOptions, Metric, PruneOptions, QuantizeOptions
from modelctl.steps.encrypt import encrypt
from modelctl.steps.eval import eval as evaluate
from modelctl.steps.prune import prune
from modelctl.steps.quantize import quantize


def asked(**options: Any) -> EvalOptions:
    return EvalOptions(threads=1, **options)


def test_a_model_by_itself(net: Artifact, data: str) -> None:
    found = evaluate(net, asked(data=data)).facts
    assert found["digest"] == net.digest
    assert found["accuracy"]["value"] > 0.8
    assert found["accuracy"]["samples"] == 100
    assert found["size_bytes"] == net.size_bytes
    assert found["latency"]["p50_ms"] <= found["latency"]["p99_ms"]
    assert "gates" not in found


def test_without_samples_there_are_size_and_latency(net: Artifact) -> None:
    found = evaluate(net, asked(batch=3)).facts
    assert "accuracy" not in found
    assert found["latency"]["batch"] == 3


def test_all_of_a_named_split_is_scored(net: Artifact, data: str) -> None:
    assert evaluate(net, asked(data=f"{data}#split=train,limit=300")).facts["accuracy"]["samples"] == 300


def test_beside_a_baseline(net: Artifact, data: str, tmp_path: Path) -> None:
    made = quantize(net, tmp_path / "q.onnx", QuantizeOptions(allow_regression=True))
    found = evaluate(made, asked(data=data, baseline=net.path, max_drop=20, max_size_mb=1, min_accuracy=0.5)).facts
    assert found["baseline"] == {"model": str(net.path), "digest": net.digest}
    assert found["agreement"] > 0.9
    assert found["size_ratio"] > 2
    assert all(gate["met"] for gate in found["gates"].values())
    assert set(found["gates"]) == {"max_drop", "max_size_mb", "min_accuracy"}


def test_each_gate_that_is_not_met_is_named_with_what_was_found(net: Artifact, data: str) -> None:
    options = asked(
        data=data, baseline=net.path, min_accuracy=1, max_latency_ms=0, max_size_mb=0, min_speedup=100, max_drop=0
    )
    with pytest.raises(CheckFailed) as caught:
        evaluate(net, options)
    for name in ("min_accuracy", "max_latency_ms", "max_size_mb", "min_speedup"):
        assert f"{name} wanted" in caught.value.message
    assert "max_drop" not in caught.value.message  # it lost nothing against itself
    assert caught.value.facts is not None
    assert caught.value.facts["gates"]["max_drop"]["met"]


def test_other_metrics(net: Artifact, data: str, tmp_path: Path) -> None:
    assert evaluate(net, asked(data=data, metric=Metric.F1)).facts["accuracy"]["metric"] == "f1"
    pictures, _ = nets.samples(60)
    targets = nets.run(nets.convolutional(), pictures) + 0.5
    regression = str(nets.save_npz(tmp_path / "targets.npz", x=pictures, y=targets))
    found = evaluate(net, asked(data=regression)).facts["accuracy"]
    assert (found["metric"], round(found["value"], 4)) == ("rmse", 0.5)
    with pytest.raises(UsageError, match="an rmse is none"):
        evaluate(net, asked(data=regression, min_accuracy=0.5))


def test_samples_without_labels_are_enough_beside_a_baseline_only(net: Artifact, tmp_path: Path) -> None:
    bare = str(nets.save_npz(tmp_path / "bare.npz", x=nets.samples(50)[0]))
    with pytest.raises(DataError, match="has no labels 'y'"):
        evaluate(net, asked(data=bare))
    assert evaluate(net, asked(data=bare, baseline=net.path)).facts["agreement"] == 1
    with pytest.raises(DataError, match="has no labels 'y'"):
        evaluate(net, asked(data=bare, baseline=net.path, max_drop=1))


def test_what_a_classifiers_answers_tell_beyond_their_score(net: Artifact, data: str) -> None:
    found = evaluate(net, asked(data=data)).facts
    rows = found["classes"]
    assert [row["class"] for row in rows] == [0, 1, 2, 3]
    assert sum(row["support"] for row in rows) == 100
    assert sum(row["support"] * row["recall"] for row in rows) == pytest.approx(100 * found["accuracy"]["value"])
    assert found["calibration"]["answers"] == "logits"
    assert 0 <= found["calibration"]["error"] <= 1
    assert found["macs"] == 8 * 9 * 64 + 64 * 72 * 16 + 256 * 4
    assert not {"flips", "slices", "latencies", "notes"} & set(found)


def test_flips_against_a_baseline(net: Artifact, data: str, tmp_path: Path) -> None:
    other = nets.save(nets.linear(), tmp_path / "linear.onnx")
    found = evaluate(net, asked(data=data, baseline=other)).facts
    flips = found["flips"]
    lost = flips["right_to_wrong"] - flips["wrong_to_right"]
    assert lost == pytest.approx(found["drop_pp"])
    changed = flips["right_to_wrong"] + flips["wrong_to_right"] + flips["wrong_otherwise"]
    assert found["agreement"] == pytest.approx(1 - changed / 100)
    assert found["agreement_low"] < found["agreement"] < found["agreement_high"]
    assert evaluate(net, asked(data=data, baseline=net.path)).facts["flips"]["p_value"] == 1


def test_groups_and_the_gate_on_their_gap(net: Artifact, tmp_path: Path) -> None:
    pictures, labels = nets.samples(1000)
    who = np.where(np.arange(1000) % 3 == 0, "left", "right")
    pictures[who == "left"] += np.random.default_rng(0).standard_normal((334, 1, 8, 8)).astype(np.float32)
    data = str(nets.save_npz(tmp_path / "who.npz", x=pictures, y=labels, who=who))
    found = evaluate(net, asked(data=data, slices="who", max_gap=100)).facts
    assert [row["group"] for row in found["slices"]["groups"]] == ["left", "right"]
    assert sum(row["samples"] for row in found["slices"]["groups"]) == 100
    assert found["slices"]["lowest"] == "left"
    assert found["gates"]["max_gap"] == {"wanted": 100, "found": found["slices"]["gap_pp"], "met": True}
    with pytest.raises(CheckFailed, match=r"max_gap wanted 1, found \d"):
        evaluate(net, asked(data=data, slices="who", max_gap=1))
    beside = evaluate(net, asked(data=data, slices="who", baseline=net.path)).facts["slices"]
    assert beside["gap_before_pp"] == beside["gap_pp"] > 0
    with pytest.raises(DataError, match=r"who\.npz: has no column 'when'; its columns: who, y"):
        evaluate(net, asked(data=data, slices="when"))
    with pytest.raises(DataError, match="a folder of IDX files holds images and labels only"):
        evaluate(net, asked(data=str(nets.write_idx(tmp_path)), slices="who"))


def test_several_batches_are_each_timed(net: Artifact, data: str, tmp_path: Path) -> None:
    found = evaluate(net, asked(batch="8,1,8", max_latency_ms=1e6)).facts
    assert found["latency"]["batch"] == 8
    assert [row["batch"] for row in found["latencies"]] == [1, 8]
    assert found["latencies"][1]["p50_ms"] == found["latency"]["p50_ms"] == found["gates"]["max_latency_ms"]["found"]
    assert all(row["samples_per_s"] > 0 for row in found["latencies"])
    beside = evaluate(net, asked(data=data, batch="1,4", baseline=net.path)).facts
    assert all(row["speedup_low"] <= row["speedup"] <= row["speedup_high"] for row in beside["latencies"])
    fixed = Artifact.open(nets.save(nets.convolutional(batch=7), tmp_path / "fixed.onnx"))
    found = evaluate(fixed, asked(batch="1,8")).facts
    assert (found["latency"]["batch"], "latencies" in found) == (7, False)


def test_each_batch_is_timed_on_each_number_of_threads(net: Artifact, tmp_path: Path) -> None:
    found = evaluate(net, EvalOptions(batch="4,1", threads="2,1", baseline=net.path)).facts
    assert (found["latency"]["batch"], found["latency"]["threads"]) == (4, 2)
    assert [(row["threads"], row["batch"]) for row in found["latencies"]] == [(1, 1), (1, 4), (2, 1), (2, 4)]
    assert found["latencies"][3]["p50_ms"] == found["latency"]["p50_ms"]
    assert all(row["speedup_low"] <= row["speedup"] for row in found["latencies"])
    assert EvalOptions(threads="0,2").thread_counts() == (1, 2)
    assert EvalOptions(threads="3,2").thread_count() == 3


def test_another_output_than_the_first_may_be_scored(tmp_path: Path) -> None:
    model = nets.linear()
    model.graph.node.append(helper.make_node("Neg", ["logits"], ["opposite"]))
    model.graph.output.append(helper.make_tensor_value_info("opposite", 1, ["batch", 4]))
    net, data = Artifact.open(nets.save(model, tmp_path / "two.onnx")), str(nets.save_npz(tmp_path / "d.npz"))
    assert evaluate(net, asked(data=data)).facts["accuracy"]["value"] > 0.9
    found = evaluate(net, asked(data=data, output="opposite", baseline=net.path)).facts
    assert found["accuracy"]["value"] < 0.1
    assert found["outputs"] == [{"output": "logits", "max_error": 0, "relative_error": 0}]
    with pytest.raises(UsageError, match=r"--output odd: no output of two\.onnx; it has logits, opposite"):
        evaluate(net, asked(data=data, output="odd"))


def test_a_provider_that_is_not_there_is_refused(net: Artifact) -> None:
    with pytest.raises(UsageError, match=r"no such provider; the installed onnxruntime has .*cpu"):
        evaluate(net, asked(provider="gpu"))


def test_a_metric_of_ones_own_counts_for_gates(
    net: Artifact, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "evalmetric.py").write_text(
        "def half(answers, labels):\n    return (answers.argmax(1) == labels).mean() / 2\n"
    )
    monkeypatch.chdir(tmp_path)
    found = evaluate(net, asked(data=data, metric="evalmetric:half", baseline=net.path, max_drop=1)).facts
    assert found["accuracy"]["metric"] == "evalmetric:half"
    assert 0.4 < found["accuracy"]["low"] < found["accuracy"]["value"] < found["accuracy"]["high"] <= 0.5
    assert set(found["metric_code"]["files"]) == {"evalmetric.py"}
    with pytest.raises(CheckFailed, match=r"min_accuracy wanted 0\.6"):
        evaluate(net, asked(data=data, metric="evalmetric:half", min_accuracy=0.6))


def test_labels_of_one_class_are_noted(net: Artifact, tmp_path: Path) -> None:
    pictures, labels = nets.samples(400)
    data = str(nets.save_npz(tmp_path / "one.npz", x=pictures[labels == 2], y=labels[labels == 2]))
    (note,) = evaluate(net, asked(data=data)).facts["notes"]
    assert note.endswith("labels are of class 2, and a model that always says so is right")


def test_a_model_that_is_not_above_chance_is_noted(net: Artifact, tmp_path: Path) -> None:
    pictures, _ = nets.samples(400)
    labels = np.random.default_rng(9).integers(0, 4, 400)
    data = str(nets.save_npz(tmp_path / "chance.npz", x=pictures, y=labels))
    (note,) = evaluate(net, asked(data=data + "#split=train")).facts["notes"]
    assert "on 320 samples is not above chance: always answering class" in note


def test_embeddings_are_held_beside_the_baselines_by_their_cosine(net: Artifact, tmp_path: Path) -> None:
    other = nets.save(nets.linear(), tmp_path / "linear.onnx")
    bare = str(nets.save_npz(tmp_path / "bare.npz", x=nets.samples(500)[0]))
    found = evaluate(net, asked(data=bare, baseline=other)).facts
    assert -1 <= found["cosine_lowest"] < found["cosine_low"] < found["cosine"] < found["cosine_high"] < 1
    assert evaluate(net, asked(data=bare, baseline=net.path)).facts["cosine_lowest"] == pytest.approx(1)


def test_labels_that_are_no_number_are_refused(net: Artifact, tmp_path: Path) -> None:
    data = str(nets.save_npz(tmp_path / "nan.npz", x=nets.samples(50)[0], y=np.full(50, np.nan)))
    with pytest.raises(DataError, match="labels 'y': hold NaN or infinity"):
        evaluate(net, asked(data=data))


def test_a_picture_is_drawn_even_where_a_gate_says_no(net: Artifact, data: str, tmp_path: Path) -> None:
    plot = tmp_path / "eval.svg"
    before = names(tmp_path)
    with pytest.raises(CheckFailed):
        evaluate(net, asked(data=data, plot=str(plot), min_accuracy=1, batch="1,4"))
    assert plot.read_text().count("<g ") == 2
    assert names(tmp_path) == before | {"eval.svg"}
    assert evaluate(net, asked(plot=str(plot))).facts["plot"] == str(plot)
    assert plot.read_text().count("<g ") == 1


def test_a_picture_that_can_not_be_written_is_refused_before_any_work(net: Artifact, tmp_path: Path) -> None:
    (tmp_path / "folder.svg").mkdir()
    (tmp_path / "mine.svg").write_text("<svg/>")
    for place, says in (("none/a.svg", "no such folder"), ("folder.svg", "is a folder"), ("mine.svg", "did not draw")):
        with pytest.raises(UsageError, match=says):
            evaluate(net, asked(plot=str(tmp_path / place), data="none.npz"))


def test_macs_that_can_not_be_told_are_left_out(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("NonZero", ["x"], ["places"]),
        helper.make_node("Cast", ["places"], ["floats"], to=1),
        helper.make_node("MatMul", ["w", "floats"], ["product"]),
        helper.make_node("Identity", ["x"], ["logits"]),
    ]
    model = nets.model_of(nodes, {"w": np.ones((3, 2), np.float32)}, ["batch", 2], ["batch", 2])
    model.graph.output.append(helper.make_tensor_value_info("product", 1, [3, None]))
    found = evaluate(Artifact.open(nets.save(model, tmp_path / "odd.onnx")), asked()).facts
    assert "macs" not in found
    assert found["latency"]["p50_ms"] > 0


def test_a_gate_needs_what_it_compares_with() -> None:
    for options, says in (
        ({"slices": "who"}, "--slices needs samples"),
        ({"max_gap": 1, "data": "d.npz"}, "--max-gap needs groups"),
        ({"metric": "top7"}, "--metric top7: not one of auto, top1, top5, f1, rmse, or module:function"),
        ({"plot": "net.onnx"}, r"--plot net\.onnx: only \.svg is drawn"),
        ({"batch": "1,,8"}, "--batch 1,,8: must be numbers of samples"),
        ({"batch": "0"}, "--batch 0: must be"),
        ({"batch": "99999999"}, "--batch 99999999: must be"),
        ({"threads": "1,two"}, "--threads 1,two: must be numbers from 0 to 4096"),
        ({"threads": "1,4097"}, "--threads 1,4097: must be"),
        ({"min_accuracy": 0.5}, "--min-accuracy needs samples"),
        ({"max_drop": 1, "data": "d.npz"}, "--max-drop needs a model to compare with"),
        ({"min_speedup": 1}, "--min-speedup needs a model"),
    ):
        with pytest.raises(UsageError, match=says):
            EvalOptions(**options)


def test_a_sealed_model_is_opened_in_memory_only(net: Artifact, data: str, tmp_path: Path, key_folder: Path) -> None:
    key = str(key_folder / "aes.key")
    plain = prune(net, tmp_path / "plain.onnx", PruneOptions(threads=1, sparsity=0.1))
    sealed = encrypt(plain, tmp_path / "net.sealed", EncryptOptions(key_file=key))
    before = names(tmp_path)
    found = evaluate(sealed, asked(data=data, key_file=key)).facts
    assert found["accuracy"] == evaluate(plain, asked(data=data)).facts["accuracy"]
    assert found["digest"] == plain.digest
    assert names(tmp_path) == before
    with pytest.raises(KeyFileError):
        evaluate(sealed, asked(data=data, key_file=str(key_folder / "aes2.key")))


def test_what_can_not_be_measured(net: Artifact, data: str, tmp_path: Path) -> None:
    (tmp_path / "empty.onnx").touch()
    with pytest.raises(ArtifactError, match=r"empty\.onnx: is empty"):
        evaluate(Artifact.open(tmp_path / "empty.onnx"), asked())
    (tmp_path / "short.onnx").write_bytes(net.path.read_bytes()[:-100])
    with pytest.raises(ArtifactError, match=r"short\.onnx: not an ONNX model, or cut short"):
        evaluate(Artifact.open(tmp_path / "short.onnx"), asked())
    with pytest.raises(UnsupportedError, match="eval reads onnx, this is npz"):
        evaluate(Artifact.open(Path(data)), asked())
    wide = str(nets.save_npz(tmp_path / "wide.npz", x=np.ones((9, 1, 9, 9)), y=np.zeros(9, int)))
    with pytest.raises(DataError, match=r"expected float32\[N,1,8,8\], found float64\[N,1,9,9\]"):
        evaluate(net, asked(data=wide))
    many = str(nets.save_npz(tmp_path / "many.npz", x=nets.samples(9)[0], y=np.arange(9)))
    with pytest.raises(DataError, match="the model answers 4 classes"):
        evaluate(net, asked(data=many + "#split=train"))
