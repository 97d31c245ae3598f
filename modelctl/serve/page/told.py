"""What the page is told: the models with all that it needs to ask them, and, again and again, how they fare.

    GET /page/models.json    names, versions, digests, tensors, what is declared, the chain back to the checkpoint
    GET /page/live.json      counts, and histograms of times, from which the page draws rate and latency

Both hold only the models that who asks may know of; counts are for those who may see metrics.
"""

import time
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

import msgspec
import orjson

from modelctl import lineage
from modelctl.manifest import TensorSpec
from modelctl.options import May
from modelctl.serve.http import Answer, App, Request, Route
from modelctl.serve.metrics import SECONDS
from modelctl.serve.models import Model
from modelctl.serve.schemas import has_json
from modelctl.serve.tensors import datatype_of

FRESH = ((b"cache-control", b"no-store"),)


def routes(app: App) -> Iterable[Route]:
    """The routes of what is told."""

    @cache
    def named(name: str) -> dict[str, Any]:
        return {"name": name, "versions": [_version(app.models.get(name, one)) for one in app.models.versions(name)]}

    def told(request: Request) -> Answer:
        knows = bool if request.visit is None else request.visit.knows
        return Answer(orjson.dumps([named(one) for one in app.models.names() if knows(one)]), headers=FRESH)

    def fares(request: Request) -> Answer:
        visit = request.visit
        if visit is not None and visit.caller is not None and May.METRICS not in visit.caller.may:
            from modelctl.serve.access.gate import forbidden

            raise forbidden(visit.caller, "see metrics")
        return Answer(orjson.dumps(live(app, bool if visit is None else visit.knows)), headers=FRESH)

    return [Route("GET", "/page/models.json", told), Route("GET", "/page/live.json", fares)]


def _version(model: Model) -> dict[str, Any]:
    before = model.declared.before if model.declared is not None else None
    return {
        "version": model.version,
        "digest": model.digest,
        "inputs": [_tensor(spec) for spec in model.inputs.values()],
        "outputs": [_tensor(spec) for spec in model.outputs.values()],
        "declared": msgspec.to_builtins(before.entries) if before is not None else [],
        "free": model.pace.free or 1,
        "json": has_json(model),
        "chain": _chain(model),
    }


def _tensor(spec: TensorSpec) -> dict[str, Any]:
    kind = datatype_of(spec.dtype)
    return {"name": spec.name, "datatype": kind.word if kind is not None else spec.dtype, "shape": spec.shape}


def _chain(model: Model) -> list[dict[str, Any]]:
    """The records of the history, the model itself first, the oldest last."""
    return [
        {
            "name": one.name,
            "format": one.format,
            "digest": one.digest,
            "step": one.made_by.step if one.made_by is not None else None,
            "parents": one.parents,
            "figures": lineage.figures(one.metrics),
        }
        for one in reversed(model.manifest.history())
    ]


def live(app: App, knows: Callable[[str], bool] = bool) -> dict[str, Any]:
    """The counts so far of every model, by name and version."""
    found: dict[str, dict[str, Any]] = {}
    for model in app.models:
        if knows(model.name):
            total = app.models.board.total(model.row)
            found.setdefault(model.name, {})[model.version] = {
                "requests": total.requests,
                "errors": sum(total.errors.values()),
                "in_flight": total.in_flight,
                "queue": total.queue_s.counts,
                "compute": total.compute_s.counts,
            }
    return {"now": time.time(), "ready": app.ready, "bounds": SECONDS, "models": found}
