"""Samples that a function of the user's project gives."""

import itertools
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from modelctl import record
from modelctl.data import open_data, rows, stream
from modelctl.data.samples import Samples
from modelctl.errors import DataError, UsageError
from modelctl.manifest import TensorSpec
from modelctl.options import QuantizeOptions

SPEC = TensorSpec(name="pixels", dtype="float32", shape=("batch", 2))

_names = (f"mine{number}" for number in itertools.count())


@pytest.fixture
def name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module in the current folder that no test has imported yet."""
    monkeypatch.chdir(tmp_path)
    return next(_names)


@pytest.fixture(params=["held", "in files"], autouse=True)
def kept(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Little, which is held in memory, and what is too large for it."""
    if request.param == "in files":
        monkeypatch.setattr(rows, "HELD_BYTES", 0)


def given(name: str, body: str, names: Sequence[str] = ("pixels",), limit: int | None = None) -> tuple[Samples, str]:
    """What a function of this body gives."""
    lines = [f"    {line}" for line in body.splitlines()]
    Path(f"{name}.py").write_text("\n".join(["import numpy as np", "def samples():", *lines]) + "\n")
    return stream.read(f"{name}:samples", names, ["who"] if "who" in body else [], limit)


@pytest.mark.parametrize(
    "body",
    [
        "for i in range(3): yield {'pixels': np.full((4, 2), i, np.float32), 'y': np.full(4, i)}",
        "for i in range(3): yield {'x': np.full((4, 2), i, np.float32), 'y': np.full(4, i), 'more': None}",
        "for i in range(3): yield np.full((4, 2), i, np.float32), np.full(4, i)",
        "for i in range(3): yield [np.full((4, 2), i, np.float32), [i] * 4]",
        "for i in range(12): yield {'x': np.full((1, 2), i // 4, np.float32)}, [i // 4]",
        "return {'x': np.repeat(np.arange(3, dtype='f4'), 8).reshape(12, 2), 'y': np.repeat(np.arange(3), 4)}",
        "return np.repeat(np.arange(3, dtype='f4'), 8).reshape(12, 2), np.repeat(np.arange(3), 4)",
        "import torch\nfor i in range(3): yield torch.full((4, 2), float(i)), torch.full((4,), i)",
    ],
)
def test_takes_batches_as_people_write_them(name: str, body: str) -> None:
    found, digest = given(name, body)
    assert found.inputs["pixels"].tolist() == [[i, i] for i in range(3) for _ in range(4)]
    assert found.labels is not None
    assert found.labels.tolist() == [i for i in range(3) for _ in range(4)]
    assert digest == "d22b6351d7e2eca40ea9d199f6c2b5a421b1fde2903cd31615024830a91280d8"


def test_a_stream_without_end_stops_at_the_limit(name: str) -> None:
    body = "i = 0\nwhile True:\n    yield np.full((4, 2), i, np.float32)\n    i += 1"
    found, _ = given(name, body, limit=10)
    assert found.inputs["pixels"][:, 0].tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 2, 2]
    assert found.labels is None


def test_a_stream_without_end_and_limit_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "LIMIT_BYTES", 1000)
    with pytest.raises(DataError, match=r"samples: gave more than 1000 bytes, and did not end") as caught:
        given(name, "while True: yield np.zeros((4, 2), np.float32)")
    assert caught.value.hint == "#limit=10000"


def test_several_inputs_and_columns(name: str) -> None:
    body = "for i in range(3): yield {'a': np.full((2, 3), i), 'b': np.full((2,), -i), 'who': ['x' * i, 'y']}"
    found, _ = given(name, body, names=["a", "b"])
    assert found.inputs["a"][:, 2].tolist() == [0, 0, 1, 1, 2, 2]
    assert found.inputs["b"].tolist() == [0, 0, -1, -1, -2, -2]
    assert found.columns["who"].tolist() == ["", "y", "x", "y", "xx", "y"]


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("return 3", r"samples: gave int, and batches are arrays by name, or pairs \(x, y\)"),
        ("return 'x'", "gave str"),
        ("yield 3", "batch 1: is int, and a batch is arrays by name"),
        ("yield {'z': [1]}", "batch 1: expected an array 'pixels', found z"),
        ("yield {'x': [[1], [1, 2]]}", "batch 1: 'pixels': is no array: ValueError: setting an array element"),
        ("yield {'x': [None]}", "batch 1: 'pixels': holds object, and only plain numbers are read"),
        ("yield {'x': 1}", "batch 1: expected arrays whose first axis counts samples"),
        ("yield {'x': [[1]], 'y': [1, 2]}", "inputs and labels differ in number: 1 of 'pixels', 2 of 'y'"),
        ("yield np.zeros((0, 2))", "batch 1: holds no samples"),
        ("yield from ()", "samples: holds no samples"),
        ("yield np.zeros((4, 2))\nyield np.zeros((4, 3))", r"samples from 4 on: 'pixels' is float64\[3\] each, those"),
        (
            "yield np.zeros((4, 2))\nyield np.zeros((4, 2), 'f4')",
            r"'pixels' is float32\[2\] each, those before float64",
        ),
        ("yield {'x': [1], 'y': [1]}\nyield {'x': [1]}", "from 1 on: hold pixels, those before held pixels, y"),
        ("yield np.zeros((4, 2))\n1 / 0", r"samples: mine\d+\.py:4: ZeroDivisionError: division by zero"),
        ("raise SystemExit(3)", r"samples: mine\d+\.py:3: SystemExit: 3"),
        ("import torch\nyield torch.ones(1, 2, requires_grad=True)", "is no array: RuntimeError: Can't call numpy"),
    ],
)
def test_what_is_no_batch_is_said_in_one_line(name: str, body: str, says: str) -> None:
    with pytest.raises(DataError, match=says) as caught:
        given(name, body)
    assert caught.value.message.startswith(f"{name}:samples: ")
    assert "\n" not in caught.value.message


def test_a_function_that_is_not_there(name: str) -> None:
    with pytest.raises(UsageError, match="there is no module"):
        open_data(f"{name}:samples", [SPEC], 0)


def test_the_function_is_remembered_by_its_code_and_the_data_by_what_it_gives(name: str) -> None:
    Path(f"{name}.py").write_text(
        "from itertools import count\nimport numpy as np\ndef samples():\n"
        "    for i in count(): yield {'x': np.full((3, 2), i, np.float64), 'y': np.full(3, i)}\n"
    )
    data = open_data(f"{name}:samples#limit=30", [SPEC], 0)
    assert [len(part) for part in (data.train, data.validation, data.test)] == [24, 3, 3]
    assert data.train.inputs["pixels"].dtype == np.float32
    every = [part.labels for part in (data.train, data.validation, data.test) if part.labels is not None]
    assert sorted(np.concatenate(every).tolist()) == [i // 3 for i in range(30)]
    assert open_data(f"{name}:samples#limit=30", [SPEC], 1).sha256 == data.sha256
    assert open_data(f"{name}:samples#limit=31", [SPEC], 0).sha256 != data.sha256
    told = record.options(QuantizeOptions(data=f"{name}:samples#limit=30"))["data"]
    assert told["name"] == f"{name}:samples"
    assert told["limit"] == 30
    assert list(told["files"]) == [f"{name}.py"]
    assert re.fullmatch("[0-9a-f]{64}", told["files"][f"{name}.py"])
