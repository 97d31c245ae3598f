"""Numbers and names in a manifest that nobody writes who means well."""

import pytest

from modelctl.errors import ArtifactError
from modelctl.manifest import FILE, FileEntry, Manifest, parse

SMALL = Manifest(name="m", format="onnx", files=(FileEntry(path="a.onnx", size=1, sha256="ab" * 32),)).text()


@pytest.mark.parametrize("number", ["9" * 400, str(2**64 + 1), str(-(2**64) - 1)])
def test_a_number_that_nothing_can_count_with_is_refused(number: str) -> None:
    with pytest.raises(ArtifactError, match="out of range"):
        parse(SMALL.replace('"size": 1', f'"size": {number}').encode())


def test_the_largest_numbers_are_read() -> None:
    assert FILE.json(f"[{2**64}, {-(2**64)}]".encode(), "x") == [2**64, -(2**64)]


@pytest.mark.parametrize("name", ["/../evil", "../evil", "a/b", "a\\\\b", "a\\u001b[2J", "a\\nb"])
def test_a_name_that_could_lead_elsewhere_or_steer_a_terminal_is_refused(name: str) -> None:
    with pytest.raises(ArtifactError, match="no plain one"):
        parse(SMALL.replace('"name": "m"', f'"name": "{name}"').encode())
