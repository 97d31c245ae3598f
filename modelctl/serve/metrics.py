"""What the server counts, as Prometheus reads it.

The text is Prometheus' text-based exposition format, version 0.0.4 (prometheus.io, "Exposition formats"): HELP and TYPE
lines, then one sample a line; a histogram's buckets are cumulative and end with `+Inf`, beside its `_sum` and `_count`.
"""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"

SECONDS = (
    0.00005,
    0.0001,
    0.00025,
    0.0005,
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
)
ROWS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0)


class Histogram:
    """How often a value fell between which bounds, and what all of them add up to."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Count one value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value


@dataclass(slots=True)
class Tally:
    """The counts of one model; all of them are touched on the event loop's thread only."""

    requests: int = 0
    in_flight: int = 0
    errors: dict[str, int] = field(default_factory=dict)
    queue_s: Histogram = field(default_factory=lambda: Histogram(SECONDS))
    compute_s: Histogram = field(default_factory=lambda: Histogram(SECONDS))
    batch_rows: Histogram = field(default_factory=lambda: Histogram(ROWS))

    def failed(self, kind: str) -> None:
        """Count a request that was answered with an error."""
        self.errors[kind] = self.errors.get(kind, 0) + 1


Labelled = tuple[dict[str, str], Tally]


def exposition(models: Iterable[Labelled], unrouted: Tally, ready: bool) -> bytes:
    """The text of `/metrics`: each model's counts under its labels, and those of requests that reached no model."""
    models = [*models]
    everything = [*models, ({"model": "", "version": "", "digest": ""}, unrouted)]
    lines = _family("modelctl_ready", "gauge", "Whether the server takes requests.")
    lines.append(f"modelctl_ready {int(ready)}")
    lines += _family("modelctl_requests_total", "counter", "Inference requests that were received.")
    lines += [f"modelctl_requests_total{_labels(who)} {tally.requests}" for who, tally in everything]
    lines += _family("modelctl_request_errors_total", "counter", "Requests that were answered with an error, by kind.")
    lines += [
        f"modelctl_request_errors_total{_labels(who | {'kind': kind})} {count}"
        for who, tally in everything
        for kind, count in sorted(tally.errors.items())
    ]
    lines += _family("modelctl_requests_in_flight", "gauge", "Requests that wait for a model or are being computed.")
    lines += [f"modelctl_requests_in_flight{_labels(who)} {tally.in_flight}" for who, tally in models]
    for name, what, pick in (
        ("modelctl_queue_seconds", "Time a request waited for its model.", "queue_s"),
        ("modelctl_compute_seconds", "Time that one run of a model took.", "compute_s"),
        ("modelctl_batch_rows", "Rows that one run of a model computed.", "batch_rows"),
    ):
        lines += _family(name, "histogram", what)
        for who, tally in models:
            lines += _histogram(name, who, getattr(tally, pick))
    return ("\n".join(lines) + "\n").encode()


def _family(name: str, kind: str, what: str) -> list[str]:
    return [f"# HELP {name} {what}", f"# TYPE {name} {kind}"]


def _histogram(name: str, who: dict[str, str], one: Histogram) -> list[str]:
    lines, below = [], 0
    for bound, count in zip([*(f"{bound:g}" for bound in one.bounds), "+Inf"], one.counts, strict=True):
        below += count
        lines.append(f"{name}_bucket{_labels(who | {'le': bound})} {below}")
    return [*lines, f"{name}_sum{_labels(who)} {one.total!r}", f"{name}_count{_labels(who)} {below}"]


def _labels(labels: dict[str, str]) -> str:
    escaped = {
        name: value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") for name, value in labels.items()
    }
    return "{" + ",".join(f'{name}="{value}"' for name, value in escaped.items()) + "}"
