"""Instances made up for what a model declares to take, the same for the same seed: to try it out on."""

from collections.abc import Sequence
from io import BytesIO
from typing import Any

import numpy as np

from modelctl import chains

_WORDS = ("time", "person", "year", "way", "day", "thing", "man", "world", "life", "hand", "part", "child", "eye")


def instances(entries: Sequence[chains.Preprocess], count: int, seed: int) -> list[Any]:
    """As many instances as `processing.before` takes them: pictures of many sizes and shades, rows, texts."""
    chance = np.random.default_rng(seed)
    made = [[_one(entry, chance) for entry in entries] for _ in range(count)]
    if len(entries) == 1:
        return [parts[0] for parts in made]
    return [_joined(entries, parts) for parts in made]


def _one(entry: chains.Preprocess, chance: np.random.Generator) -> Any:
    if isinstance(entry, chains.Image):
        return _picture(entry, chance)
    if isinstance(entry, chains.Text):
        return " ".join(chance.choice(_WORDS, int(chance.integers(1, 24))).tolist())
    return {one.name: _cell(one, chance) for one in entry.columns}


def _joined(entries: Sequence[chains.Preprocess], parts: list[Any]) -> dict[str, Any]:
    joined: dict[str, Any] = {}
    for entry, part in zip(entries, parts, strict=True):
        joined |= part if isinstance(entry, chains.Table) else {entry.input: part}
    return joined


def _picture(entry: chains.Image, chance: np.random.Generator) -> bytes:
    """A PNG file of soft blots, of some other size than is wanted."""
    from PIL import Image

    coarse = chance.integers(0, 256, (5, 5) if entry.color == "gray" else (5, 5, 3), dtype=np.uint8)
    wide, high = (int(side * chance.uniform(0.5, 2)) + 1 for side in (entry.width, entry.height))
    file = BytesIO()
    Image.fromarray(coarse).resize((wide, high), Image.Resampling.BICUBIC).save(file, "PNG")
    return file.getvalue()


def _cell(column: chains.Number | chains.Category, chance: np.random.Generator) -> Any:
    if isinstance(column, chains.Category):
        return str(chance.choice(list(column.values)))
    if column.min is not None and column.max is not None:
        return float(chance.uniform(column.min, column.max))
    return float(chance.normal(column.mean, abs(column.std)))
