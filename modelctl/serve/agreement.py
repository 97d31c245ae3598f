"""How several workers change what they serve: all of them, or none.

    worker → parent    {"ask": n, "kind", "name"}   {"prepared": true, "message"}   {"made": true}
    parent → worker    {"do": "prepare", "places", "rows"}   {"do": "commit"}   {"do": "abort"}
                       {"do": "answer", "ask": n, "status", "message"}

One change is made after the other. A worker that is lost in between is replaced by one that loads what was agreed.
"""

import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from modelctl.serve.changes import Change, Ledger
from modelctl.serve.refusal import Refused

logger = logging.getLogger("modelctl.serve")


@dataclass(frozen=True)
class _Asked:
    """A change that a worker has asked for, under a number of its own; no worker: it was noticed by watching."""

    worker: int | None
    number: int
    kind: str
    name: str


@dataclass
class _UnderWay:
    """A change that is being made, and the workers that have yet to say so."""

    asked: _Asked
    change: Change
    waiting: set[int]
    commits: bool = False
    message: str = ""


class Agreement:
    """Leads changes through all workers."""

    def __init__(self, ledger: Ledger, send: Callable[[int, dict[str, Any]], None]) -> None:
        self.workers: set[int] = set()  # that answer
        self._ledger = ledger
        self._send = send
        self._asked: deque[_Asked] = deque()
        self._now: _UnderWay | None = None

    @property
    def busy(self) -> bool:
        """Whether a change is under way: no worker is started meanwhile."""
        return self._now is not None

    def ask(self, worker: int | None, number: int, kind: str, name: str) -> None:
        """Have a change made, after those that were asked for before."""
        self._asked.append(_Asked(worker, number, kind, name))

    def begin(self) -> None:
        """Begin the next change, if one waits and none is under way; all workers must answer."""
        while self._asked and self._now is None:
            asked = self._asked.popleft()
            try:
                change = self._ledger.begin(asked.kind, asked.name)
            except Refused as refused:
                self._answer(asked, refused.status, refused.message)
                continue
            self._now = _UnderWay(asked, change, set(self.workers))
            for worker in self.workers:
                self._send(worker, {"do": "prepare", "places": change.places, "rows": change.rows})

    def heard(self, worker: int, said: dict[str, Any]) -> None:
        """What a worker says of the change that is under way, or asks for."""
        if "ask" in said:
            self.ask(worker, said["ask"], said["kind"], said["name"])
        elif self._now is not None:
            self._now.message = self._now.message or said.get("message", "")
            self._now.waiting.discard(worker)
            self._go_on()

    def lost(self, worker: int) -> None:
        """A worker is gone, and is waited for no longer."""
        self.workers.discard(worker)
        if self._now is not None:
            self._now.waiting.discard(worker)
            self._go_on()

    def _go_on(self) -> None:
        now = self._now
        if now is None or now.waiting:
            return
        if not now.commits and not now.message:
            now.commits = True
            now.waiting = set(self.workers)
            for worker in self.workers:
                self._send(worker, {"do": "commit"})
            if self.workers:
                return
        if now.message:
            for worker in self.workers:
                self._send(worker, {"do": "abort"})
        self._now = None
        self._ledger.settle(now.change, not now.message)
        message = now.message and f"{now.asked.name} could not be loaded: {now.message}"
        self._answer(now.asked, 400, message)

    def _answer(self, asked: _Asked, status: int, message: str) -> None:
        if asked.worker is None:
            if message:
                logger.warning("%s; the old one stays", message)
        elif asked.worker in self.workers:
            self._send(asked.worker, {"do": "answer", "ask": asked.number, "status": status, "message": message})
