"""The whole road on Fashion-MNIST, in a shortened form: what was measured at its start holds at its end."""

import importlib.util
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "bench" / "road.py"


@pytest.mark.slow
@pytest.mark.real_parts
def test_accuracy_over_http_from_a_sealed_pulled_copy_is_that_of_eval(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("road", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    road = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(road)
    if not road.FASHION_MNIST.is_dir():
        pytest.skip("apt-get install dataset-fashion-mnist")
    found = road.walk(tmp_path, road.FASHION_MNIST, limit=3000, epochs=4, asked=3000)
    assert found["float accuracy"] > 0.75
    assert found["float accuracy"] - found["int8 accuracy"] < 0.02
    assert found["accuracy over HTTP"] == found["int8 accuracy"]
    assert found["answers over HTTP"] == 3000
    assert found["student parameters"] <= found["parameters"] // 10
    assert found["int8 size ratio"] > 3.5
