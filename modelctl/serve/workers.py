"""A server of one process, or of several that share what the first has opened.

With `--workers N` this process loads no model. It opens the socket and the shared memory for what is counted, and forks
workers, which inherit both and load the models for themselves; so it stays small, and has no thread that a fork would
lose. Each worker has a line to it, on which it says in JSON that it answers or why it can't, and whose end tells either
side that the other is gone: a worker that dies is replaced, and without a parent workers end. Connections that wait on
the socket are taken by whoever has least to do.

    worker → parent    {"ready": [{"name", "version", "digest"}, …], "names"}   {"error": {"kind", "message", "hint"}}

What they say when models are loaded and unloaded stands in `agreement`.
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
from typing import TYPE_CHECKING, Any, NoReturn

import orjson

from modelctl import errors
from modelctl.errors import ModelctlError, UsageError
from modelctl.options import ServeOptions
from modelctl.progress import Progress, silent
from modelctl.serve import sockets
from modelctl.serve.agreement import Agreement
from modelctl.serve.changes import LOAD, WATCH_S, Ledger, Watch
from modelctl.serve.metrics import Board

if TYPE_CHECKING:
    from modelctl.serve.visits import Visits

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
        if warning := sockets.warning(listener, options):
            progress.note(warning)
        url = sockets.url_of(listener, "http" if options.tls_cert is None else "https")
        visits = _visits(options, progress)
        if options.workers == 1:
            board = Board()
            watch = Watch(sources) if options.watch else None
            ledger = Ledger(sources, board)
            _work(
                ledger,
                options,
                listener,
                board,
                0,
                lambda facts: announce(url, facts),
                progress,
                watch=watch,
                visits=visits,
            )
        else:
            _Parent(sources, options, listener, visits).run(lambda facts: announce(url, facts))


def _visits(options: ServeOptions, progress: Progress) -> "Visits | None":
    """Who looks after clients, if anybody has to; made before models are loaded, so that mistakes are told at once."""
    if not options.has_visits:
        return None
    from modelctl.serve.visits import Visits, warnings

    for warning in warnings(options):
        progress.note(warning)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signal.signal(signal.SIGHUP, lambda *_: None)  # it means to read files anew, and they have just been read
    return Visits(options)


def _work(
    ledger: Ledger,
    options: ServeOptions,
    listener: socket.socket,
    board: Board,
    worker: int,
    ready: Callable[[list[Fact]], None],
    progress: Progress = silent,
    *,
    watch: Watch | None = None,
    parent: socket.socket | None = None,
    visits: "Visits | None" = None,
) -> None:
    # Not at the top: the process that forks must be free of what these bring along.
    from modelctl.serve.models import Models, load_all
    from modelctl.serve.server import work
    from modelctl.serve.shelf import Shelf

    rows = {place: row for place, (_, row) in ledger.loaded().items()}
    models = load_all(ledger.sources, options, progress, Models(board, worker), rows)
    for place in rows:
        ledger.names[place] = models.name_at(place)
    facts = [{"name": one.name, "version": one.version, "digest": one.digest} for one in models]
    work(Shelf(models, ledger, options), options, listener, lambda: ready(facts), watch, parent, visits)


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

    def __init__(
        self, sources: Sequence[str], options: ServeOptions, listener: socket.socket, visits: "Visits | None" = None
    ) -> None:
        if options.passphrase == "prompt":
            raise UsageError("--workers can't ask for a passphrase, once for each", "--passphrase env:NAME")
        self._options = options
        self._listener = listener
        self._visits = visits
        self._board = Board(options.workers)
        self._ledger = Ledger(sources, self._board)
        self._watch = Watch(sources) if options.watch else None
        self._next_look = 0.0
        self._children: dict[int, _Child] = {}
        self._due: dict[int, float] = {}  # workers to be started, and when
        self._selector = selectors.DefaultSelector()
        self._ends = False
        self._announced = False
        self._facts: list[Fact] | None = None
        self._agreement = Agreement(self._ledger, self._tell)

    def run(self, announce: Callable[[list[Fact]], None]) -> None:
        """Keep workers running until a signal asks for the end; what none of them can load is raised."""
        with self._signals() as alarm, self._selector:
            self._selector.register(alarm, selectors.EVENT_READ)
            self._due = dict.fromkeys(range(self._options.workers), 0.0)
            try:
                while self._children or (self._due and not self._ends):
                    self._start_due()
                    self._listen_to_children(alarm)
                    if len(self._agreement.workers) < self._options.workers or self._facts is None:
                        continue
                    if not self._announced:
                        self._announced = True
                        announce(self._facts)
                    self._look()
                    self._agreement.begin()
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
        if self._visits is not None and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            before[signal.SIGHUP] = signal.signal(signal.SIGHUP, self._renewed)
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

    def _renewed(self, number: int, _: object) -> None:
        for child in self._children.values():
            os.kill(child.pid, number)

    def _look(self) -> None:
        """Have loaded anew what was noticed to stand for something else."""
        if self._watch is None or time.monotonic() < self._next_look:
            return
        self._next_look = time.monotonic() + WATCH_S
        for place in self._watch.changed():
            if self._ledger.rows[place] is not None:
                self._agreement.ask(None, 0, LOAD, self._ledger.names[place])

    def _tell(self, number: int, words: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):  # it is gone, which we will hear
            self._children[number].line.sendall(orjson.dumps(words) + b"\n")

    def _start_due(self) -> None:
        if self._agreement.busy:
            return
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
            if self._visits is not None:
                signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until then, too
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
            line.sendall(orjson.dumps({"ready": facts, "names": self._ledger.names}) + b"\n")

        try:
            _work(
                self._ledger,
                self._options,
                self._listener,
                self._board,
                number,
                ready,
                parent=line,
                visits=self._visits,
            )
        except ModelctlError as error:
            told = {"kind": type(error).__name__, "message": error.message, "hint": error.hint}
            line.sendall(orjson.dumps({"error": told}) + b"\n")
            return error.exit_code
        return 0

    def _listen_to_children(self, alarm: socket.socket) -> None:
        times = [] if self._agreement.busy else list(self._due.values())
        times += [] if self._watch is None else [self._next_look]
        for key, _ in self._selector.select(max(min(times) - time.monotonic(), 0.0) if times else None):
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
            self._agreement.workers.add(child.number)
            self._facts = self._facts or said["ready"]
            self._ledger.names = [name or known for name, known in zip(said["names"], self._ledger.names, strict=True)]
        elif "error" not in said:
            self._agreement.heard(child.number, said)
        elif self._announced:
            logger.error("a worker can't start: %s", said["error"]["message"])
        else:
            told = said["error"]
            raise getattr(errors, told["kind"], ModelctlError)(told["message"], told["hint"])

    def _lost(self, child: _Child) -> None:
        """A worker is gone: what it had in flight is no more, and another takes its place, unless we end."""
        self._selector.unregister(child.line)
        child.line.close()
        del self._children[child.number]
        _, status = os.waitpid(child.pid, 0)
        if not (self._announced or self._ends or child.number in self._agreement.workers):
            code = os.waitstatus_to_exitcode(status)  # another one would fare no better
            how = f"with status {code}" if code >= 0 else f"by {signal.Signals(-code).name}"
            raise ModelctlError(f"a worker ended {how} before it could answer", "try --workers 1")
        self._board.lost(child.number)
        self._agreement.lost(child.number)
        if not self._ends:
            now = time.monotonic()
            self._due[child.number] = now if now - child.started > CALM_S else now + CALM_S
