"""What the demo refuses, before it does anything; the demo itself is walked through in `test_readme.py`."""

from pathlib import Path

import pytest
from artifacts import snapshot

from modelctl.cli.main import status_of

pytest.importorskip("torch")


@pytest.mark.parametrize(
    ("folder", "message", "hint"),
    [
        ("full", "full: stands already, and is not empty", "modelctl demo another-name"),
        ("full/a.txt", "full/a.txt: stands already, and is not empty", "modelctl demo another-name"),
        ("other", "other: holds another project", "modelctl demo another-name"),
        ("none/show", "none/show: no such folder: none", "mkdir -p none"),
    ],
)
def test_a_folder_that_cannot_be_the_demos_is_one_clear_line(
    folder: str,
    message: str,
    hint: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("full").mkdir()
    Path("full/a.txt").write_text("mine")
    Path("other").mkdir()
    Path("other/modelctl.toml").write_text("")
    before = snapshot(tmp_path)
    assert status_of(["demo", folder]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.splitlines() == [f"modelctl: error: {message}", f"modelctl: hint: {hint}"]
    assert snapshot(tmp_path) == before
