"""One worker: an event loop (uvloop's, where it is to be had), the connections on it, signals, and a clean end.

SIGTERM or Ctrl-C: readiness goes false and each answer closes its connection; after a moment no new connection is
taken, what was accepted is answered, and the worker ends. A second one ends it at once.
"""

import asyncio
import os
import signal
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from modelctl.options import ServeOptions
from modelctl.serve import sockets
from modelctl.serve.changes import Watch
from modelctl.serve.connections import Connection
from modelctl.serve.http import App
from modelctl.serve.shelf import Alone, OneOfSeveral, Shelf
from modelctl.serve.wire import Wire, sweep

if TYPE_CHECKING:
    from modelctl.serve.visits import Visits

HANDSHAKE_S = 10.0  # the longest time that a client may take for that of TLS
GOODBYE_S = 1.0  # and for its end: who keeps a connection in store does not listen
DRAIN_S = 0.5  # how long connections are still taken after the request to end
END_S = 0.02  # how often it is looked whether all is answered
CLOSE_S = 1.0  # how long a model may take to finish what nobody waits for
FULL_S = 0.5  # how long none is taken once there is no room for more
SIGNALS = (signal.SIGINT, signal.SIGTERM)


def work(
    shelf: Shelf,
    options: ServeOptions,
    listener: socket.socket,
    answering: Callable[[], None],
    watch: Watch | None = None,
    parent: socket.socket | None = None,
    visits: "Visits | None" = None,
) -> None:
    """Serve models on a socket until SIGTERM or SIGINT; `answering` is called once they answer.

    With a `parent` process, only SIGTERM counts, and the end of the line to it; without one, `watch` says what is to be
    loaded anew. UsageError when the address can't be had.
    """
    with asyncio.Runner(loop_factory=_new_loop) as runner:
        runner.run(_Worker(shelf, options, listener, parent, visits).run(answering, watch))
    if not all(model.runner.close(CLOSE_S) for model in shelf.models):
        os._exit(0)  # a model hangs in its thread, and Python would abort at its own end


def _new_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:  # it does not exist for Windows
        return asyncio.new_event_loop()
    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop


class _Worker:
    """The event loop's work."""

    def __init__(
        self,
        shelf: Shelf,
        options: ServeOptions,
        listener: socket.socket,
        parent: socket.socket | None,
        visits: "Visits | None" = None,
    ) -> None:
        self._parent = parent
        self._visits = visits
        self._changes = Alone(shelf) if parent is None else OneOfSeveral(shelf, parent)
        app = App(shelf.models, options, self._changes)
        shelf.changed = app.reroute
        self._wire = Wire(app)
        self._options = options
        self._listener = listener
        self._asked_to_end = asyncio.Event()
        self._welcomes: set[asyncio.Task[object]] = set()

    async def run(self, answering: Callable[[], None], watch: Watch | None) -> None:
        """Serve until a signal asks for the end, then answer what was accepted."""
        loop = asyncio.get_running_loop()
        if self._parent is not None:
            self._parent.setblocking(False)
            loop.add_reader(self._parent, self._told, loop, self._parent)
        elif watch is not None and isinstance(self._changes, Alone):
            self._changes.watch(watch)
        for number in SIGNALS if self._parent is None else (signal.SIGTERM,):
            loop.add_signal_handler(number, self._signalled, number)
        if self._visits is not None:
            self._visits.begin(self._wire.app)
            if self._parent is not None or signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
                loop.add_signal_handler(signal.SIGHUP, self._visits.renew)
        sockets.listen(self._listener, self._options)
        loop.add_reader(self._listener, self._accept, loop)
        sweeping = asyncio.create_task(sweep(self._wire, self._options.timeout_s))
        answering()
        await self._asked_to_end.wait()
        await asyncio.sleep(DRAIN_S)
        loop.remove_reader(self._listener)
        self._accept_rest(loop)
        self._listener.close()
        await self._finish(loop.time() + self._options.timeout_s + 1)
        sweeping.cancel()
        if self._visits is not None:
            self._visits.end()

    async def _finish(self, ends: float) -> None:
        """Close each connection once what came over it is answered, and all of them when the time has come."""
        loop = asyncio.get_running_loop()
        while (self._welcomes or self._wire.open) and loop.time() < ends:
            for one in list(self._wire.open):
                one.end()
            await asyncio.sleep(END_S)
        for one in list(self._wire.open):
            one.transport.abort()

    def _accept(self, loop: asyncio.AbstractEventLoop) -> bool:
        """Take one connection: the others that wait are for workers that have less to do."""
        try:
            client, _ = self._listener.accept()
        except (BlockingIOError, ConnectionAbortedError, InterruptedError):
            return False  # another worker was quicker, or the client has left
        except OSError:  # no more file descriptors, or no memory: a loop would get no further by trying at once
            loop.remove_reader(self._listener)
            loop.call_later(FULL_S, self._accept_again, loop)
            return False
        client.setblocking(False)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        task: asyncio.Task[object] = loop.create_task(
            loop.connect_accepted_socket(lambda: Connection(self._wire), client, **self._tls())
        )
        self._welcomes.add(task)
        task.add_done_callback(self._welcomed)
        return True

    def _tls(self) -> dict[str, Any]:
        """How a connection is encrypted, as the loop wants to be told."""
        if self._visits is None or self._visits.tls is None:
            return {}
        return {
            "ssl": self._visits.tls,
            "ssl_handshake_timeout": min(HANDSHAKE_S, self._options.timeout_s),
            "ssl_shutdown_timeout": GOODBYE_S,
        }

    def _welcomed(self, task: asyncio.Task[object]) -> None:
        self._welcomes.discard(task)
        if not task.cancelled():
            task.exception()  # of a handshake that went wrong, which is the client's matter

    def _accept_again(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._listener.fileno() >= 0:
            loop.add_reader(self._listener, self._accept, loop)

    def _accept_rest(self, loop: asyncio.AbstractEventLoop) -> None:
        """Take what the system has accepted for us: it would be reset with the socket."""
        while self._accept(loop):
            pass

    def _told(self, loop: asyncio.AbstractEventLoop, parent: socket.socket) -> None:
        """Do what the parent says; when it is gone, so are we."""
        assert isinstance(self._changes, OneOfSeveral)
        if not self._changes.hear():
            loop.remove_reader(parent)
            self._wire.app.ready = False
            self._asked_to_end.set()

    def _signalled(self, number: int) -> None:
        if self._asked_to_end.is_set():
            os._exit(128 + number)  # at once: not even a model that hangs in its thread is waited for
        self._wire.app.ready = False
        self._asked_to_end.set()
