"""What the tests of the measured steps start from: a small net that was trained, and samples to measure it on."""

from pathlib import Path

import nets
import pytest

from modelctl.artifact import Artifact


@pytest.fixture
def net(tmp_path: Path) -> Artifact:
    """A convolutional net."""
    return Artifact.open(nets.save(nets.convolutional(), tmp_path / "net.onnx"))


@pytest.fixture
def data(tmp_path: Path) -> str:
    """Samples for that net, as `--data` names them."""
    return str(nets.save_npz(tmp_path / "samples.npz"))
