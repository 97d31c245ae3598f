"""A server of one process, or of several that share what the first has opened.

With `--workers N` this process loads no model. It opens the socket and the shared memory for what is counted, and forks
workers, which inherit both and load the models for themselves; so it stays small, and has no thread that a fork would
lose. Each worker has a line to it, on which it says in JSON that it answers or why it can't, and whose end tells either
side that the other is gone: a worker that dies is replaced, and without a parent workers end. Connections that wait on
the socket are taken by whoever has least to do.

    worker → parent    {"ready": [{"name", "version", "digest"}, …]}   {"error": {"kind", "message", "hint"}}
"""

import contextlib
import logging
import os
import selectors
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import orjson

from modelctl import errors
from modelctl.errors import ModelctlError, UsageError
from modelctl.options import ServeOptions
from modelctl.progress import Progress, silent
from modelctl.serve import sockets
from modelctl.serve.metrics import Board

logger = logging.getLogger("modelctl.serve")

CALM_S = 1.0  # a worker that dies sooner after its start is not replaced at once
SIGNALS = (signal.SIGINT, signal.SIGTERM)
READ_BYTES = 1 << 16

Fact = dict[str, str]  # name, version and digest of a model
Announce = Callable[[str, list[Fact]], None]


def serve(sources: Sequence[str], options: ServeOptions, announce: Announce, progress: Progress = silent) -> None:
    """Serve models until SIGTERM or SIGINT; `announce` is given the URL and the models once they answer.

    UsageError when the address can't be had; whatever `models.load_all` raises.
    """
    with contextlib.closing(sockets.bound(options)) as listener:
        if warning := sockets.warning(listener):
            progress.note(warning)
        url = sockets.url_of(listener)
        if options.workers == 1:
            _work(sources, options, listener, Board(), 0, lambda facts: announce(url, facts), progress)
        else:
            _Parent(sources, options, listener).run(lambda facts: announce(url, facts))


def _work(
    sources: Sequence[str],
    options: ServeOptions,
    listener: socket.socket,
    board: Board,
    worker: int,
    ready: Callable[[list[Fact]], None],
    progress: Progress = silent,
    parent: socket.socket | None = None,
) -> None:
    # Not at the top: the process that forks must be free of what these bring along.
    from modelctl.serve.models import load_all
    from modelctl.serve.server import work

    models = load_all(sources, options, progress, board, worker)
    facts = [{"name": one.name, "version": one.version, "digest": one.digest} for one in models]
    work(models, options, listener, lambda: ready(facts), parent)


@dataclass
class _Child:
    """A worker as its parent sees it."""

    number: int
    pid: int
    line: socket.socket
    started: float
    said: bytes = b""


class _Parent:
    """Starts workers, replaces those that die, and ends them all."""

    def __init__(self, sources: Sequence[str], options: ServeOptions, listener: socket.socket) -> None:
        if options.passphrase == "prompt":
            raise UsageError("--workers can't ask for a passphrase, once for each", "--passphrase env:NAME")
        self._sources = sources
        self._options = options
        self._listener = listener
        self._board = Board(options.workers)
        self._children: dict[int, _Child] = {}
        self._due: dict[int, float] = {}  # workers to be started, and when
        self._selector = selectors.DefaultSelector()
        self._ends = False
        self._facts: list[Fact] | None = None
        self._ready: set[int] = set()

    def run(self, announce: Callable[[list[Fact]], None]) -> None:
        """Keep workers running until a signal asks for the end; what none of them can load is raised."""
        with self._signals() as alarm, self._selector:
            self._selector.register(alarm, selectors.EVENT_READ)
            self._due = dict.fromkeys(range(self._options.workers), 0.0)
            announced = False
            try:
                while self._children or (self._due and not self._ends):
                    self._start_due()
                    self._listen_to_children(alarm)
                    if not announced and len(self._ready) == self._options.workers and self._facts is not None:
                        announced = True
                        announce(self._facts)
            finally:
                for child in self._children.values():
                    os.kill(child.pid, signal.SIGKILL)
                    os.waitpid(child.pid, 0)

    @contextlib.contextmanager
    def _signals(self) -> Iterator[socket.socket]:
        """A socket that becomes readable at a signal, which asks for the end; the second one is obeyed at once."""
        alarm, bell = socket.socketpair()
        alarm.setblocking(False)
        bell.setblocking(False)
        before = {number: signal.signal(number, self._signalled) for number in SIGNALS}
        woken = signal.set_wakeup_fd(bell.fileno(), warn_on_full_buffer=False)
        try:
            yield alarm
        finally:
            signal.set_wakeup_fd(woken)
            for number, handler in before.items():
                signal.signal(number, handler)
            alarm.close()
            bell.close()

    def _signalled(self, number: int, _: object) -> None:
        for child in self._children.values():
            os.kill(child.pid, signal.SIGKILL if self._ends else signal.SIGTERM)
        if self._ends:
            os._exit(128 + number)
        self._ends = True
        self._listener.close()  # the workers have it still, until they have answered what came over it

    def _start_due(self) -> None:
        for number, when in list(self._due.items()):
            if when <= time.monotonic() and not self._ends:
                del self._due[number]
                self._start(number)

    def _start(self, number: int) -> None:
        ours, theirs = socket.socketpair()
        # A signal in between would find a child that has our handlers, or one that we don't know of.
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        pid = os.fork()
        if not pid:
            ours.close()
            self._be_worker(number, theirs)
        theirs.close()
        self._children[number] = child = _Child(number, pid, ours, time.monotonic())
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        self._selector.register(ours, selectors.EVENT_READ, child)

    def _be_worker(self, number: int, line: socket.socket) -> NoReturn:
        status = 70
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGTERM, lambda *_: os._exit(0))  # until the event loop has its own
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all of us, and the parent decides
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
            for other in self._children.values():
                other.line.close()
            status = self._worked(number, line)
        finally:
            if sys.exc_info()[0] is not None:
                logger.critical("a worker ended by a bug", exc_info=True)
            os._exit(status)

    def _worked(self, number: int, line: socket.socket) -> int:
        def ready(facts: list[Fact]) -> None:
            line.sendall(orjson.dumps({"ready": facts}) + b"\n")

        try:
            _work(self._sources, self._options, self._listener, self._board, number, ready, parent=line)
        except ModelctlError as error:
            told = {"kind": type(error).__name__, "message": error.message, "hint": error.hint}
            line.sendall(orjson.dumps({"error": told}) + b"\n")
            return error.exit_code
        return 0

    def _listen_to_children(self, alarm: socket.socket) -> None:
        wait = min((when - time.monotonic() for when in self._due.values()), default=None)
        for key, _ in self._selector.select(None if wait is None else max(wait, 0.0)):
            if key.fileobj is alarm:
                with contextlib.suppress(BlockingIOError):
                    alarm.recv(READ_BYTES)
                continue
            child: _Child = key.data
            data = b""
            with contextlib.suppress(ConnectionResetError):
                data = child.line.recv(READ_BYTES)
            if not data:
                self._lost(child)
            *lines, child.said = (child.said + data).split(b"\n")
            for line in lines:
                self._heard(child, orjson.loads(line))

    def _heard(self, child: _Child, said: dict[str, Any]) -> None:
        if "ready" in said:
            self._ready.add(child.number)
            self._facts = self._facts or said["ready"]
        elif self._facts is None or child.number not in self._ready:
            told = said["error"]
            raise getattr(errors, told["kind"], ModelctlError)(told["message"], told["hint"])

    def _lost(self, child: _Child) -> None:
        """A worker is gone: what it had in flight is no more, and another takes its place, unless we end."""
        self._selector.unregister(child.line)
        child.line.close()
        del self._children[child.number]
        os.waitpid(child.pid, 0)
        self._board.lost(child.number)
        if not self._ends:
            now = time.monotonic()
            self._due[child.number] = now if now - child.started > CALM_S else now + CALM_S
