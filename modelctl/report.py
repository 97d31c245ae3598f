"""What a step that checks or looks, rather than makes, gives back."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Report:
    """The answer of `eval`, `verify`, `inspect`, …: what was looked at, and what was found, ready to be printed.

    `facts` is what `--json` prints as the result: plain values, lists and dicts, keys in the order to be shown.
    `lines`, where a step has a better way to tell a person than a table of facts, is that text.
    """

    subject: str
    facts: dict[str, Any] = field(default_factory=dict)
    lines: tuple[str, ...] = ()
