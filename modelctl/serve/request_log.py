"""The log of requests: a line of JSON for each, in a file or on stdout.

    time         when the answer left, UTC             in, out       bytes of the bodies
    remote       the client's address                  queue_ms      waiting for the model, if it was asked
    method, path of the request, without its query     compute_ms    the run that it shared
    status       of the answer; 499: the client left   total_ms      from the head read to the answer sent
    model        name@sha256:digest                    key           whose key, token or certificate it was
    error        its kind, as `/metrics` counts it     trace         the trace's id (W3C Trace Context)

With `--log-payloads N` also `sent` and `answered`, the first N bytes of the bodies: text, or in base64 with `base64:`
before it. Lines are handed to a thread, which writes what has come in a while at one go, so that no request waits for
a disk. A file is written to its end only (O_APPEND), one process at a time, so that lines are whole with several
workers, too; on SIGHUP it is opened anew under its name, as logrotate wants it.
"""

import base64
import contextlib
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

import orjson

from modelctl.errors import UsageError
from modelctl.serve.turns import Turns

if TYPE_CHECKING:
    from modelctl.serve.http import Answer
    from modelctl.serve.visits import Visit

logger = logging.getLogger("modelctl.serve")

STDOUT = "-"
PAUSE_S = 0.1  # between two writes
REMEMBERED = 1024
WAITING_BYTES = 16 << 20  # of lines that wait; more are lost, and counted
END_S = 2.0

Times = tuple[float, float, float]


class RequestLog:
    """The log, as one worker writes it."""

    def __init__(self, place: str) -> None:
        self._place = place
        self._handle = self._open()  # that it can be is to be known at once
        if place != STDOUT:
            os.close(self._handle)
        self._turns = Turns()
        self._lines: deque[bytes] = deque()
        self._given = self._taken = 0  # bytes of lines, each counted by one thread alone
        self._lost: Callable[[int], None] = lambda _: None
        self._reopen = self._ends = False
        self._complained = False
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None
        self._second = (0, b"")
        self._known: dict[object, bytes] = {}

    def begin(self, lost: Callable[[int], None]) -> None:
        """Start to write; `lost` is told how many lines could not be."""
        self._lost = lost
        self._handle = self._open()
        self._thread = threading.Thread(target=self._work, name="modelctl-log", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Write what waits, if that is soon done."""
        self._ends = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join(END_S)

    def reopen(self) -> None:
        """Go on in a file of the same name."""
        self._reopen = True
        self._wake.set()

    def write(self, visit: "Visit", status: int, size: int, took: Times, answer: "Answer | None", keep: int) -> None:
        """A line for a request that is over; with at most `keep` bytes of its bodies."""
        request = visit.request
        more = b""
        if took[2] >= 0:
            more = b',"queue_ms":%.3f,"compute_ms":%.3f' % (took[1] * 1e3, took[2] * 1e3)
        if visit.context is not None:
            more += b',"trace":"%b"' % visit.context.trace.encode()
        if keep:
            parts = {
                "sent": _payload(request.body, keep),
                "answered": _payload(answer.body if answer is not None else b"", keep),
            }
            more += b"," + orjson.dumps(parts)[1:-1]
        data = b'{"time":"%b",%b,"in":%d,"out":%d,"total_ms":%.3f%b}\n' % (
            self._now(),
            self._lasting(visit, status),
            len(request.body),
            size,
            took[0] * 1e3,
            more,
        )
        if self.waiting_bytes + len(data) > WAITING_BYTES:
            self._lost(1)
            return
        self._given += len(data)
        self._lines.append(data)

    @property
    def waiting_bytes(self) -> int:
        """What is still to be written."""
        return self._given - self._taken

    def _lasting(self, visit: "Visit", status: int) -> bytes:
        """What a line says that others before it said, too."""
        head, model, caller = visit.request.head, visit.request.model, visit.caller
        told = model and model.told
        name = caller and caller.name
        key = (visit.guest.remote, head.method, head.path, status, told, name, visit.kind)
        found = self._known.get(key)
        if found is None:
            facts = {"remote": visit.guest.remote, "method": head.method, "path": head.path, "status": status}
            more = {"model": told, "key": name, "error": visit.kind}
            found = orjson.dumps({**facts, **{word: value for word, value in more.items() if value}})[1:-1]
            if len(self._known) >= REMEMBERED:
                self._known.clear()
            self._known[key] = found
        return found

    def _now(self) -> bytes:
        now = time.time()
        second = int(now)
        if second != self._second[0]:
            self._second = second, time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second)).encode()
        return b"%b.%03dZ" % (self._second[1], (now - second) * 1000)

    def _open(self) -> int:
        if self._place == STDOUT:
            return 1
        try:
            return os.open(self._place, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
        except OSError as error:
            why = (error.strerror or str(error)).lower()
            raise UsageError(f"--log-requests {self._place}: {why}", "--log-requests -") from None

    def _work(self) -> None:
        while True:
            ends = self._ends
            # What is handed over by the other thread meanwhile is taken in now or next time, as a whole.
            lines = [self._lines.popleft() for _ in range(len(self._lines))]
            if lines:
                data = b"".join(lines)
                self._put(data, len(lines))
                self._taken += len(data)
            if self._reopen and self._place != STDOUT:
                self._reopen = False
                self._open_anew()
            if ends:
                return
            self._wake.wait(PAUSE_S)
            self._wake.clear()

    def _open_anew(self) -> None:
        try:
            new = self._open()
        except UsageError as error:
            logger.warning("%s; the old file is written on", error)
            return
        old, self._handle = self._handle, new
        os.close(old)

    def _put(self, data: bytes, lines: int) -> None:
        """Write lines to the end, alone, so that nobody else's come between parts of them."""
        try:
            with self._turns:
                left = memoryview(data)
                while left:
                    left = left[os.write(self._handle, left) :]
        except OSError as error:
            self._lost(lines)
            if not self._complained:
                self._complained = True
                logger.warning("--log-requests %s: %s; lines are lost", self._place, (error.strerror or "").lower())
        else:
            self._complained = False


def _payload(body: bytes, keep: int) -> str:
    """The beginning of a body as a text; cut in the middle of a letter it is text still."""
    part = bytes(body[:keep])
    for cut in range(4 if len(body) > keep else 1):
        with contextlib.suppress(UnicodeDecodeError):
            return part[: len(part) - cut].decode()
    return "base64:" + base64.b64encode(part).decode()
