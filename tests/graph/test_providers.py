import nets
import pytest

from modelctl.artifact import Artifact, Payload
from modelctl.errors import UnsupportedError, UsageError
from modelctl.graph import latency, measure, providers
from modelctl.graph.session import Session
from modelctl.options import MeasuredOptions

MISSING = sorted(set(providers.PACKAGES) - set(providers.available()))[0]


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Payload:
    return Artifact.open(nets.save(nets.linear(), tmp_path_factory.mktemp("net") / "net.onnx")).load()


def test_there_is_always_a_cpu_and_nothing_that_asks_another_machine() -> None:
    assert "cpu" in providers.available()
    assert "azure" not in providers.available()


@pytest.mark.parametrize("name", ["cpu", "CPU", "CPUExecutionProvider"])
def test_the_cpu_by_any_of_its_names(net: Payload, name: str) -> None:
    session = Session(net, provider=name)
    assert session.provider == "cpu"
    assert session.run(latency.random_feeds(session.inputs, 3, 0))["logits"].shape == (3, 4)


def test_a_latency_names_where_it_was_taken(net: Payload) -> None:
    assert measure.examine(net, measure.Trial(seconds=0.01, provider="CPU"))["latency"]["provider"] == "cpu"
    assert measure.compare(net, net, measure.Trial(seconds=0.01))["latency"]["provider"] == "cpu"


def test_one_that_is_not_installed_is_refused_with_what_is_and_the_package_that_has_it(net: Payload) -> None:
    says = f"--provider {MISSING}: the installed onnxruntime has .*cpu.*; {MISSING} is in onnxruntime-"
    with pytest.raises(UnsupportedError, match=says) as caught:
        Session(net, provider=MISSING)
    assert caught.value.hint is not None
    assert caught.value.hint.endswith(f"pip install {providers.PACKAGES[MISSING]}")
    with pytest.raises(UnsupportedError, match=says):  # before any work
        measure.trial_on(None, MeasuredOptions(), MISSING)
    with pytest.raises(UnsupportedError, match=r"the installed onnxruntime has .*cpu$"):
        providers.resolve("Rknpu")  # in no package


@pytest.mark.parametrize("name", ["", "gpu", "azure", "CPU\x1b[2J"])
def test_one_that_onnxruntime_does_not_know_is_refused(net: Payload, name: str) -> None:
    with pytest.raises(UsageError, match=r"no such provider; the installed onnxruntime has .*cpu"):
        Session(net, provider=name)


def test_one_that_runs_nothing_of_a_model_is_found_out(net: Payload, monkeypatch: pytest.MonkeyPatch) -> None:
    # This one is in every onnxruntime for Linux, takes no nodes, and leaves them to the CPU without a word.
    monkeypatch.setattr(providers, "_ELSEWHERE", frozenset())
    if "azure" not in providers.available():
        pytest.skip("needs an onnxruntime that has AzureExecutionProvider, as those from PyPI for Linux do")
    with pytest.raises(UnsupportedError, match=r"net\.onnx: azure runs none of its nodes"):
        Session(net, provider="azure")
