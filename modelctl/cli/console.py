"""Every word that modelctl prints: results on stdout, everything else on stderr, one JSON document where asked."""

import json
import os
import sys
import time
import traceback
from dataclasses import dataclass, field
from typing import Any, TextIO

from modelctl.artifact import Artifact, manifest_path
from modelctl.errors import ModelctlError
from modelctl.report import Report

QUIET_PERIOD_S = 30.0


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

    def progress(self) -> "Teller":
        """A listener for a step."""
        return Teller(self)

    def result(self, answer: "Artifact | Report | None") -> None:
        """Print what a command gave back."""
        if answer is None:
            return
        if self.as_json:
            self._document(True, result=facts_of(answer))
        elif isinstance(answer, Report):
            for line in answer.lines or plain_lines(answer.facts):
                print(line, file=self.out)
        else:
            print(f"{answer.path}  {answer.size_bytes} bytes  sha256:{answer.digest}", file=self.out)
            for line in plain_lines(answer.manifest.metrics):
                print(f"  {line}", file=self.out)

    def error(self, error: ModelctlError | OSError) -> int:
        """Print what went wrong, and return the exit status."""
        message, hint, status = explain(error)
        if self.as_json:
            self._document(False, error={"kind": type(error).__name__, "message": message, "hint": hint})
        else:
            print(f"modelctl: error: {message}", file=self.err)
            if hint:
                print(f"modelctl: hint: {hint}", file=self.err)
        if self.verbose:
            traceback.print_exception(error, file=self.err)
        return status

    def bug(self, error: BaseException) -> int:
        """Print a traceback and the request to report it."""
        traceback.print_exception(error, file=self.err)
        print("modelctl: this is a bug in modelctl; please report it with the lines above", file=self.err)
        if self.as_json:
            message = f"{type(error).__name__}: {error}"
            self._document(False, error={"kind": "Bug", "message": message, "hint": None})
        return 70

    def interrupted(self) -> int:
        """Say that Ctrl-C was heard."""
        print("modelctl: interrupted", file=self.err)
        if self.as_json:
            self._document(False, error={"kind": "Interrupted", "message": "interrupted", "hint": None})
        return 130

    def _document(self, ok: bool, **content: Any) -> None:
        document = {"command": self.command, "ok": ok, **content}
        print(json.dumps(document, indent=2, ensure_ascii=False, default=str), file=self.out)


def explain(error: ModelctlError | OSError) -> tuple[str, str | None, int]:
    """One line of what went wrong, a hint, and the exit status."""
    if isinstance(error, ModelctlError):
        return one_line(error.message), error.hint and one_line(error.hint), error.exit_code
    what = (error.strerror or str(error)).lower()
    return one_line(f"{error.filename}: {what}" if error.filename else what), None, 2


def one_line(text: str) -> str:
    """`text` without line breaks and control characters, which a hostile file may have put there."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())


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


def plain_lines(facts: dict[str, Any], prefix: str = "") -> list[str]:
    """Nested facts as `a.b  value` lines, their values aligned."""
    flat = list(_flat(facts, prefix))
    width = max((len(name) for name, _ in flat), default=0)
    return [f"{name:<{width}}  {value}" for name, value in flat]


def _flat(value: Any, name: str) -> list[tuple[str, str]]:
    if isinstance(value, dict):
        return [pair for key, one in value.items() for pair in _flat(one, f"{name}.{key}" if name else str(key))]
    if isinstance(value, list | tuple):
        if all(not isinstance(one, dict | list | tuple) for one in value):
            return [(name, " ".join(_word(one) for one in value))]
        return [pair for index, one in enumerate(value) for pair in _flat(one, f"{name}[{index}]")]
    return [(name, _word(value))]


def _word(value: Any) -> str:
    return one_line(f"{value:.6g}" if isinstance(value, float) else str(value))


class Teller:
    """A `Progress`: a bar on a terminal, a line every 30 s elsewhere, nothing when quiet."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._bar: Any = None
        self._task: Any = None
        self._what = ""
        self._told_at = time.monotonic()
        self._on_terminal = console.bars and not console.quiet and console.err.isatty()

    def advance(self, what: str, done: int, total: int | None = None, unit: str = "") -> None:
        """See `Progress.advance`."""
        if self._on_terminal:
            self._draw(what, done, total)
        elif not self.console.quiet and time.monotonic() - self._told_at >= QUIET_PERIOD_S:
            self._told_at = time.monotonic()
            print(f"modelctl: {what}: {done}{f' of {total}' if total else ''} {unit}".rstrip(), file=self.console.err)

    def note(self, text: str) -> None:
        """See `Progress.note`."""
        if not self.console.quiet:
            (self._bar.console.print if self._bar else self._print)(f"modelctl: note: {one_line(text)}")

    def _print(self, text: str) -> None:
        print(text, file=self.console.err)

    def _draw(self, what: str, done: int, total: int | None) -> None:
        from rich.console import Console as RichConsole
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        if self._bar is None:
            shown = RichConsole(file=self.console.err, no_color="NO_COLOR" in os.environ, highlight=False, markup=False)
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, console=shown, transient=True)
            self._bar.start()
        if what != self._what:
            if self._task is not None:
                self._bar.remove_task(self._task)
            self._what, self._task = what, self._bar.add_task(what, total=total)
        self._bar.update(self._task, completed=done, total=total)

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
