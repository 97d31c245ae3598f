"""One server of several small models, which most tests here ask."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import servers
from onnx import TensorProto
from servers import Running


@pytest.fixture(scope="session")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Model files by name."""
    folder = tmp_path_factory.mktemp("zoo")
    return {
        "affine": servers.affine(folder / "affine.onnx"),
        "pair": servers.pair(folder / "pair.onnx"),
        "log": servers.logarithm(folder / "log.onnx"),
        "lookup": servers.lookup(folder / "lookup.onnx"),
        "words": servers.echo(folder / "words.onnx", TensorProto.STRING),
        "bits": servers.echo(folder / "bits.onnx", TensorProto.BOOL),
        "half": servers.echo(folder / "half.onnx", TensorProto.FLOAT16),
        "brain": servers.echo(folder / "brain.onnx", TensorProto.BFLOAT16),
        "slow": servers.slow(folder / "slow.onnx"),
    }


@pytest.fixture(scope="session")
def server(zoo: dict[str, Path]) -> Iterator[Running]:
    """A server of the whole zoo."""
    with servers.running(list(zoo.values()), "--max-body-mb", "1", "--timeout-s", "10") as found:
        yield found
        status, err = found.stop()
        assert status == 0, err
        assert err == ""
