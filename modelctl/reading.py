"""Small files from outside, which may be anything: read within bounds, decoded, parsed, and refused in one voice.

A reader says by a `Small` what is its own: what it calls the file, how large that may be, which error tells of another,
and what is typed next. What the file then says is for the reader to judge.
"""

import json
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from modelctl.errors import ModelctlError

LIMIT_DEPTH = 64


def never_waiting(name: str, flags: int) -> int:
    """An opener for `open` that does not wait for somebody to write to a pipe."""
    return os.open(name, flags | getattr(os, "O_NONBLOCK", 0))


@dataclass(frozen=True)
class Small:
    """A kind of small file; what is no such file is refused by `error`, which names it, the trouble and the `hint`."""

    what: str  # with its article: "a pipeline file"
    limit_bytes: int
    error: type[ModelctlError]
    hint: str | None = None
    piped: bool = False  # whether it may come through a pipe, as a shell's <(…) is, while somebody holds the other end

    def refused(self, place: object, trouble: str) -> ModelctlError:
        """The error by which the file at `place` is refused."""
        return self.error(f"{place}: {trouble}", self.hint)

    def read(self, path: Path) -> tuple[bytes, int]:
        """The bytes at `path`, and the mode of what they lie in; OSError where the system does not let us read."""
        try:
            with open(path, "rb", opener=never_waiting) as file:
                found = os.fstat(file.fileno())
                if self.piped and stat.S_ISFIFO(found.st_mode):
                    os.set_blocking(file.fileno(), True)
                elif not stat.S_ISREG(found.st_mode):
                    raise self.refused(path, f"is not a plain file, and so not {self.what}")
                self._check_size(found.st_size, path)
                data = file.read(self.limit_bytes + 1)
        except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: no file can have such a name
            raise self.refused(path, "no such file") from None
        except OSError:
            if path.is_dir():
                raise self.refused(path, f"is a folder, not {self.what}") from None
            raise
        self._check_size(len(data), path)
        return data, found.st_mode

    def data(self, path: Path) -> bytes:
        """The bytes at `path`."""
        return self.read(path)[0]

    def text(self, path: Path) -> str:
        """The text at `path`."""
        return self.decoded(self.data(path), path)

    def decoded(self, data: bytes, place: object) -> str:
        """The text that these bytes are."""
        try:
            return data.decode()
        except UnicodeDecodeError:
            raise self.refused(place, f"is not UTF-8 text, and so not {self.what}") from None

    def toml(self, text: str, place: object) -> dict[str, Any]:
        """The table that a text spells."""
        import tomllib  # here, for `--help` need not wait for it

        if re.search(_DEEP_KEY, re.sub(_ESCAPED, "_", text)):  # tomllib takes an hour over one of a megabyte
            raise self.refused(place, f"nested deeper than {LIMIT_DEPTH}")
        try:
            return tomllib.loads(text.removeprefix("\ufeff"))
        except (ValueError, RecursionError) as error:
            raise self.refused(place, f"not sound TOML: {str(error)[:200]}") from error

    def json(self, data: bytes, place: object) -> Any:
        """What a document says, without what JSON leaves open: no duplicate keys, no NaN, bounded size and depth."""
        self._check_size(len(data), place)
        depth = 0
        # The closing quote is optional, so that a string without an end is read once, not again from each quote in it.
        for found in re.finditer(rb'(?s)"(?:[^"\\]|\\.)*"?|[\[\]{}]', data):
            if found[0] in (b"[", b"{"):
                depth += 1
                if depth > LIMIT_DEPTH:
                    raise self.refused(place, f"nested deeper than {LIMIT_DEPTH}")
            elif found[0] in (b"]", b"}"):
                depth -= 1
        try:
            plain = json.loads(data.decode(), object_pairs_hook=unique, **_NUMBERS)
            json.dumps(plain, ensure_ascii=False).encode()  # an escaped half of a surrogate pair is no text
        except (ValueError, RecursionError) as error:
            raise self.refused(place, f"not sound JSON: {str(error)[:200]}") from error
        return plain

    def _check_size(self, size: int, place: object) -> None:
        if size > self.limit_bytes:
            raise self.refused(place, f"is larger than {self.limit_bytes} bytes, too large for {self.what}")


_ESCAPED = r'\\[\\"]'
_DEEP_KEY = r"""(?<![.\w-])(?:(?:[\w-]++|"[^"\n]*+"|'[^'\n]*+')[ \t]*+\.[ \t]*+)""" + f"{{{LIMIT_DEPTH}}}"


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object of these keys and values; ValueError for a key that stands twice."""
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"duplicate key {twice!r}")
    return found


def _refuse_constant(word: str) -> NoReturn:
    raise ValueError(f"{word} is not a JSON number")


def _bounded(text: str) -> int:
    value = int(text)
    if abs(value) > 2**64:
        raise ValueError(f"{text[:40]} is out of range")
    return value


def _finite(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"{text[:40]} is out of range")
    return value


_NUMBERS: Any = {"parse_constant": _refuse_constant, "parse_float": _finite, "parse_int": _bounded}
