"""What an option is: a dataclass's field, and a `Knob` that says what it means; each step's options are in `options`.

The command line, `modelctl.toml` and Python users all fill the same classes, so a default, a range and a help text are
each written once.
"""

import math
import os
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, fields
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Self, get_type_hints

import msgspec

from modelctl.errors import UsageError


class Remembered(StrEnum):
    """How the manifest of a step's output remembers an option."""

    VALUE = "value"  # as it stands; a Path by its name and the digest of its content
    DATA = "data"  # a data reference: the name and digest of what it points at, and its selection
    FACTORY = "factory"  # `module:name`: with the digests of the project's own files behind it
    PREPROCESS = "preprocess"  # as the entries that it spells, with the digests of the files that they name
    POSTPROCESS = "postprocess"
    NOT = "not"  # not as an option: a place, a secret's source, a thread count; a key, whose id its step adds


@dataclass(frozen=True)
class Knob:
    """What one option means: help text with its unit, inclusive range, flag, and how it is remembered."""

    text: str
    _: KW_ONLY
    low: float | None = None
    high: float | None = None
    flag: str | None = None
    remembered: Remembered = Remembered.VALUE

    def flag_of(self, name: str) -> str:
        """The flag of the field `name`: `--max-drop` for `max_drop` unless another one is given."""
        return self.flag or "--" + name.replace("_", "-")

    def variable_of(self, name: str) -> str:
        """The environment variable of the field `name`, by its flag: `MODELCTL_MAX_DROP`."""
        return "MODELCTL_" + self.flag_of(name).partition("/")[0].lstrip("-").replace("-", "_").upper()


@dataclass(frozen=True, kw_only=True)
class Options:
    """What every step has."""

    threads: Annotated[
        int,
        Knob(
            "threads to use; 0: as many as the container grants, and one to time a model on",
            low=0,
            high=4096,
            remembered=Remembered.NOT,
        ),
    ] = 0

    def __post_init__(self) -> None:
        for name, mark in knobs(type(self)).items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                continue
            if not math.isfinite(value):
                raise UsageError(f"{mark.flag_of(name)} {value}: must be a finite number")
            low, high = mark.low, mark.high
            if (low is not None and not value >= low) or (high is not None and not value <= high):
                bounds = f"at least {low:g}" if high is None else f"{low:g} to {high:g}" if low != high else f"{low:g}"
                raise UsageError(f"{mark.flag_of(name)} {value:g}: must be {bounds}")

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> Self:
        """Options from plain values (a TOML table, parsed flags); UsageError names the one that does not fit."""
        unknown = sorted(set(values) - set(knobs(cls)))
        if unknown:
            raise UsageError(f"unknown option: {unknown[0]}", f"one of: {', '.join(sorted(knobs(cls)))}")
        try:
            return msgspec.convert(dict(values), cls, dec_hook=lambda kind, value: kind(value))
        except msgspec.ValidationError as error:
            what, _, where = str(error).partition(" - at `$.")
            name = where.partition("[")[0].rstrip("`")
            flag = knobs(cls)[name].flag_of(name) if name in knobs(cls) else "options"
            raise UsageError(f"{flag}: {what[:1].lower()}{what[1:]}") from error

    def thread_count(self) -> int:
        """Threads to use: as asked, else the cores that this process may run on and its cgroup's quota."""
        return self.threads or granted_threads()

    def timed_threads(self) -> int:
        """Threads that a model is timed on: as asked, else one, as it is served."""
        return self.threads or 1


def knobs(cls: type) -> Mapping[str, Knob]:
    """The `Knob` of each field of an options class, in order."""
    return {name: mark for name, (_, mark) in fields_of(cls).items()}


def fields_of(cls: type) -> Mapping[str, tuple[Any, Knob]]:
    """The type and the `Knob` of each field of an options class, in order."""
    return _fields_of(cls)  # mypy takes no dataclass for the Hashable that a cached function asks for


@cache
def _fields_of(cls: type) -> Mapping[str, tuple[Any, Knob]]:
    hints = get_type_hints(cls, include_extras=True)
    return {field.name: (hints[field.name].__origin__, hints[field.name].__metadata__[0]) for field in fields(cls)}


@cache
def granted_threads() -> int:
    """How many cores the process may use: its CPU affinity, and the quota of its cgroup (v2, then v1)."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for quota, period in (
        (Path("/sys/fs/cgroup/cpu.max"), None),
        (Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us"), Path("/sys/fs/cgroup/cpu/cpu.cfs_period_us")),
    ):
        try:
            words = quota.read_text().split() + (period.read_text().split() if period else [])
            granted = int(words[0]) / int(words[1])
        except (OSError, ValueError, IndexError, ZeroDivisionError):
            continue
        if granted > 0:
            return max(1, min(cores, round(granted)))
    return cores
