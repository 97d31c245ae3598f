"""A worker's models, and how they are exchanged while it answers.

A model that leaves is no longer found by requests, and its runner ends once it has answered those that found it.
"""

import asyncio
import json
import logging
import socket
from collections.abc import Callable
from itertools import count
from typing import Any

from modelctl.errors import ModelctlError
from modelctl.options import ServeOptions
from modelctl.serve.changes import LOAD, WATCH_S, Change, Ledger, Watch
from modelctl.serve.models import Model, Models, ready
from modelctl.serve.refusal import Refused
from modelctl.serve.sources import Secrets, found

logger = logging.getLogger("modelctl.serve")

RETIRE_S = 0.1  # how often it is looked whether a model that left has answered all
READ_BYTES = 1 << 16

Done = Callable[[Refused | None], None]  # told what stood in the way, if anything did


class Shelf:
    """The models of this worker and where they come from."""

    def __init__(self, models: Models, ledger: Ledger, options: ServeOptions) -> None:
        self.models = models
        self.ledger = ledger
        self.changed: Callable[[], None] = lambda: None
        self._options = options
        self._secrets = Secrets(options)

    def prepare(self, change: Change) -> list[Model]:
        """The models that a change brings, ready to answer; whatever `opened` and `ready` raise. Takes its time."""
        board, worker = self.models.board, self.models.worker
        prepared = []
        for place, row in zip(change.places, change.rows, strict=False):
            source = found(self.ledger.sources[place], self._secrets)
            prepared.append(ready(source, self._options, board, worker, row))
        return prepared

    def commit(self, change: Change, prepared: list[Model]) -> None:
        """Carry a change out, between two requests."""
        for index, place in enumerate(change.places):
            old = self.models.at(place)
            self.models.put(place, prepared[index] if prepared else None)
            if old is not None:
                self._retire(old)
        self.changed()

    def _retire(self, model: Model) -> None:
        if model.runner.idle:
            model.runner.close()
        else:
            asyncio.get_running_loop().call_later(RETIRE_S, self._retire, model)


class Alone:
    """Changes of the only worker."""

    def __init__(self, shelf: Shelf) -> None:
        self.shelf = shelf
        self._one_by_one = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()

    def ask(self, kind: str, name: str, done: Done) -> None:
        """Have a change made; `done` is called when it is, or can't be."""
        self._go(self._change(kind, name, done))

    def watch(self, watch: Watch) -> None:
        """Load anew what stands for something else than before, from now on."""
        self._go(self._watch(watch))

    def _go(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _change(self, kind: str, name: str, done: Done) -> None:
        ledger = self.shelf.ledger
        trouble: Refused | None = None
        async with self._one_by_one:
            try:
                change = ledger.begin(kind, name)
                try:
                    self.shelf.commit(change, await asyncio.to_thread(self.shelf.prepare, change))
                except (ModelctlError, OSError) as error:
                    trouble = Refused(f"{name} could not be loaded: {error}")
                ledger.settle(change, trouble is None)
            except Refused as refused:
                trouble = refused
        done(trouble)

    async def _watch(self, watch: Watch) -> None:
        ledger = self.shelf.ledger
        while True:
            await asyncio.sleep(WATCH_S)
            for place in await asyncio.to_thread(watch.changed):
                if ledger.rows[place] is not None:
                    self.ask(LOAD, ledger.names[place], tell)


class OneOfSeveral:
    """Changes of a worker that has others beside it: the parent has them made by all, or by none."""

    def __init__(self, shelf: Shelf, parent: socket.socket) -> None:
        self.shelf = shelf
        self._parent = parent
        self._said = b""
        self._numbers = count()
        self._waiting: dict[int, Done] = {}
        self._change: Change | None = None
        self._prepared: list[Model] = []
        self._task: asyncio.Task[None] | None = None

    def ask(self, kind: str, name: str, done: Done) -> None:
        """Have a change made; `done` is called when it is, or can't be."""
        number = next(self._numbers)
        self._waiting[number] = done
        self._tell(ask=number, kind=kind, name=name)

    def hear(self) -> bool:
        """Do what the parent says; false when it is gone."""
        try:
            data = self._parent.recv(READ_BYTES)
        except BlockingIOError:
            return True
        except OSError:
            data = b""
        *lines, self._said = (self._said + data).split(b"\n")
        for line in lines:
            self._do(json.loads(line))
        return bool(data)

    def _do(self, said: dict[str, Any]) -> None:
        match said["do"]:
            case "prepare":
                self._change = Change(tuple(said["places"]), tuple(said["rows"]))
                self._task = asyncio.get_running_loop().create_task(self._prepare(self._change))
            case "commit" if self._change is not None:
                self.shelf.commit(self._change, self._prepared)
                self.shelf.ledger.settle(self._change, True)
                self._change, self._prepared = None, []
                self._tell(made=True)
            case "abort":
                self._change, self._prepared = None, []
            case "answer":
                done = self._waiting.pop(said["ask"])
                done(Refused(said["message"], said["status"]) if said["message"] else None)

    async def _prepare(self, change: Change) -> None:
        message = ""
        try:
            self._prepared = await asyncio.to_thread(self.shelf.prepare, change)
        except (ModelctlError, OSError) as error:
            message = str(error)
        self._tell(prepared=True, message=message)

    def _tell(self, **words: Any) -> None:
        self._parent.setblocking(True)  # short lines, which a parent that lives takes at once
        try:
            self._parent.sendall(json.dumps(words).encode() + b"\n")
        finally:
            self._parent.setblocking(False)


def tell(refused: Refused | None) -> None:
    """Say on stderr that what was watched could not be loaded."""
    if refused is not None:
        logger.warning("%s; the old one stays", refused.message)
