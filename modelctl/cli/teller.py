"""How far along a step is, for a person: a bar on a terminal, a line every 30 s elsewhere, nothing when quiet."""

import time
from typing import Any

from modelctl.cli.console import Console, one_line

QUIET_PERIOD_S = 30.0


class Teller:
    """A `Progress` that prints on the console's stderr."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._bar: Any = None
        self._task: Any = None
        self._what = ""
        self._began_at = self._told_at = time.monotonic()
        self._began_with = 0
        self._on_terminal = console.bars and not console.quiet and console.err.isatty()

    def advance(self, what: str, done: int, total: int | None = None, unit: str = "") -> None:
        """See `Progress.advance`."""
        now = time.monotonic()
        fresh = what != self._what
        if fresh:
            self._what, self._began_at, self._began_with = what, now, done
        if self._on_terminal:
            self._draw(done, total, unit, fresh)
        elif not self.console.quiet and now - self._told_at >= QUIET_PERIOD_S:
            self._told_at = now
            self.console.tell(f"modelctl: {one_line(what)}: {self._far(done, total, unit, now - self._began_at)}")

    def note(self, text: str) -> None:
        """See `Progress.note`."""
        if self.console.quiet:
            return
        line = f"modelctl: note: {one_line(text)}"
        if self._bar is None:
            self.console.tell(line)
        else:
            self._bar.console.print(line, soft_wrap=True)

    def _far(self, done: int, total: int | None, unit: str, elapsed_s: float) -> str:
        """`300 of 1000 samples, 20/s, 35 s left`, as much of it as is known."""
        words = [f"{done}{f' of {total}' if total else ''} {unit}".rstrip()]
        rate = (done - self._began_with) / elapsed_s if elapsed_s > 0 else 0.0
        if rate > 0:
            words.append(f"{rate:.3g}/s")
            if total is not None and total >= done:
                words.append(f"{(total - done) / rate:.0f} s left")
        return ", ".join(words)

    def _draw(self, done: int, total: int | None, unit: str, fresh: bool) -> None:
        from rich.console import Console as RichConsole
        from rich.progress import BarColumn, Progress, TextColumn

        if self._bar is None:
            shown = RichConsole(file=self.console.err, highlight=False, markup=False, emoji=False)  # heeds NO_COLOR
            far = TextColumn("{task.fields[far]}", markup=False)
            columns = (TextColumn("{task.description}", markup=False), BarColumn(), far)
            self._bar = Progress(*columns, console=shown, transient=True)
            self._bar.start()
        if fresh:
            if self._task is not None:
                self._bar.remove_task(self._task)
            self._task = self._bar.add_task(one_line(self._what), total=total, far="")
        far_along = self._far(done, total, unit, time.monotonic() - self._began_at)
        self._bar.update(self._task, completed=done, total=total, far=far_along)

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = self._task = None
            self._what = ""
