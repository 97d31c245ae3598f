"""What looks into no model starts without a tensor library, and `--help` without drawing tools too.

Asked of `sys.modules` when the command is done, never of a clock.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from artifacts import make, origin_of

from modelctl.artifact import Artifact
from modelctl.cli.main import COMMANDS
from modelctl.manifest import TensorSpec

HEAVY = {"torch", "onnx", "onnx_ir", "onnxscript", "onnxruntime", "numpy", "ml_dtypes"}

# Runs one command line, then says on the last line of stdout which of the modules asked after were imported.
CODE = """
import json, sys
from modelctl.cli.main import status_of
status = status_of(sys.argv[2:])
print()
print(json.dumps({"status": status, "imported": sorted(set(json.loads(sys.argv[1])) & set(sys.modules))}))
"""


def imported(modules: set[str], *argv: str, cwd: Path) -> list[str]:
    """Which of `modules` a command line imports; it must end well."""
    done = subprocess.run(
        [sys.executable, "-c", CODE, json.dumps(sorted(modules)), *argv],
        capture_output=True,
        text=True,
        cwd=cwd,
        timeout=60,
    )
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["status"] == 0, done.stderr
    found: list[str] = told["imported"]
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A real ONNX file, an artifact made from it, and a key."""
    from onnx import TensorProto, helper, save

    place = tmp_path_factory.mktemp("startup")
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])],
    )
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]), place / "a.onnx")
    origin = origin_of(Artifact.open(place / "a.onnx"))
    made = make(place / "b.onnx", origin, (place / "a.onnx").read_bytes())
    assert made.manifest.inputs == () or isinstance(made.manifest.inputs[0], TensorSpec)
    yield place


DRAWING = {"rich", "asyncio", "uvicorn", "Crypto", "sqlite3"}
UNREAD = {"pydantic", "importlib.metadata", "tomllib", "modelctl.making"}


@pytest.mark.parametrize("argv", [["--help"], ["quantize", "--help"], ["--version"]])
def test_help_imports_nothing_heavy_and_draws_nothing(argv: list[str], tmp_path: Path) -> None:
    # Typer reads the arguments of a command with pydantic, which its help can do without.
    assert imported(HEAVY | DRAWING | UNREAD, *argv, cwd=tmp_path) == []


@pytest.mark.parametrize(
    ("command", "rest"),
    [
        ("inspect", ["b.onnx"]),
        ("verify", ["b.onnx"]),
        ("log", ["b.onnx"]),
        ("push", ["b.onnx", "sqlite:///store.db/b:1"]),
        ("push", ["b.onnx", "{folder}/b:1"]),
        ("keygen", ["-o", "key.pem"]),
    ],
)
def test_a_command_that_looks_into_no_model_imports_no_tensor_library(
    command: str, rest: list[str], folder: Path
) -> None:
    assert command in COMMANDS
    words = [word.replace("{folder}", f"file://{folder}/store") for word in rest]
    assert imported(HEAVY, command, *words, cwd=folder) == []
