"""Every word that modelctl prints: results on stdout, everything else on stderr, one JSON document where asked."""

import contextlib
import json
import math
import os
import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, TextIO

from modelctl.artifact import Artifact, manifest_path
from modelctl.errors import CheckFailed, ModelctlError
from modelctl.report import Report

MOST_ROWS = 100
STOPPED = {130: "interrupted", 143: "terminated", 129: "terminated"}


class OutputGone(Exception):  # noqa: N818 - it says what happened, and is no error of ours
    """Whoever read what we print has stopped reading."""


@dataclass
class Console:
    """How this run talks: to a person or a program, much or little."""

    command: str = ""
    as_json: bool = False
    quiet: bool = False
    verbose: bool = False
    bars: bool = True
    out: TextIO = field(default_factory=lambda: sys.stdout)
    err: TextIO = field(default_factory=lambda: sys.stderr)
    answered: bool = False  # whether a result has been printed

    def result(self, answer: "Artifact | Report | None") -> None:
        """Print what a command gave back; nothing, if that is nothing and it has had its say while it ran."""
        if answer is None and self.answered:
            return
        self.answered = True
        if self.as_json:
            self._document(True, result=None if answer is None else facts_of(answer))
        elif isinstance(answer, Report):
            self._say(*(answer.lines or plain_lines(answer.facts)))
        elif answer is not None:
            head = f"{answer.path}  {answer.size_bytes} bytes  sha256:{answer.digest}"
            self._say(head, *(f"  {line}" for line in plain_lines(answer.manifest.metrics)))

    def error(self, error: ModelctlError | OSError) -> int:
        """Print what went wrong, and return the exit status."""
        message, hint, status = explain(error)
        facts = error.facts if isinstance(error, CheckFailed) else None
        if self.as_json:
            told = {"kind": type(error).__name__, "message": message, "hint": hint}
            self._document(False, error=told, **({"result": facts} if facts else {}))
        else:
            self._say(*plain_lines(facts or {}))
            self.tell(f"modelctl: error: {message}", *([f"modelctl: hint: {hint}"] if hint else []))
        if self.verbose:
            self.tell(*_trace(error))
        return status

    def bug(self, error: BaseException) -> int:
        """Print a traceback and the request to report it."""
        self.tell(*_trace(error), "modelctl: this is a bug in modelctl; please report it with the lines above")
        if self.as_json:
            message = one_line(f"{type(error).__name__}: {error}")
            self._document(False, error={"kind": "Bug", "message": message, "hint": None})
        return 70

    def stopped(self, status: int) -> int:
        """Say that Ctrl-C or a request to end was heard."""
        word = STOPPED[status]
        self.tell(f"modelctl: {word}")
        if self.as_json:
            self._document(False, error={"kind": word.capitalize(), "message": word, "hint": None})
        return status

    def tell(self, *lines: str) -> None:
        """Print lines for a person, on stderr."""
        # A full disk behind stderr: there is nowhere left to say it.
        with contextlib.suppress(OSError), _noticing_the_end(self.err):
            # In one piece: a signal must not come between a line and its end.
            self.err.write("".join(f"{visible(line)}\n" for line in lines))
            self.err.flush()

    def content(self, data: bytes) -> None:
        """Write to stdout what was asked for itself, byte for byte."""
        self.answered = True
        with _naming_output(), _noticing_the_end(self.out):
            self.out.buffer.write(data)
            self.out.flush()

    def _say(self, *lines: str) -> None:
        with _naming_output():
            _print(self.out, lines)

    def _document(self, ok: bool, **content: Any) -> None:
        # Escaped beyond ASCII: half a surrogate pair or a control character of an odd name is then harmless.
        document = {"command": self.command, "ok": ok, **_finite(content)}
        self._say(*json.dumps(document, indent=2, default=str, allow_nan=False).splitlines())


def _print(file: TextIO, lines: "tuple[str, ...] | list[str]") -> None:
    if lines:
        with _noticing_the_end(file):
            print("\n".join(visible(line) for line in lines), file=file, flush=True)


@contextlib.contextmanager
def _naming_output() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, "standard output") from error


@contextlib.contextmanager
def _noticing_the_end(file: TextIO) -> Iterator[None]:
    """OutputGone when nobody reads the file any more; what could not be written is dropped, not tried again."""
    try:
        yield
    except OSError as error:
        with contextlib.suppress(OSError, ValueError):  # what is still buffered has nowhere to go
            os.dup2(os.open(os.devnull, os.O_WRONLY), file.fileno())
        if isinstance(error, BrokenPipeError):
            raise OutputGone from error
        raise


def _trace(error: BaseException) -> list[str]:
    return "".join(traceback.format_exception(error)).splitlines()


def _finite(value: Any) -> Any:
    """`value` as JSON can hold it: a number that is not finite becomes null."""
    if isinstance(value, dict):
        return {str(key): _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def explain(error: ModelctlError | OSError) -> tuple[str, str | None, int]:
    """One line of what went wrong, a hint, and the exit status."""
    if isinstance(error, ModelctlError):
        return one_line(error.message), error.hint and one_line(error.hint), error.exit_code
    what = error.strerror.lower() if isinstance(error.strerror, str) else str(error) or type(error).__name__
    name = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes | os.PathLike) else ""
    return one_line(f"{name}: {what}" if name else what), None, 2


def one_line(text: str) -> str:
    """`text` without line breaks and control characters, which a hostile file may have put there."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())


def visible(line: str) -> str:
    """`line` with a mark in place of each character that would steer the terminal, its columns kept."""
    return line if line.isprintable() else "".join(one if one.isprintable() else "\ufffd" for one in line)


def facts_of(answer: "Artifact | Report") -> dict[str, Any]:
    """What `--json` prints as the result."""
    if isinstance(answer, Report):
        return answer.facts
    return {
        "path": str(answer.path),
        "manifest": str(manifest_path(answer.path)),
        "name": answer.name,
        "format": answer.manifest.format,
        "digest": answer.digest,
        "size_bytes": answer.size_bytes,
        "metrics": answer.manifest.metrics,
    }


def plain_lines(facts: dict[str, Any]) -> list[str]:
    """Nested facts as `a.b  value` lines, their values aligned; below them every list of like rows, as a table."""
    flat, tables = [], []
    for name, value in _flat(facts, ""):
        if isinstance(value, str):
            flat.append((name, value))
        else:
            tables += ["", name, *(f"  {line}" for line in _table(value))]
    width = max((len(name) for name, _ in flat), default=0)
    return [*(f"{name:<{width}}  {value}".rstrip() for name, value in flat), *tables]


def _table(rows: list[dict[str, Any]]) -> list[str]:
    """Rows of the same names as aligned columns, the first `MOST_ROWS` of them."""
    shown = [["" if one is None else _word(one) for one in row.values()] for row in rows[:MOST_ROWS]]
    cells = [list(map(one_line, rows[0])), *shown]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(map(str.rjust, row, widths)).rstrip() for row in cells]
    return lines + ([f"… {len(rows) - MOST_ROWS} more with --json"] if len(rows) > MOST_ROWS else [])


def _is_table(value: Any) -> bool:
    """Whether a value is a list of rows that have the same names, two at least, and plain values."""
    if not isinstance(value, list) or not value or not all(isinstance(one, dict) for one in value):
        return False
    plain = not any(isinstance(cell, dict | list | tuple) for row in value for cell in row.values())
    return plain and len(value[0]) > 1 and all(list(row) == list(value[0]) for row in value)


def _flat(value: Any, name: str) -> list[tuple[str, str | list[dict[str, Any]]]]:
    if _is_table(value):
        return [(name, value)]
    if isinstance(value, dict):
        return [pair for key, one in value.items() for pair in _flat(one, f"{name}.{key}" if name else str(key))]
    if isinstance(value, list | tuple):
        if all(not isinstance(one, dict | list | tuple) for one in value):
            return [(name, " ".join(_word(one) for one in value))]
        return [pair for index, one in enumerate(value) for pair in _flat(one, f"{name}[{index}]")]
    return [(name, _word(value))]


def _word(value: Any) -> str:
    return one_line(f"{value:.6g}" if isinstance(value, float) else str(value))
