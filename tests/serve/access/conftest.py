"""A server that asks who asks, and what there is to show it."""

import datetime
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import jwts
import pytest
import servers
from jwts import Signer
from servers import Running

from modelctl.options import KeygenOptions, KeyType, May
from modelctl.steps.keygen import keygen


@dataclass
class Guarded:
    """A server, the keys that it knows by the names of their owners, and who signs tokens for it."""

    server: Running
    keys: dict[str, str]
    signer: Signer
    folder: Path

    def bearer(self, who: str) -> dict[str, str]:
        """The header that shows somebody's key."""
        return {"Authorization": f"Bearer {self.keys[who]}"}


def made(folder: Path, name: str, **options: object) -> str:
    """A new key in `folder`, told of in its `keys.toml`."""
    keygen(folder / f"{name}.key", KeygenOptions(type=KeyType.API, **options))  # type: ignore[arg-type]
    return (folder / f"{name}.key").read_text().strip()


@pytest.fixture(scope="session")
def pair_of_models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two models, digits and affine."""
    folder = tmp_path_factory.mktemp("two")
    return [servers.affine(folder / "digits.onnx"), servers.affine(folder / "affine.onnx")]


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory, pair_of_models: list[Path]) -> Iterator[Guarded]:
    """A server of two models that takes keys and tokens, and pages of one origin."""
    folder = tmp_path_factory.mktemp("guarded")
    keys = {
        "root": made(folder, "root", mays=tuple(May)),
        "alice": made(folder, "alice", models=("dig*",)),
        "slow": made(folder, "slow", rate=0.001, burst=3),
        "late": made(folder, "late"),
    }
    past = (datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)).isoformat()
    text = (folder / "keys.toml").read_text()
    (folder / "keys.toml").write_text(text + f"expires = {past}\n")
    signer = Signer("RS256")
    (folder / "jwks.json").write_text(json.dumps({"keys": [signer.jwk()]}))
    flags = ["--api-keys", "keys.toml", "--cors-origin", "https://app.example"]
    flags += ["--jwt-keys", "jwks.json", "--jwt-issuer", jwts.ISSUER, "--jwt-audience", jwts.AUDIENCE]
    with servers.running(pair_of_models, *flags, "--timeout-s", "10", folder=folder) as server:
        yield Guarded(server, keys, signer, folder)
        assert server.stop() == (0, "")
