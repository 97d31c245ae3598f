"""What of a step's options is remembered: content by digest, never a place, never a secret."""

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelctl import digests, record
from modelctl.errors import DataError, UsageError
from modelctl.knobs import Knob
from modelctl.options import DistillOptions, EncryptOptions, ExportOptions, QuantizeOptions, StepOptions
from modelctl.record import DataRef


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s.npz").write_bytes(b"samples")


@pytest.mark.parametrize(
    ("text", "split", "limit"),
    [
        ("s.npz", None, None),
        ("s.npz#", None, None),
        ("s.npz#split=test", "test", None),
        ("s.npz#limit=5", None, 5),
        ("s.npz#split=train,limit=5", "train", 5),
        ("s.npz#split=train&limit=5", "train", 5),
        ("s.npz#limit=5#split=train", "train", 5),
    ],
)
def test_a_data_reference_is_taken_apart(text: str, split: str | None, limit: int | None) -> None:
    assert DataRef.parse(text) == DataRef(Path("s.npz"), split, limit)


def test_a_target_and_code_that_gives_samples_are_told_apart() -> None:
    assert DataRef.parse("s.npz#target=a%2Cb,limit=5") == DataRef(Path("s.npz"), None, 5, "a,b")
    assert DataRef.parse("mine.data:samples#limit=5") == DataRef(Path("mine.data:samples"), None, 5, is_code=True)
    Path("mine:samples").write_bytes(b"a file of such a name")
    assert not DataRef.parse("mine:samples").is_code


@pytest.mark.parametrize("rest", ["split=", "split=val", "target=", "limit=0", "limit=-1", "limit=x", "limit=²",
                                  "limit=", "frob=1", "limit=99999999999", "split"])  # fmt: skip
def test_an_odd_selection_is_refused_with_a_line_to_type(rest: str) -> None:
    with pytest.raises(UsageError, match=r"--data s\.npz#.*: can't select") as caught:
        DataRef.parse(f"s.npz#{rest}")
    assert caught.value.hint == "--data 's.npz#split=test,limit=1000'"


@pytest.mark.parametrize("text", ["no.npz", "", "#split=test", "no#limit=2"])
def test_samples_that_are_not_there_are_a_data_error(text: str) -> None:
    with pytest.raises(DataError, match="no such file or folder"):
        DataRef.parse(text)


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=20))
def test_any_selection_is_read_or_refused(text: str) -> None:
    try:
        ref = DataRef.parse(f"{os.devnull}#{text}")
    except (UsageError, DataError):
        return
    assert ref.split in (None, "train", "test")
    assert ref.limit is None or ref.limit > 0


def test_options_are_remembered_by_content(tmp_path: Path) -> None:
    (tmp_path / "w.pt").write_bytes(b"weights")
    given_options = ExportOptions(weights=tmp_path / "w.pt", data=f"{tmp_path}/s.npz#limit=3", annotations=("a=b",))
    told = record.options(given_options)
    assert told["weights"] == {"name": "w.pt", "sha256": digests.of_bytes(b"weights")}
    assert told["data"] == {"name": "s.npz", "sha256": digests.of_bytes(b"samples"), "limit": 3}
    assert told["rtol"] == ExportOptions.rtol
    assert not {"threads", "annotations", "force"} & set(told)
    assert str(tmp_path) not in str(told)


def test_a_key_or_passphrase_leaves_no_trace() -> None:
    options = EncryptOptions(recipients=("env:KEY", "me.pub.pem"), key_file="secret.aes")
    assert record.options(options) == {"private": False}


def test_a_folder_is_remembered_by_all_that_is_in_it(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "x").write_bytes(b"1")
    before = record.options(QuantizeOptions(data="set"))
    (tmp_path / "set" / "y").write_bytes(b"2")
    assert record.options(QuantizeOptions(data="set")) != before


@dataclass(frozen=True, kw_only=True)
class PathsOptions(StepOptions):
    places: Annotated[tuple[Path, ...], Knob("places")] = ()


def test_a_missing_path_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"w\.pt: no such file"):
        record.options(ExportOptions(weights=Path("w.pt")))
    assert record.options(PathsOptions(places=(Path("s.npz"),)))["places"][0]["name"] == "s.npz"


def write(folder: Path, **files: str) -> None:
    for name, text in files.items():
        file = folder / (name.replace("__", "/") + ".py")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)


def files_of(reference: str) -> set[str]:
    return set(record.factory(reference)["files"])


def test_a_factory_is_remembered_with_the_projects_own_files_behind_it(tmp_path: Path) -> None:
    write(
        tmp_path,
        net="import os, torch, json\nfrom parts import layers\ndef make(): import late",
        parts__layers="from . import norm\nfrom .deep.er import x",
        parts__norm="",
        parts__deep__er="from .. import norm, gone\nfrom ...too import far",
        late="import net",
        unrelated="",
        json="# a file of the project that goes by a library's name",
    )
    told = record.factory("net:make")
    assert told["name"] == "net:make"
    names = {"net.py", "parts/layers.py", "parts/norm.py", "parts/deep/er.py", "late.py", "json.py"}
    assert set(told["files"]) == names
    assert told["files"]["parts/norm.py"] == digests.of_bytes(b"")


def test_packages_bring_their_init_files(tmp_path: Path) -> None:
    (tmp_path / "pkg" / "sub").mkdir(parents=True)
    (tmp_path / "pkg" / "__init__.py").write_text("from . import other")
    (tmp_path / "pkg" / "sub" / "__init__.py").write_text("")
    write(tmp_path, pkg__sub__net="", pkg__other="")
    assert files_of("pkg.sub.net:make") == {
        "pkg/__init__.py", "pkg/sub/__init__.py", "pkg/sub/net.py", "pkg/other.py"
    }  # fmt: skip


def test_nothing_is_run_while_code_is_looked_up(tmp_path: Path) -> None:
    (tmp_path / "pkg").mkdir()
    (tmp_path / "pkg" / "__init__.py").write_text("raise SystemExit('was run')")
    write(tmp_path, pkg__net="raise SystemExit('was run')")
    assert files_of("pkg.net:make") == {"pkg/__init__.py", "pkg/net.py"}
    assert "pkg" not in sys.modules


def test_code_below_the_folder_on_the_import_path_counts_and_installed_code_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, src__mine="import theirs", venv__lib__x="")
    installed = tmp_path / "venv" / "site-packages"
    write(installed, theirs="")
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path / "src"), str(installed)])
    assert files_of("mine:make") == {"src/mine.py"}


def test_changed_code_is_a_changed_option_also_where_it_is_imported_from(tmp_path: Path) -> None:
    write(tmp_path, net="import layers", layers="A = 1")
    options = DistillOptions(student="net:make", data="s.npz")
    before = record.options(options)
    write(tmp_path, layers="A = 2")
    assert record.options(options) != before
    write(tmp_path, layers="A = 1")
    assert record.options(options) == before


@pytest.mark.parametrize("reference", ["net", "net:", ":make", "net:a b", "net.py:make", "../net:make", "a..b:make"])
def test_what_is_not_module_and_factory_is_refused(tmp_path: Path, reference: str) -> None:
    if reference == "net.py:make":  # an identifier each, so it is a module `py` in a package `net`: none is found
        assert files_of(reference) == set()
        return
    with pytest.raises(UsageError, match="not module:factory"):
        record.factory(reference)


@pytest.mark.parametrize("text", ["def (", "x = '\x00'", "\ud800"])
def test_code_that_can_not_be_read_is_a_usage_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "net.py").write_bytes(text.encode(errors="surrogatepass"))
    with pytest.raises(UsageError, match=r"net\.py: not Python"):
        record.factory("net:make")
