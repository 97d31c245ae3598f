"""The OpenAPI document, read by tools that no one here wrote: schemathesis asks a server by it, Redocly reads it."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import generated
import page_models
import pytest
import servers
from servers import Running

pytestmark = pytest.mark.real_parts
LINES = "/(labels|versions)/|/repository/models/"  # the same again, or what takes models away from the others


@pytest.fixture(scope="module")
def one(zoo: dict[str, Path]) -> Iterator[Running]:
    with servers.running([zoo["affine"]]) as found:
        yield found
        assert found.stop() == (0, "")


@pytest.fixture(scope="module")
def several(zoo: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("several")
    fixed = servers.echo(folder / "fixed.onnx", 7, [2, 3])
    with servers.running([zoo["pair"], fixed, page_models.readable(folder), page_models.houses(folder)]) as found:
        yield found
        assert found.stop() == (0, "")


def schemathesis(server: Running, folder: Path, *flags: str) -> None:
    """Ask all operations of a server, but some, with examples and with what lies at the bounds of their schemas."""
    pytest.importorskip("schemathesis", reason="pip install schemathesis")
    told = [str(Path(sys.executable).with_name("st")), "run", f"{server.url}/openapi.json", "--no-color", "--seed", "1"]
    told += ["--phases", "examples,coverage,fuzzing", "-n", "3", "--suppress-health-check", "all", "--warnings", "off"]
    found = subprocess.run([*told, *flags], capture_output=True, text=True, timeout=120, cwd=folder)
    assert found.returncode == 0, found.stdout[-8000:]
    assert "no failures" in found.stdout or "No issues found" in found.stdout, found.stdout[-2000:]


@pytest.mark.slow
def test_schemathesis_finds_what_is_told_to_be_so(one: Running, tmp_path: Path) -> None:
    # How much data goes with a shape, and which header with which body, no schema can say.
    schemathesis(one, tmp_path, "--exclude-path-regex", f"{LINES}|/infer$")
    schemathesis(one, tmp_path, "--include-path-regex", "affine/infer$", "--exclude-checks", "positive_data_acceptance")


@pytest.mark.slow
def test_schemathesis_finds_it_of_several_models(several: Running, tmp_path: Path) -> None:
    # That two inputs have as many rows as each other, or what is a picture, no schema can say.
    schemathesis(several, tmp_path, "--exclude-path-regex", LINES, "--exclude-checks", "positive_data_acceptance")


def test_redocly_finds_nothing_to_say(several: Running, tmp_path: Path) -> None:
    redocly = shutil.which("redocly")
    if redocly is None:
        pytest.skip("npm install -g @redocly/cli")
    live = tmp_path / "live.json"
    live.write_bytes(several.ask("/openapi.json").body)
    command = [redocly, "lint", "--skip-rule", "info-license", str(live), str(generated.CONTRACT)]
    env = {**os.environ, "REDOCLY_TELEMETRY": "off", "REDOCLY_SUPPRESS_UPDATE_NOTICE": "true"}
    found = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path, env=env)
    said = found.stdout + found.stderr
    assert found.returncode == 0, said
    assert "warning" not in said.lower().replace("deprecation warning", ""), said
