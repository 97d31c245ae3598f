"""The server: a socket, uvicorn on uvloop and httptools, signals, and a clean end.

SIGTERM or Ctrl-C: readiness goes false and each answer closes its connection; after a moment no new connection is
taken, what was accepted is answered, and the process ends with status 0. A second one ends it at once.
"""

import asyncio
import contextlib
import errno
import ipaddress
import logging
import os
import signal
import socket
from collections.abc import Callable, Collection, Iterator, Sequence
from types import FrameType
from typing import cast

import uvicorn

from modelctl.errors import UsageError
from modelctl.options import ServeOptions
from modelctl.progress import Progress, silent
from modelctl.serve.connections import Connection, sweep
from modelctl.serve.http import App
from modelctl.serve.models import Models, load_all

BACKLOG = 2048
KEEP_ALIVE_S = 75
DRAIN_S = 0.5  # how long connections are still taken after the request to end
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
        app = App(models, options)
        config = uvicorn.Config(
            app,
            http=Connection,
            ws="none",
            loop="auto",
            lifespan="off",
            interface="asgi3",
            backlog=BACKLOG,
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=int(options.timeout_s) + 1,
        )
        logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
        url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        server = _Server(config, app, options, lambda: announce(url, models))
        server.run(sockets=[listener])
        for model in models:
            model.runner.close()


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
        raise _unusable(where, error) from error
    return listener


def _unusable(where: str, error: OSError) -> UsageError:
    if error.errno == errno.EADDRINUSE:
        return UsageError(f"{where}: the port is in use", "--port 0")
    return UsageError(f"{where}: can't listen there: {(error.strerror or str(error)).lower()}", "--port 0")


def _is_loopback(host: str) -> bool:
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    return False


class _Server(uvicorn.Server):
    """uvicorn's server with our own signals, announcement, watch over slow clients, and end."""

    def __init__(self, config: uvicorn.Config, app: App, options: ServeOptions, announce: Callable[[], None]) -> None:
        super().__init__(config)
        self._app = app
        self._timeout_s = options.timeout_s
        self._where = f"{options.host}:{options.port}"
        self._announce = announce

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        try:
            await super().startup(sockets)
        except OSError as error:  # another one bound to the port as we did, and was the first to listen
            raise _unusable(self._where, error) from error
        self._announce()

    async def main_loop(self) -> None:
        connections = cast(Collection[Connection], self.server_state.connections)
        watch = asyncio.create_task(sweep(connections, self._timeout_s))
        try:
            await super().main_loop()
            self._app.ready = False
            await asyncio.sleep(DRAIN_S)
        finally:
            watch.cancel()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        before = {number: signal.signal(number, self._asked_to_end) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _asked_to_end(self, number: int, _frame: FrameType | None) -> None:
        if self.should_exit:
            os._exit(128 + number)  # at once: not even a model that hangs in its thread is waited for
        self._app.ready = False
        self.should_exit = True
