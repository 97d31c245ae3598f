"""What pictures are drawn with: plain SVG 1.1, the same figures the same bytes, and nothing loaded from anywhere.

Colours go by their role. A picture is light, and dark where its reader's screen is (`prefers-color-scheme`); what knows
no style sheets shows the light one. Sizes are in user units, pixels where a picture is not scaled.
"""

import math
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from xml.sax.saxutils import escape

from modelctl.errors import UsageError
from modelctl.staging import refuse_no_file, refuse_no_folder, stage, sync

# Each role's colour on a light screen and on a dark one; series keep apart for those who don't see red and green.
COLOURS = {
    "paper": ("#ffffff", "#0d1117"),
    "ink": ("#1b1f24", "#e6edf3"),
    "grey": ("#59636e", "#9da7b3"),
    "faint": ("#d8dee4", "#30363d"),
    "cell": ("#0b5cad", "#1f6feb"),
    "on-cell": ("#ffffff", "#ffffff"),
    "series-0": ("#0b5cad", "#58a6ff"),
    "series-1": ("#c2410c", "#ff9e64"),
    "series-2": ("#0f766e", "#39c5cf"),
    "series-3": ("#7e22ce", "#d2a8ff"),
    "series-4": ("#a16207", "#e3b341"),
}
SERIES = tuple(role for role in COLOURS if role.startswith("series"))


def head_of(kind: str) -> str:
    """How each picture of that kind begins, by which one that modelctl drew is known."""
    return f'<svg xmlns="http://www.w3.org/2000/svg" id="modelctl-{kind}"'


def document(kind: str, title: str, width: float, height: float, parts: Iterable[str]) -> str:
    """A whole picture."""
    dark = "".join(f".f-{role}{{fill:{two}}}.s-{role}{{stroke:{two}}}" for role, (_, two) in COLOURS.items())
    drawn = "\n".join(parts)
    return (
        f'{head_of(kind)} viewBox="0 0 {width:g} {height:g}" width="{width:g}" height="{height:g}" '
        f'font-family="system-ui, sans-serif" role="img">\n<title>{plain(title)}</title>\n'
        f"<style>@media (prefers-color-scheme: dark) {{{dark}}}</style>\n"
        f"{rect(0, 0, width, height, 'paper')}\n{drawn}\n</svg>\n"
    )


def moved(x: float, y: float, parts: Iterable[str]) -> list[str]:
    """Parts as a group, moved."""
    return [f'<g transform="translate({x:g} {y:g})">', *parts, "</g>"]


def text(
    x: float, y: float, words: str, size: float, role: str = "ink", anchor: str = "middle", rim: bool = True
) -> str:
    """A line of text, its baseline at `y`; a rim of paper keeps it off the lines that lie under it."""
    place = f'x="{x:.1f}" y="{y:.1f}" font-size="{size:.1f}" text-anchor="{anchor}"'
    around = f' paint-order="stroke" stroke-width="3" stroke="{COLOURS["paper"][0]}"' if rim else ""
    kinds = f"f-{role} s-paper" if rim else f"f-{role}"
    return f'<text class="{kinds}" {place} fill="{COLOURS[role][0]}"{around}>{plain(words)}</text>'


def rect(x: float, y: float, width: float, height: float, role: str, opacity: float = 1.0) -> str:
    """A filled rectangle."""
    shape = f'x="{x:.2f}" y="{y:.2f}" width="{width:.2f}" height="{height:.2f}"'
    through = f' fill-opacity="{opacity:.3f}"' if opacity < 1 else ""
    return f'<rect class="f-{role}" {shape} fill="{COLOURS[role][0]}"{through}/>'


def frame(x: float, y: float, width: float, height: float, role: str) -> str:
    """The border of a rectangle."""
    shape = f'x="{x:.2f}" y="{y:.2f}" width="{width:.2f}" height="{height:.2f}"'
    return f'<rect class="s-{role}" {shape} fill="none" stroke="{COLOURS[role][0]}"/>'


def line(x1: float, y1: float, x2: float, y2: float, role: str, width: float = 1) -> str:
    """A line."""
    ends = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
    return f'<line class="s-{role}" {ends} stroke="{COLOURS[role][0]}" stroke-width="{width:g}"/>'


def dot(x: float, y: float, role: str, radius: float = 5) -> str:
    """A filled circle."""
    return f'<circle class="f-{role}" cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}" fill="{COLOURS[role][0]}"/>'


def ring(x: float, y: float, role: str, radius: float = 5) -> str:
    """An empty circle."""
    drawn = f'fill="none" stroke="{COLOURS[role][0]}" stroke-width="2"'
    return f'<circle class="s-{role}" cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}" {drawn}/>'


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten from at most `low` to at least `high`, two at least."""
    low, high = max(low, 1e-4), max(high, 1e-4)
    first = math.floor(math.log10(low))
    every = [float(f"{digit}e{power}") for power in range(first, first + 20) for digit in (1, 2, 5)]
    begin = max(at for at, one in enumerate(every) if one <= low)
    end = min(at for at, one in enumerate(every) if one >= high and at > begin)
    return every[begin : end + 1]


def log_place(value: float, ticks: Sequence[float]) -> float:
    """Where a value lies between the first tick and the last, 0 to 1."""
    low, high = math.log(ticks[0]), math.log(ticks[-1])
    return (math.log(max(value, ticks[0])) - low) / (high - low)


def short(number: float) -> str:
    """Three figures, thousands as k, millions as M."""
    for unit, letter in ((1e6, "M"), (1e3, "k")):
        if number >= unit:
            return f"{number / unit:.3g}{letter}"
    return f"{number:.3g}"


def plain(words: str) -> str:
    """Text that is sound XML, whatever a file is called."""
    return escape("".join(one if one.isprintable() else " " for one in words))


def check_place(path: Path, kind: str) -> None:
    """UsageError where a picture can't be written, or would take the place of what is no picture of that kind."""
    refuse_no_folder(path)
    refuse_no_file(path)
    if path.exists():
        head = head_of(kind).encode()
        with path.open("rb") as file:
            if file.read(len(head)) != head:
                raise UsageError(f"{path}: stands already, and {kind} did not draw it", f"rm {shlex.quote(str(path))}")


def write(path: Path, picture: str) -> None:
    """Put a picture at `path`, whole or not at all."""
    with stage(path.parent, path.name) as staged:
        made = staged.folder / path.name
        made.write_text(picture, encoding="utf-8")
        sync(made)
        made.replace(path)
