"""Refs as people type them: `[STORE/]name:tag`, as in `sqlite:///models.db/digits:1.2` or plain `digits:1.2`.

Without a store, `$MODELCTL_STORE` is meant, else an SQLite file in the user's data folder.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from modelctl.errors import UsageError

WORD = re.compile(r"[a-z0-9_][a-z0-9._-]{0,127}")
WORD_RULE = "1 to 128 of a-z 0-9 . _ -, and the first none of . -"


@dataclass(frozen=True)
class Ref:
    """A name and a tag in a store, given by its URL."""

    store: str
    name: str
    tag: str

    def __str__(self) -> str:
        return f"{self.store}/{self.name}:{self.tag}"

    @classmethod
    def parse(cls, text: str) -> "Ref":
        """The ref that `text` spells; UsageError says what is wrong with it and how it would be right."""
        store, slash, last = text.rpartition("/")
        name, colon, tag = last.partition(":")
        if not colon or not name or not tag:
            example = f"{store}{slash}{name if WORD.fullmatch(name) else 'name'}:latest"
            if "://" in text and WORD.fullmatch(last) and Path(last).suffix:
                example = f"{text}/name:latest"  # models.db: the store is there, the ref is not
            raise UsageError(f"{text}: not a ref, [STORE/]name:tag", example)
        for what, word in (("name", name), ("tag", tag)):
            if not WORD.fullmatch(word):
                raise UsageError(f"{text}: {word!r} can't be a {what}: {WORD_RULE}", _mended(store + slash, name, tag))
        if slash and "://" not in store:
            raise UsageError(f"{text}: {store} is not the URL of a store", _as_url(store) + f"/{last}")
        return cls(store.rstrip("/") if slash else default_store(), name, tag)


def looks_like_ref(text: str) -> bool:
    """Whether someone who may type a file or a ref means a ref: a URL, or `name:tag` and there is no such file."""
    if "://" in text:
        return True
    name, colon, tag = text.partition(":")
    return bool(colon and WORD.fullmatch(name) and WORD.fullmatch(tag)) and not Path(text).exists()


def default_store() -> str:
    """The URL of the store that is meant where none is named."""
    chosen = os.environ.get("MODELCTL_STORE", "").rstrip("/")
    if chosen:
        if "://" not in chosen:
            raise UsageError(
                f"MODELCTL_STORE={chosen}: is not the URL of a store", f"export MODELCTL_STORE={_as_url(chosen)}"
            )
        return chosen
    return f"sqlite:///{data_folder() / 'models.db'}"


def data_folder() -> Path:
    """Where the user keeps modelctl's data: the XDG base directory specification's `$XDG_DATA_HOME/modelctl`."""
    home = os.environ.get("XDG_DATA_HOME", "")
    base = Path(home) if Path(home).is_absolute() else Path.home() / ".local" / "share"
    return base / "modelctl"


def _as_url(path: str) -> str:
    return f"file://{Path(path).absolute()}" if Path(path).is_dir() else f"sqlite:///{path}"


def _mended(before: str, name: str, tag: str) -> str:
    words = (re.sub(r"[^a-z0-9._-]+", "-", word.lower()).strip(".-")[:128] or "x" for word in (name, tag))
    return before + ":".join(words)
