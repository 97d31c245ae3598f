"""The OpenAPI document, read by tools that no one here wrote: schemathesis asks a server by it, Redocly reads it."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import generated
import page_models
import pytest
import servers
from servers import Running

from modelctl.options import KeygenOptions, KeyType, May
from modelctl.steps.keygen import keygen

pytestmark = pytest.mark.real_parts
REFUSALS = """
import schemathesis

@schemathesis.check
def is_refused(context, response, case):
    if case.operation.definition.raw.get("security") != []:
        assert response.status_code == 401, response.status_code
        assert list(response.json()) == ["error"]
        assert not {"modelctl-model", "server-timing"} & {name.lower() for name in response.headers}
"""
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


def schemathesis(
    server: Running, folder: Path, *flags: str, document: Path | None = None, hooks: str | None = None
) -> None:
    """Ask all operations of a server, but some, with examples and with what lies at the bounds of their schemas.

    `document` is what it told of itself before, `hooks` a module in `folder` with further checks.
    """
    pytest.importorskip("schemathesis", reason="pip install schemathesis")
    where = [f"{server.url}/openapi.json"] if document is None else [str(document), "--url", server.url]
    told = [str(Path(sys.executable).with_name("st")), "run", *where, "--no-color", "--seed", "1"]
    phases = "examples,coverage,fuzzing" if hooks is None else "coverage"
    told += ["--phases", phases, "-n", "3", "--suppress-health-check", "all", "--warnings", "off"]
    env = {**os.environ, "SCHEMATHESIS_HOOKS": hooks} if hooks is not None else None
    found = subprocess.run([*told, *flags], capture_output=True, text=True, timeout=120, cwd=folder, env=env)
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


def told_of(document: Any, scheme: str, folder: Path) -> Path:
    """A document in which callers tell who they are in one way only."""
    schemes = {scheme: document["components"]["securitySchemes"][scheme]}
    told = document | {"security": [{scheme: []}], "components": document["components"] | {"securitySchemes": schemes}}
    (folder / f"{scheme}.json").write_text(json.dumps(told))
    return folder / f"{scheme}.json"


@pytest.mark.slow
def test_schemathesis_finds_it_with_a_key_and_nothing_but_refusals_without(
    zoo: dict[str, Path], tmp_path: Path
) -> None:
    keygen(tmp_path / "root.key", KeygenOptions(type=KeyType.API, mays=tuple(May)))
    key = (tmp_path / "root.key").read_text().strip()
    (tmp_path / "refusals.py").write_text(REFUSALS)
    with servers.running([zoo["affine"]], "--api-keys", "keys.toml", folder=tmp_path) as server:

        def computed() -> str:
            lines = server.ask("/metrics", X_Api_Key=key).body.decode().splitlines()
            return next(one for one in lines if one.startswith("modelctl_requests_total{") and "affine" in one)

        told = server.ask("/openapi.json", X_Api_Key=key).json
        assert told["security"] == [{"bearer": []}, {"key": []}]
        good, wrong = ["--header", f"Authorization: Bearer {key}"], ["--header", f"X-Api-Key: {key}x"]
        # What is shown is shown one way: of two it would make up both at once, and that is refused as malformed.
        document = told_of(told, "bearer", tmp_path)
        # This asks without the key, too, and with one that is made up.
        schemathesis(server, tmp_path, *good, "--exclude-path-regex", f"{LINES}|/infer$", document=document)
        before = computed()
        for scheme, shown in (("bearer", []), ("key", wrong)):
            document = told_of(told, scheme, tmp_path)
            schemathesis(server, tmp_path, *shown, "--checks", "is_refused", document=document, hooks="refusals")
        assert computed() == before
        assert server.stop() == (0, "")


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
