from pathlib import Path
from typing import Any

import nets
import numpy as np
import pytest
from onnx import helper

from modelctl.artifact import Artifact, Payload
from modelctl.data.samples import Samples
from modelctl.errors import CheckFailed, DataError
from modelctl.graph import latency, measure
from modelctl.graph.session import Session
from modelctl.options import MeasuredOptions


def loaded(path: Path, model: Any) -> Payload:
    return Artifact.open(nets.save(model, path)).load()


def trial(count: int = 300) -> measure.Trial:
    pictures, labels = nets.samples(count)
    return measure.Trial(samples=Samples({"x": pictures}, labels), data="0" * 64, seconds=0.01)


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Payload:
    return loaded(tmp_path_factory.mktemp("net") / "net.onnx", nets.convolutional())


def test_one_model_by_itself(net: Payload) -> None:
    found = measure.examine(net, trial())
    assert found["accuracy"]["value"] > 0.9
    assert found["accuracy"]["low"] < found["accuracy"]["value"] < found["accuracy"]["high"]
    assert found["size_bytes"] == len(net.primary)
    assert found["parameters"] == 8 * 9 + 8 * 5 + 64 * 72 + 64 + 256 * 4 + 4
    assert set(found["latency"]) == {
        "p50_ms",
        "p95_ms",
        "p99_ms",
        "batch",
        "threads",
        "cpu",
        "provider",
        "samples_per_s",
    }


def test_a_model_beside_itself_loses_nothing(net: Payload) -> None:
    found = measure.compare(net, net, trial())
    assert (found["drop_pp"], found["agreement"], found["max_error"], found["size_ratio"]) == (0, 1, 0, 1)
    assert found["accuracy"] == found["accuracy_before"]
    assert found["latency"]["speedup"]["low"] <= found["latency"]["speedup"]["value"]


def test_without_samples_only_size_and_speed_are_compared(net: Payload) -> None:
    found = measure.compare(net, net, measure.Trial(seconds=0.01))
    assert not {"accuracy", "agreement", "drop_pp"} & set(found)
    assert found["latency"]["batch"] == 1


def test_a_batch_of_fixed_size_is_filled_up(tmp_path: Path, net: Payload) -> None:
    fixed = loaded(tmp_path / "fixed.onnx", nets.convolutional(batch=7))
    samples = trial(20).samples
    assert samples is not None
    assert np.allclose(measure.answers(Session(fixed), samples), measure.answers(Session(net), samples), atol=1e-5)
    assert measure.examine(fixed, trial(20))["latency"]["batch"] == 7


def test_nan_is_never_a_metric(tmp_path: Path) -> None:
    model = nets.model_of([helper.make_node("Log", ["x"], ["logits"])], {}, ["batch", 2], ["batch", 2])
    samples = Samples({"x": -np.ones((3, 2), np.float32)}, np.zeros(3, np.int64))
    with pytest.raises(CheckFailed, match=r"log\.onnx: answers NaN or infinity"):
        measure.examine(loaded(tmp_path / "log.onnx", model), measure.Trial(samples=samples))


def test_models_of_other_inputs_are_not_compared(tmp_path: Path, net: Payload) -> None:
    model = nets.model_of([helper.make_node("Relu", ["x"], ["logits"])], {}, ["batch", 2], ["batch", 2])
    with pytest.raises(DataError, match="takes other inputs than"):
        measure.compare(net, loaded(tmp_path / "other.onnx", model), measure.Trial())


def facts(drop: float = 0.0, speed: float = 1.0, size: int = 100) -> dict[str, Any]:
    speedup = {"value": speed, "low": speed - 0.01, "high": speed + 0.01}
    told = {"size_bytes": size, "size_bytes_before": 100, "drop_pp": drop, "accuracy": {"metric": "top1"}}
    return told | {"latency": {"speedup": speedup}}


@pytest.mark.parametrize(
    ("found", "options", "says"),
    [
        (facts(drop=0.6), {"data": "d", "max_drop": 0.5}, "loses 0.60 points of top1, at most 0.5"),
        (facts(speed=0.9), {}, "is slower than its input: ×0.90"),
        (facts(size=101), {}, "is larger than its input: 101 bytes, was 100"),
        (facts(speed=1.4), {"min_speedup": 1.5}, "runs at ×1.40 of the input, at least ×1.5"),
        (facts(drop=1, size=101), {"data": "d", "max_drop": 0}, "points.*; it is larger"),
    ],
)
def test_the_law(found: dict[str, Any], options: dict[str, Any], says: str) -> None:
    with pytest.raises(CheckFailed, match=says) as caught:
        measure.judge("out.onnx", found, MeasuredOptions(**options))
    assert caught.value.facts == found


def test_what_the_law_lets_pass() -> None:
    measure.judge("out.onnx", facts(drop=50), MeasuredOptions())
    measure.judge("out.onnx", facts(speed=0.975), MeasuredOptions())
    measure.judge("out.onnx", facts(speed=0.5, size=200), MeasuredOptions(allow_regression=True))
    measure.judge("out.onnx", facts(speed=0.5), MeasuredOptions(), same_graph=True)


def test_an_allowed_regression_is_no_leave_to_miss_a_budget() -> None:
    with pytest.raises(CheckFailed, match="at least"):
        measure.judge("out.onnx", facts(speed=0.5), MeasuredOptions(min_speedup=1, allow_regression=True))


def test_the_interval_of_a_median_is_that_of_order_statistics() -> None:
    found = latency.median_interval([float(one) for one in range(1, 21)])
    assert (found.value, found.low, found.high) == (10.5, 6, 15)  # ranks 6 and 15 of 20, as in Conover's table
    assert latency.median_interval([1.0] * 9).facts() == {"value": 1, "low": 1, "high": 1}
    assert latency.Speedup(0.9, 0.8, 0.96).is_slower
    assert not latency.Speedup(0.9, 0.8, 1.01).is_slower  # not surely
    assert not latency.Speedup(0.98, 0.97, 0.99).is_slower  # so may a model be beside itself


@pytest.mark.parametrize(
    ("found", "took"),
    [
        ([(1.2, 1.1, 1.3)], [1]),
        ([(0.98, 0.9, 1.01)], [1]),
        ([(0.9, 0.88, 1.003), (0.89, 0.88, 0.9)], [1, 3]),  # not sure, and then it is
        ([(0.9, 0.88, 0.95), (1.0, 0.98, 1.02)], [1, 3]),  # something else had run beside it
        ([(0.9, 0.88, 0.95), (0.9, 0.88, 1.01), (0.9, 0.88, 0.95)], [1, 3, 3]),
    ],
)
def test_what_looks_slower_is_timed_again(
    found: list[tuple[float, float, float]], took: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[float] = []

    def rounds(first: object, second: object, feeds: object, seconds: float) -> object:
        asked.append(seconds)
        return {}, {}, latency.Speedup(*found[len(asked) - 1])

    monkeypatch.setattr(latency, "_rounds", rounds)
    told = latency.in_turns(lambda: None, lambda: None, {}, {}, 1)  # type: ignore[arg-type, return-value]
    assert (told[2], asked) == (latency.Speedup(*found[-1]), took)


def test_a_model_is_timed_at_a_length_that_it_can_run(tmp_path: Path) -> None:
    # Three times the 16 that is tried first can't be cut in rows of 32.
    model = nets.model_of(
        [
            helper.make_node("Slice", ["x", "start", "end", "axis"], ["begun"]),
            helper.make_node("Reshape", ["begun", "halves"], ["cut"]),
            helper.make_node("ReduceSum", ["cut", "last"], ["logits"], keepdims=0),
        ],
        {
            "start": np.array([0]),
            "end": np.array([32]),
            "axis": np.array([1]),
            "halves": np.array([-1, 32]),
            "last": np.array([1]),
        },
        ["batch", "length"],
        ["batch"],
    )
    long = Session(loaded(tmp_path / "long.onnx", model))
    found = latency.runnable_feeds(long, 3, 0)
    assert found["x"].shape == (3, 32)
    assert measure.examine(loaded(tmp_path / "long.onnx", model), measure.Trial(seconds=0.01))["latency"]["p50_ms"] > 0
