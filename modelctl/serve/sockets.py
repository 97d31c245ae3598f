"""The socket that a server listens on: opened once, before anything else, and inherited by every worker."""

import contextlib
import errno
import ipaddress
import socket

from modelctl.errors import UsageError
from modelctl.options import ServeOptions

BACKLOG = 2048


def bound(options: ServeOptions) -> socket.socket:
    """A socket that is bound but does not listen yet: who comes before the models are loaded is refused, not kept."""
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
        raise _unusable(options, error) from error
    listener.setblocking(False)
    return listener


def listen(listener: socket.socket, options: ServeOptions) -> None:
    """Take connections from now on; UsageError where another one bound to the port as we did, and was the first."""
    try:
        listener.listen(BACKLOG)
    except OSError as error:
        raise _unusable(options, error) from error


def url_of(listener: socket.socket, scheme: str = "http") -> str:
    """The address that clients use."""
    host, port = listener.getsockname()[:2]
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"


def warning(listener: socket.socket, options: ServeOptions) -> str | None:
    """What is to be said of an address that others can reach."""
    if options.asks_who and options.tls_cert is not None:
        return None
    host = listener.getsockname()[0]
    with contextlib.suppress(ValueError):
        if ipaddress.ip_address(host.partition("%")[0]).is_loopback:
            return None
    if options.asks_who:
        return f"listening on {host}, where others can reach it, and keys are sent so that all between can read them"
    return f"listening on {host}, where others can reach it, and nothing asks them who they are"


def _unusable(options: ServeOptions, error: OSError) -> UsageError:
    where = f"{options.host}:{options.port}"
    if error.errno == errno.EADDRINUSE:
        return UsageError(f"{where}: the port is in use", "--port 0")
    return UsageError(f"{where}: can't listen there: {(error.strerror or str(error)).lower()}", "--port 0")
