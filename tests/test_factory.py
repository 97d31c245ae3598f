"""A factory is found in the current folder, whatever else is loaded; what it raises is told by place."""

import sys
from pathlib import Path

import pytest

from modelctl.errors import ArtifactError, UsageError
from modelctl.factory import build, load


def write(folder: Path, **modules: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in modules.items():
        (folder / f"{name}.py").write_text(text)


def test_a_module_of_the_same_name_from_elsewhere_is_not_used_and_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    write(one, netx="from layersx import size\ndef make(): return size", layersx="size = 1")
    write(other, netx="from layersx import size\ndef make(): return size", layersx="size = 2")
    before = list(sys.path)
    monkeypatch.chdir(one)
    assert build("netx:make")[0] == 1
    first = sys.modules["netx"]
    monkeypatch.chdir(other)
    assert build("netx:make")[0] == 2
    assert sys.modules["netx"] is first
    assert sys.path == before
    monkeypatch.chdir(one)
    assert build("netx:make")[0] == 1


def test_the_current_folder_comes_before_what_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import safetensors

    write(tmp_path, safetensors="def make(): return 'mine'")
    monkeypatch.chdir(tmp_path)
    assert build("safetensors:make")[0] == "mine"
    assert sys.modules["safetensors"] is safetensors


def test_a_package_without_init_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a" / "modelsx", deep="from . import wide\ndef make(): return wide.x", wide="x = 1")
    write(tmp_path / "b" / "modelsx", deep="from . import wide\ndef make(): return wide.x", wide="x = 2")
    for folder, wanted in (("a", 1), ("b", 2)):
        monkeypatch.chdir(tmp_path / folder)
        assert build("modelsx.deep:make")[0] == wanted


def test_nothing_is_left_in_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, cleanx="def make(): return 1")
    monkeypatch.chdir(tmp_path)
    build("cleanx:make")
    assert [file.name for file in tmp_path.iterdir()] == ["cleanx.py"]


def test_what_the_authors_code_raises_is_told_with_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(
        tmp_path, helperx="def deep():\n    return {}['key']", raisex="import helperx\ndef make():\n    helperx.deep()"
    )
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ArtifactError, match=r"^raisex:make: helperx\.py:2: KeyError: 'key'$"):
        build("raisex:make")


def test_ctrl_c_in_the_authors_code_stays_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, stoppingx="raise KeyboardInterrupt")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        load("stoppingx:make")


@pytest.mark.parametrize("reference", ["net", "net:", ":make", "a b:c", "net:make()", "../net:make", "net.:make"])
def test_what_is_no_reference_is_refused(reference: str) -> None:
    with pytest.raises(UsageError, match="not module:factory"):
        load(reference)
