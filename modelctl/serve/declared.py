"""`/predict` for a model whose manifest declares what comes before it and after it.

Raw instances are made tensors, those go through the model as any others do, and the answer is what is declared after:

    {"model": "name@sha256:…", "predictions": [prediction, …]}       one for each instance; see `processing.after`

Where nothing is declared after the model the answer has its `outputs`, as it has without any declaration. What takes
longer than about a millisecond to make tensors of (a large picture, a long text, many rows) is handed to a thread, so
that the loop goes on; so many may wait for it, and what they hold is bounded by the limits of `processing`.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import orjson

from modelctl.errors import DataError
from modelctl.processing.declared import Declared
from modelctl.serve import packed, predict, raw, timing
from modelctl.serve.http import JSON, Answer, App, Handler, Request
from modelctl.serve.jobs import Job, Outcome, late
from modelctl.serve.models import Model
from modelctl.serve.refusal import Refused
from modelctl.serve.tensors import Array, check_shape

THREADS = 2
LONG_BYTES = 32 << 10  # a body that is longer is not even taken apart on the loop
MOST_WAITING = 32  # requests whose instances are being made tensors, or wait for that

Feeds = dict[str, Array]


class Desk:
    """Where instances are made tensors: at once, or by a thread where that takes longer."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._threads: ThreadPoolExecutor | None = None
        self._waiting = 0

    def ask(self, model: Model, request: Request, instances: list[Any], began: float) -> None:
        """Ask a model about raw instances, taken up at `began`; `Refused` tells what is wrong with them, or 429."""
        assert model.declared is not None
        assert model.declared.before is not None
        try:
            taken = model.declared.before.taken(instances)
            if taken.quick:
                self._run(model, request, taken.feeds(), began)
                return
        except DataError as error:
            raise Refused(error.message) from error
        self.hand(model, request, taken.feeds, began)

    def _run(self, model: Model, request: Request, feeds: Feeds, began: float) -> None:
        for name, spec in model.inputs.items():
            check_shape(name, list(feeds[name].shape), spec)
        timing.run(self._app, model, feeds, request, partial(_write, model, request, feeds), began)

    def hand(self, model: Model, request: Request, make: Callable[[], Feeds], began: float) -> None:
        """Let a thread make the tensors; whose client leaves, or who waits too long, is not waited for.

        `Refused` 429 when too many wait already.
        """
        if self._waiting >= MOST_WAITING:
            raise Refused("too many requests are waiting", 429, headers=((b"retry-after", b"1"),))
        loop = asyncio.get_running_loop()

        def made(outcome: Outcome) -> None:
            request.job = None
            try:
                if isinstance(outcome, Exception):
                    raise outcome
                self._run(model, request, outcome, began)
            except Refused as refused:
                self._app.refuse(request, refused)

        def back(job: Job, outcome: Outcome) -> None:
            self._waiting -= 1
            job.settle(outcome)

        def work(job: Job) -> None:
            outcome: Outcome = late() if job.over else _outcome(make)
            loop.call_soon_threadsafe(back, job, outcome)

        if self._threads is None:
            self._threads = ThreadPoolExecutor(THREADS, "modelctl-raw")
        job = request.job = Job({}, 0, False, model.tally, made)
        job.timer = loop.call_later(self._app.timeout_s, job.settle, late())
        self._waiting += 1
        self._threads.submit(work, job)


def _outcome(make: Callable[[], Feeds]) -> Outcome:
    try:
        return make()
    except Refused as refused:
        return refused
    except DataError as error:
        return Refused(error.message)
    except MemoryError:
        return Refused("there is no memory for it now", 503, headers=((b"retry-after", b"1"),))


def handler(app: App, desk: Desk, model: Model) -> Handler:
    """What answers requests for a model that declares something."""
    declared: Declared | None = model.declared
    assert declared is not None
    before = declared.before

    def understood(request: Request) -> Feeds:
        asked = raw.read(request.body, request.head.headers.get(b"content-type", b""), before)
        if asked.instances is None or before is None:
            return predict.read(asked.document, model)
        return before.feeds(asked.instances)

    def predict_raw(request: Request) -> None:
        began = timing.now()
        if len(request.body) > LONG_BYTES:
            desk.hand(model, request, partial(understood, request), began)
            return
        asked = raw.read(request.body, request.head.headers.get(b"content-type", b""), before)
        if asked.instances is not None:
            desk.ask(model, request, asked.instances, began)
        else:
            feeds = predict.read(asked.document, model)
            timing.run(app, model, feeds, request, partial(_write, model, request, feeds), began)

    return predict_raw


def _write(model: Model, request: Request, feeds: Feeds, outputs: dict[str, Array]) -> Answer:
    after = model.declared.after if model.declared is not None else None
    if after is None:
        return predict.write(model, request, outputs)
    try:
        document = {"model": model.told, "predictions": after.predictions(outputs, feeds)}
    except DataError as error:
        raise Refused(error.message, 500) from error
    if predict.wants_packed(request):
        return Answer(packed.dumps(document), packed.MSGPACK)
    return Answer(orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY), JSON)
