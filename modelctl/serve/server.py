"""The server: a socket, an event loop (uvloop's, where it is to be had), signals, and a clean end.

SIGTERM or Ctrl-C: readiness goes false and each answer closes its connection; after a moment no new connection is
taken, what was accepted is answered, and the process ends with status 0. A second one ends it at once.
"""

import asyncio
import contextlib
import errno
import ipaddress
import os
import signal
import socket
from collections.abc import Callable, Sequence

from modelctl.errors import UsageError
from modelctl.options import ServeOptions
from modelctl.progress import Progress, silent
from modelctl.serve.connections import Connection, Wire, sweep
from modelctl.serve.http import App
from modelctl.serve.models import Models, load_all

BACKLOG = 2048
DRAIN_S = 0.5  # how long connections are still taken after the request to end
END_S = 0.02  # how often it is looked whether all is answered
SIGNALS = (signal.SIGINT, signal.SIGTERM)

Announce = Callable[[str, Models], None]


def serve(sources: Sequence[str], options: ServeOptions, announce: Announce, progress: Progress = silent) -> None:
    """Serve models until SIGTERM or SIGINT; `announce` is given the URL and the models once they answer.

    UsageError when the address can't be had; whatever `load_all` raises.
    """
    with contextlib.closing(_listener(options)) as listener:
        models = load_all(sources, options, progress)
        host, port = listener.getsockname()[:2]
        if not _is_loopback(host):
            progress.note(f"listening on {host}, where others can reach it, and nothing asks them who they are")
        url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        app = App(models, options)
        with asyncio.Runner(loop_factory=_new_loop) as runner:
            runner.run(_Server(app, options, listener).run(lambda: announce(url, models)))
        for model in models:
            model.runner.close()


def _new_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:  # it does not exist for Windows
        return asyncio.new_event_loop()
    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop


def _listener(options: ServeOptions) -> socket.socket:
    """A socket that is bound but does not listen yet: who comes before the models are loaded is refused, not kept."""
    where = f"{options.host}:{options.port}"
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            options.host, options.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (socket.gaierror, UnicodeError) as error:
        raise UsageError(f"--host {options.host}: no such address", "--host 127.0.0.1") from error
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise unusable(where, error) from error
    return listener


def unusable(where: str, error: OSError) -> UsageError:
    if error.errno == errno.EADDRINUSE:
        return UsageError(f"{where}: the port is in use", "--port 0")
    return UsageError(f"{where}: can't listen there: {(error.strerror or str(error)).lower()}", "--port 0")


def _is_loopback(host: str) -> bool:
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    return False


class _Server:
    """The event loop's work: connections, signals, the watch over slow clients, and the end."""

    def __init__(self, app: App, options: ServeOptions, listener: socket.socket) -> None:
        self._wire = Wire(app)
        self._timeout_s = options.timeout_s
        self._where = f"{options.host}:{options.port}"
        self._listener = listener
        self._asked_to_end = asyncio.Event()

    async def run(self, announce: Callable[[], None]) -> None:
        """Serve until a signal asks for the end, then answer what was accepted."""
        loop = asyncio.get_running_loop()
        for number in SIGNALS:
            loop.add_signal_handler(number, self._signalled, number)
        try:
            server = await loop.create_server(lambda: Connection(self._wire), sock=self._listener, backlog=BACKLOG)
        except OSError as error:  # another one bound to the port as we did, and was the first to listen
            raise unusable(self._where, error) from error
        watch = asyncio.create_task(sweep(self._wire, self._timeout_s))
        announce()
        await self._asked_to_end.wait()
        await asyncio.sleep(DRAIN_S)
        server.close()
        for one in list(self._wire.open):
            one.end()
        ends = loop.time() + self._timeout_s + 1
        while self._wire.open and loop.time() < ends:
            await asyncio.sleep(END_S)
        for one in list(self._wire.open):
            one.transport.abort()
        watch.cancel()

    def _signalled(self, number: int) -> None:
        if self._asked_to_end.is_set():
            os._exit(128 + number)  # at once: not even a model that hangs in its thread is waited for
        self._wire.app.ready = False
        self._asked_to_end.set()
