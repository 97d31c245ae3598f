"""Where models are run: onnxruntime's execution providers by short names, such as cpu and cuda, in any case.

A name is onnxruntime's own without `ExecutionProvider` (https://onnxruntime.ai/docs/execution-providers/). What the
installed onnxruntime has depends on the package it came in. Nodes that a provider has no kernel for run on the CPU.
"""

from collections.abc import Sequence

import onnxruntime as ort

from modelctl.errors import UnsupportedError, UsageError
from modelctl.graph.chatter import hushed

CPU = "cpu"
_SUFFIX = "ExecutionProvider"
_CPU = f"CPU{_SUFFIX}"
_ELSEWHERE = frozenset({"azure"})  # sends what it is asked to another machine, and runs no graph
# The PyPI package whose onnxruntime has it.
PACKAGES = {
    "cuda": "onnxruntime-gpu",
    "tensorrt": "onnxruntime-gpu",
    "openvino": "onnxruntime-openvino",
    "dml": "onnxruntime-directml",
    "qnn": "onnxruntime-qnn",
    "migraphx": "onnxruntime-migraphx",
    "webgpu": "onnxruntime-webgpu",
    "cann": "onnxruntime-cann",
}


def available() -> tuple[str, ...]:
    """The short names of those that the installed onnxruntime has, the one it prefers first."""
    return tuple(name for name in map(short, ort.get_available_providers()) if name not in _ELSEWHERE)


def resolve(provider: str) -> tuple[str, ...]:
    """onnxruntime's names of what a session is to run on, the CPU last.

    UsageError for a name that onnxruntime does not know, UnsupportedError for one that is not installed.
    """
    wanted = provider.lower().removesuffix(_SUFFIX.lower())
    here = available()
    if wanted == CPU:
        return (_CPU,)
    if wanted in here:
        full = next(one for one in ort.get_available_providers() if short(one) == wanted)
        if wanted in ("cuda", "tensorrt"):
            with hushed():
                ort.preload_dlls()  # of the nvidia packages, which nothing else finds
        return (full, _CPU)
    has = f"the installed onnxruntime has {', '.join(here)}"
    if wanted in _ELSEWHERE or wanted not in map(short, ort.get_all_providers()):
        raise UsageError(f"--provider {provider}: no such provider; {has}", f"--provider {here[0]}")
    package = PACKAGES.get(wanted)
    built_in = f"; {wanted} is in {package}" if package else ""
    hint = f"pip uninstall onnxruntime; pip install {package}" if package else f"--provider {here[0]}"
    raise UnsupportedError(f"--provider {provider}: {has}{built_in}", hint)


def settings(names: Sequence[str], threads: int) -> list[dict[str, str]]:
    """For each of onnxruntime's names, what a provider that has threads of its own must be told of them."""
    return [{"num_of_threads": str(threads)} if short(name) == "openvino" else {} for name in names]


def check_running(session: ort.InferenceSession, wanted: str, name: str) -> None:
    """UnsupportedError unless a session really runs the model `name` on the provider it was made for, in part at least.

    onnxruntime falls back to the CPU without a word where a provider does not start, or can run nothing.
    """
    if wanted not in session.get_providers():
        raise UnsupportedError(f"{name}: onnxruntime can't start {short(wanted)} here", "--provider cpu")
    if not any(one.ep_name == wanted for one in session.get_provider_graph_assignment_info()):
        raise UnsupportedError(f"{name}: {short(wanted)} runs none of its nodes", "--provider cpu")


def short(name: str) -> str:
    """The short name of onnxruntime's."""
    return name.removesuffix(_SUFFIX).lower()
