"""Digests are what `sha256sum` says."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from modelctl import digests


def test_digest_of_a_file_is_its_sha256(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, appendix B.1
    assert digests.of_file(tmp_path / "a") == digests.of_bytes(b"abc") == digests.of_path(tmp_path / "a") == known


def test_digest_of_several_is_that_of_their_lines_and_of_one_its_own() -> None:
    one, two = ("a", "01" * 32), ("b", "02" * 32)
    assert digests.of_files([one]) == "01" * 32
    assert digests.of_files(iter([one, two])) == digests.of_lines([one, two])
    assert digests.of_lines([one, two]) != digests.of_lines([two, one])


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="needs sha256sum of coreutils")
def test_lines_are_those_of_sha256sum(tmp_path: Path) -> None:
    for name in ("b", "a", "c d"):
        (tmp_path / name).write_text(name)
    told = subprocess.run(["sha256sum", "a", "b", "c d"], cwd=tmp_path, capture_output=True, check=True).stdout
    assert digests.of_path(tmp_path) == digests.of_bytes(told)


def test_a_folder_changes_its_digest_with_content_and_with_names(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    file = tmp_path / "deep" / "x"
    file.write_text("1")
    first = digests.of_path(tmp_path)
    file.write_text("2")
    second = digests.of_path(tmp_path)
    file.rename(tmp_path / "deep" / "y")
    assert len({first, second, digests.of_path(tmp_path)}) == 3


def test_a_name_that_is_not_utf8_has_a_digest(tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.bin")).write_text("x")
    assert len(digests.of_path(tmp_path)) == 64
