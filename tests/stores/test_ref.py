"""Refs as people type them."""

from pathlib import Path

import pytest

from modelctl.errors import UsageError
from modelctl.stores.ref import Ref, default_store, looks_like_ref


@pytest.mark.parametrize(
    ("text", "store", "name", "tag"),
    [
        ("sqlite:///models.db/digits:1.2", "sqlite:///models.db", "digits", "1.2"),
        ("sqlite:////srv/models.db/digits:1.2", "sqlite:////srv/models.db", "digits", "1.2"),
        ("file:///srv/models/digits-int8:latest", "file:///srv/models", "digits-int8", "latest"),
        ("file:///srv/models//digits:latest", "file:///srv/models", "digits", "latest"),
        ("s3://bucket/pre/fix/_a.b:0", "s3://bucket/pre/fix", "_a.b", "0"),
    ],
)
def test_a_ref_is_the_last_segment_of_a_stores_url(text: str, store: str, name: str, tag: str) -> None:
    assert Ref.parse(text) == Ref(store, name, tag)
    assert Ref.parse(str(Ref.parse(text))) == Ref.parse(text)


def test_without_a_store_the_users_own_is_meant(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert Ref.parse("digits:1") == Ref(f"sqlite:///{tmp_path}/modelctl/models.db", "digits", "1")
    monkeypatch.setenv("XDG_DATA_HOME", "relative/is/ignored")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert default_store() == f"sqlite:///{tmp_path}/home/.local/share/modelctl/models.db"
    monkeypatch.setenv("MODELCTL_STORE", "file:///srv/models/")
    assert Ref.parse("digits:1").store == "file:///srv/models"
    monkeypatch.setenv("MODELCTL_STORE", "models.db")
    with pytest.raises(UsageError, match=r"MODELCTL_STORE=models\.db") as caught:
        default_store()
    assert caught.value.hint == "export MODELCTL_STORE=sqlite:///models.db"


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("", "name:latest"),
        ("digits", "digits:latest"),
        ("digits:", "digits:latest"),
        (":1", "name:latest"),
        ("sqlite:///models.db", "sqlite:///models.db/name:latest"),
        ("sqlite:///models.db/digits", "sqlite:///models.db/digits:latest"),
        ("models.db/digits:1", "sqlite:///models.db/digits:1"),
        ("Digits:V1", "digits:v1"),
        ("sqlite:///m.db/My Model:1.0+cpu", "sqlite:///m.db/my-model:1.0-cpu"),
        ("..:..", "x:x"),
        ("file:///srv/..:x", "file:///srv/x:x"),
        (".hidden:1", "hidden:1"),
        ("-rf:1", "rf:1"),
        ("a:b:c", "a:b-c"),
        ("a" * 129 + ":1", "a" * 128 + ":1"),
        ("digits\n:1", "digits:1"),
        ("digits:1\n", "digits:1"),
    ],
)
def test_what_is_no_ref_is_refused_with_one_that_is(text: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        Ref.parse(text)
    assert caught.value.hint == hint


def test_a_folder_without_a_scheme_is_answered_with_its_url(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        Ref.parse(f"{tmp_path}/digits:1")
    assert caught.value.hint == f"file://{tmp_path}/digits:1"


def test_a_file_is_told_from_a_ref(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("there:1").write_text("")
    assert looks_like_ref("digits:1") and looks_like_ref("sqlite:///models.db/digits:1")
    assert not looks_like_ref("there:1") and not looks_like_ref("digits.onnx") and not looks_like_ref("a/b:c")
