"""The stores that every test here is run against, and artifacts to put into them."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from modelctl.artifact import Artifact
from modelctl.making import Origin, create
from modelctl.options import StepOptions
from modelctl.stores.store import Store, open_store


@pytest.fixture(params=["sqlite", "file"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a store that is not there yet."""
    return f"sqlite:///{tmp_path}/models.db" if request.param == "sqlite" else f"file://{tmp_path}/models"


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    """A new store."""
    opened = open_store(url, create=True)
    yield opened
    opened.close()


MakeArtifact = Callable[..., Artifact]


@pytest.fixture
def make_artifact(tmp_path: Path) -> MakeArtifact:
    """Makes an artifact of the bytes given for each file, the first being the primary one."""

    def make(files: dict[str, bytes] | None = None, folder: str = "made") -> Artifact:
        files = files or {"digits.onnx": b"graph" * 1000, "digits.onnx.data": b"weights" * 5000}
        (tmp_path / folder).mkdir(exist_ok=True)
        out = tmp_path / folder / next(iter(files))
        with create(out, Origin("export", StepOptions(force=True), ())) as draft:
            for name, data in files.items():
                (draft.path.parent / name).write_bytes(data)
        return Artifact.open(out)

    return make
