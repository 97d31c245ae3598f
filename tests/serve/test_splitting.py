"""Several versions behind one name: by share, or as a shadow."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import servers
from onnx import helper
from servers import eventually, v2

from modelctl import digests
from modelctl.artifact import Artifact
from modelctl.errors import UsageError
from modelctl.making import Origin, create
from modelctl.options import PushOptions, ServeOptions, StepOptions
from modelctl.serve.splitting import agree
from modelctl.steps.push import push

X = np.array([[1, 2, 3, 4]], np.float32)


def scaled(path: Path, scale: float) -> Path:
    """y[batch,2] = x @ w · scale: of another sign, another class wins."""
    w = np.array([[1, 0], [1, 0], [0, 1], [0, 1]], np.float32) * scale
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    return servers.save(path, nodes, [("x", 1, ["batch", 4])], [("y", 1, ["batch", 2])], {"w": w})


@pytest.fixture(scope="module")
def versions(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, str]]:
    """Ref and digest of three versions: `near` says what `stable` says, `wrong` does not."""
    folder = tmp_path_factory.mktemp("versions")
    store = f"sqlite:///{folder}/models.db"
    found = {}
    for tag, scale in (("near", 1.5), ("wrong", -1.0), ("stable", 1.0)):
        root = scaled(folder / f"{tag}.onnx", scale)
        out = folder / tag / "digits.onnx"
        out.parent.mkdir()
        with create(out, Origin("export", StepOptions(), (Artifact.open(root),))) as draft:
            draft.path.write_bytes(root.read_bytes())
        push(Artifact.open(out), f"{store}/digits:{tag}", PushOptions())
        found[tag] = (f"{store}/digits:{tag}", digests.of_file(out))
    return found


@pytest.mark.parametrize("workers", ["1", "2"])
def test_requests_are_divided_by_share_and_say_who_answered(versions: dict[str, tuple[str, str]], workers: str) -> None:
    refs = [ref for ref, _ in versions.values()]
    flags = ("--route", "digits:stable=70,digits:near=30,digits:wrong=0", "--workers", workers)
    names = {digest: tag for tag, (_, digest) in versions.items()}
    with servers.running(refs, *flags) as server:
        for path, body in (
            ("/v2/models/digits/infer", {"inputs": [v2("x", X, "FP32")]}),
            ("/predict", X.tolist()),
            ("/predict/digits", X.tolist()),
        ):
            seen: Counter[str] = Counter()
            for _ in range(100):
                answer = server.ask(path, body)
                assert answer.status == 200
                seen[names[answer.headers["modelctl-model"].partition("sha256:")[2]]] += 1
            assert set(seen) == {"stable", "near"}
            assert seen["stable"] > seen["near"]
        for tag, (_, digest) in versions.items():
            answer = server.ask(f"/v2/models/digits/versions/{tag}/infer", {"inputs": [v2("x", X, "FP32")]})
            assert answer.headers["modelctl-model"] == f"digits@sha256:{digest}"
            assert answer.json["model_version"] == tag
        assert server.stop() == (0, "")


@pytest.mark.parametrize(("shadow", "disagreements"), [("near", 0), ("wrong", 20)])
def test_a_shadow_is_compared_and_heard_by_nobody(
    versions: dict[str, tuple[str, str]], shadow: str, disagreements: int
) -> None:
    refs = [ref for ref, _ in versions.values()]
    with servers.running(refs, "--shadow", f"digits:{shadow}") as server:
        for _ in range(20):
            answer = server.ask("/v2/models/digits/infer", {"inputs": [v2("x", X, "FP32")]})
            assert answer.headers["modelctl-model"] == f"digits@sha256:{versions['stable'][1]}"
            assert answer.json["outputs"][0]["data"] == [3, 7]
        eventually(lambda: server.metric("modelctl_shadow_requests_total", version=shadow) == 20)
        assert server.metric("modelctl_shadow_disagreements_total") == disagreements
        assert server.metric("modelctl_requests_total", version=shadow) == 0
        assert server.metric("modelctl_requests_total", version="stable") == 20
        assert server.ask(f"/v2/models/digits/versions/{shadow}/infer", {"inputs": [v2("x", X, "FP32")]}).status == 200
        assert server.stop() == (0, "")


@pytest.mark.parametrize(
    "route",
    ["digits", "digits:a", "digits:a=x", "digits:a=-1", "digits:a=0", "a:x=1,b:y=1", "=1", ":a=1", "digits:=1", ""],
)
def test_a_route_that_makes_no_sense_is_refused(route: str) -> None:
    with pytest.raises(UsageError, match="--route"):
        ServeOptions(routes=(route,))


def test_a_version_that_is_not_there_is_told(versions: dict[str, tuple[str, str]]) -> None:
    from modelctl.serve.models import load_all

    ref = versions["stable"][0]
    for options in (ServeOptions(routes=("digits:stable=1,digits:next=1",)), ServeOptions(shadows=("digits:next",))):
        with pytest.raises(UsageError, match="no version 'next' of digits; served: stable"):
            load_all([ref], options)
    with pytest.raises(UsageError, match="--shadow"):
        ServeOptions(shadows=("digits",))


def test_answers_agree_by_class_by_value_or_exactly() -> None:
    scores = np.array([[0.1, 0.9], [0.8, 0.2]], np.float32)
    assert agree({"y": scores}, {"y": scores * 3 + 1})
    assert not agree({"y": scores}, {"y": scores[:, ::-1]})
    assert not agree({"y": scores}, {"z": scores})
    assert not agree({"y": scores}, {"y": scores[:1]})
    numbers = np.array([1.0, 2.0, 3.0], np.float32)
    assert agree({"y": numbers}, {"y": numbers * 1.001})
    assert not agree({"y": numbers}, {"y": numbers * 1.1})
    assert not agree({"y": np.array([1, 2])}, {"y": np.array([1, 3])})
    assert not agree({"y": numbers}, ValueError())
    assert agree(ValueError(), TypeError())
