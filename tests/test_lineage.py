"""The lineage told to a person: figures of any metrics, and a tree that tells each ancestor once."""

import string
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelctl.lineage import chain, figures, megabytes, steps, tree
from modelctl.manifest import Encryption, FileEntry, Manifest, Record, Step

A, B, C, D, E = (letter * 64 for letter in "abcde")


def record(name: str, digest: str, *parents: str, **metrics: Any) -> Record:
    step = Step(step="prune", version="1", parents=parents) if parents else None
    return Record(name=name, format="onnx", digest=digest, made_by=step, metrics=metrics)


def manifest(digest: str, *lineage: Record, parents: tuple[str, ...], **more: Any) -> Manifest:
    entry = FileEntry(path="m.onnx", size=1, sha256=digest)
    step = Step(step="distill", version="1", parents=parents)
    return Manifest(name="m", format="onnx", files=(entry,), made_by=step, lineage=lineage, **more)


def test_a_chain_is_a_tree_and_each_ancestor_is_told_once() -> None:
    lineage = (record("net", A), record("float", B, A, parameters=12), record("thin", C, B), record("teacher", D))
    lines = list(tree(manifest(E, *lineage, parents=(C, D, B))))
    assert lines == [
        f"m  onnx  distill  sha256:{E[:12]}",
        f"├── thin  onnx  prune  sha256:{C[:12]}",
        f"│   └── float  onnx  prune  sha256:{B[:12]}  12 parameters",
        f"│       └── net  onnx  sha256:{A[:12]}",
        f"├── teacher  onnx  sha256:{D[:12]}",
        f"└── float  onnx  prune  sha256:{B[:12]}  12 parameters  (told above)",
    ]


def test_a_sealed_artifact_stands_above_the_one_inside() -> None:
    sealed = Encryption(suite="x", recipients=(), manifest=A, digest=B)
    lines = list(tree(manifest(E, record("net", A), record("m", B, A), parents=(B,), encryption=sealed)))
    assert [line.count("told above") for line in lines] == [0, 0, 0]
    assert lines[1].startswith("└── m  onnx  prune") and lines[2].startswith("    └── net")


def test_a_history_that_is_one_line_is_told_in_one() -> None:
    lineage = (record("net", A), record("float", B, A))
    assert list(chain(manifest(C, *lineage, parents=(B,)))) == ["chain: root → prune → distill"]
    sealed = Encryption(suite="x", recipients=(), manifest=A, digest=B)
    assert list(chain(manifest(E, *lineage, parents=(B,), encryption=sealed))) == ["chain: root → prune → distill"]
    assert list(chain(manifest(E, parents=(), encryption=sealed))) == ["chain: distill"]  # sealed in private


def test_a_history_of_two_roots_is_told_as_the_tree_that_it_is() -> None:
    made = manifest(E, record("net", A), record("float", B, A), record("teacher", D), parents=(B, D))
    assert list(chain(made)) == ["chain:", *(f"  {line}" for line in tree(made))]
    assert steps(made) == ["root", "prune", "root", "distill"]


def test_of_a_lineage_that_is_no_chain_all_is_told_that_there_is() -> None:
    lines = list(tree(manifest(E, record("net", A), record("stray", D), record("loop", B, B), parents=(C, A))))
    assert lines == [
        f"m  onnx  distill  sha256:{E[:12]}",
        f"├── (not told of)  unknown  sha256:{C[:12]}",
        f"└── net  onnx  sha256:{A[:12]}",
        f"loop  onnx  prune  sha256:{B[:12]}",
        f"└── loop  onnx  prune  sha256:{B[:12]}  (told above)",
        f"stray  onnx  sha256:{D[:12]}",
    ]


def test_a_very_long_chain_is_told_to_its_end() -> None:
    digests = [f"{number:064x}" for number in range(3000)]
    chain = [record("root", digests[0])]
    chain += [record("m", mine, parent) for parent, mine in pairwise(digests)]
    assert len(list(tree(manifest(E, *chain, parents=(digests[-1],))))) == 3001


def test_figures_are_those_that_steps_measure() -> None:
    metrics = {
        "accuracy": {"metric": "top1", "value": 0.9213},
        "drop_pp": 0.3,
        "parameters": 469962,
        "sparsity": 0.5,
        "size_bytes": 1_880_000,
        "latency": {"p50_ms": 0.12345, "speedup": {"value": 1.934}},
    }
    told = [
        "top1 92.13 %",
        "-0.30 points",
        "469,962 parameters",
        "50.0 % zeros",
        "1.880 MB",
        "0.123 ms",
        "×1.93 as fast",
    ]
    assert figures(metrics) == told
    assert figures({"accuracy": {"metric": "rmse", "value": 0.123456}}) == ["rmse 0.1235"]
    assert figures({"drop_pp": 0.0, "sparsity": 0.0}) == ["+0.00 points"]


@pytest.mark.parametrize(
    ("count", "told"),
    [(0, "0 bytes"), (999, "999 bytes"), (1000, "0.001 MB"), (10**8, "100 MB"), (10**10, "10,000 MB")],
)
def test_sizes_are_told_in_megabytes(count: int, told: str) -> None:
    assert megabytes(count) == told


NAMES = st.sampled_from(
    ["accuracy", "value", "metric", "drop_pp", "parameters", "sparsity", "size_bytes", "latency", "p50_ms", "speedup"]
)
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(string.printable, max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=12,
)


@settings(deadline=None, max_examples=100)
@given(st.dictionaries(NAMES, ANYTHING, max_size=6))
def test_no_metrics_are_too_odd(metrics: dict[str, Any]) -> None:
    assert all(isinstance(one, str) for one in figures(metrics))
