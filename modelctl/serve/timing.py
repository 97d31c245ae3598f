"""`Server-Timing` (W3C): where the time of an answer went, for browsers and whoever else reads it.

    read;dur=0.041, queue;dur=0.009, compute;dur=0.112, total;dur=0.188

Milliseconds: until a body was tensors, until the model's run began, in that run, which others may have shared, and in
all until the answer was written. What the network takes is not in it.
"""

import time
from collections.abc import Callable
from functools import partial

from modelctl.serve.http import Answer, App, Outputs, Request
from modelctl.serve.jobs import Tensors
from modelctl.serve.models import Model

HEADER = b"server-timing"
TOLD = b"read;dur=%.3f, queue;dur=%.3f, compute;dur=%.3f, total;dur=%.3f"

Write = Callable[[Outputs], Answer]

now = time.perf_counter  # in seconds, by the clock of the runs


def run(app: App, model: Model, feeds: Tensors, request: Request, write: Write, began: float) -> None:
    """Ask a model as `App.run` does, for a request taken up at `began`; its answer tells where the time went."""
    app.run(model, feeds, request, partial(_timed, model, write, began, now()))


def _timed(model: Model, write: Write, began: float, asked: float, outputs: Outputs) -> Answer:
    body, kind, status, headers = write(outputs)
    ran = model.runner.ran
    if ran is None:  # another run came in between: the queue was full, and made room
        return Answer(body, kind, status, headers)
    told = TOLD % (
        (asked - began) * 1000, (ran.began - asked) * 1000, ran.took_s * 1000, (now() - began) * 1000,
    )  # fmt: skip
    return Answer(body, kind, status, (*headers, (HEADER, told)))
