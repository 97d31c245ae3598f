"""The lineage told to a person: the few figures of a step that matter, and the chain as a tree.

What a manifest says is taken as it comes: metrics of unknown shape are passed over, never an error.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from modelctl.manifest import Manifest, Record

MOST_INDENT = 400  # letters; a hostile chain of ten thousand is not told in ten thousand columns


def figures(metrics: Mapping[str, Any]) -> list[str]:
    """The figures worth a place on a line: score, loss of it, parameters, zeros, size, time and speed."""
    found = []
    score, lost = number_at(metrics, "accuracy", "value"), number_at(metrics, "drop_pp")
    if score is not None:
        name = _at(metrics, "accuracy", "metric")
        found.append(f"rmse {score:.4g}" if name == "rmse" else f"{name} {100 * score:.2f} %")
    if lost is not None:
        found.append(f"{0 - lost:+.2f} points")
    if (count := number_at(metrics, "parameters")) is not None:
        found.append(f"{count:,.0f} parameters")
    if zeros := number_at(metrics, "sparsity"):
        found.append(f"{100 * zeros:.1f} % zeros")
    if (size := number_at(metrics, "size_bytes")) is not None:
        found.append(megabytes(size))
    if (time := number_at(metrics, "latency", "p50_ms")) is not None:
        found.append(f"{time:.3g} ms")
    if (speed := number_at(metrics, "latency", "speedup", "value")) is not None:
        found.append(f"×{speed:.2f} as fast")
    return found


def megabytes(count: float) -> str:
    """A size for a person: in megabytes (10^6 bytes) from a thousandth of one on."""
    return (
        f"{count:,.0f} bytes" if count < 1e3 else f"{count / 1e6:,.3f} MB" if count < 1e8 else f"{count / 1e6:,.0f} MB"
    )


def _at(plain: Any, *path: str) -> Any:
    for name in path:
        if not isinstance(plain, Mapping):
            return None
        plain = plain.get(name)
    return plain


def number_at(metrics: Mapping[str, Any], *path: str) -> float | None:
    """The number that stands below these names, one in the other; None where there is none that can be shown."""
    value = _at(metrics, *path)
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e18:
        return None
    return float(value)


def steps(described: Manifest) -> list[str]:
    """The steps of the whole history, oldest first, `root` for each checkpoint; what comes from what: `chain`."""
    return [one.made_by.step if one.made_by else "root" for one in described.history()]


def chain(described: Manifest) -> Iterator[str]:
    """The history in as few lines as tell it: one of steps where each comes from the one before it, else the `tree`."""
    records = described.history()
    if [one.parents for one in records] == [(), *((one.digest,) for one in records[:-1])]:
        yield f"chain: {' → '.join(steps(described))}"
    else:
        yield "chain:"
        yield from (f"  {line}" for line in tree(described))


def tree(described: Manifest) -> Iterator[str]:
    """The chain as a tree of lines: the artifact first, below each what it was made from, down to the checkpoints.

    What is an ancestor by two ways is told once and then only named. Of a chain that was not checked, a parent that is
    not told of is named so, and a record from which nothing comes stands below, as a tree of its own.
    """
    known = {one.digest: one for one in described.lineage}
    mine = described.record()
    told: set[str] = set()
    for top in (mine, *reversed(described.lineage)):
        waiting = [(top, "", "")] if top is mine or top.digest not in told else []
        while waiting:
            record, stem, fork = waiting.pop()
            parents = [known.get(parent) or _untold(parent) for parent in record.parents]
            again = bool(parents) and record.digest in told
            yield f"{stem}{fork}{_line(record)}{'  (told above)' if again else ''}"
            if record is not mine:  # a sealed artifact goes by the digest of the one inside, and that is told below it
                told.add(record.digest)
            if again:
                continue
            below = (stem + {"": "", "└── ": "    ", "├── ": "│   "}[fork])[:MOST_INDENT]
            for number, parent in enumerate(reversed(parents)):
                waiting.append((parent, below, "├── " if number else "└── "))


def _untold(digest: str) -> Record:
    return Record(name="(not told of)", format="unknown", digest=digest)


def _line(record: Record) -> str:
    made = [record.made_by.step] if record.made_by else []
    return "  ".join([record.name, record.format, *made, f"sha256:{record.digest[:12]}", *figures(record.metrics)])
