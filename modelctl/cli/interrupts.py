"""Ctrl-C and requests to end, raised where they can be borne: not in the middle of an import, nor lost in a finalizer.

Commands that were stopped while they still loaded libraries have crashed, or taken the interrupt for an error of the
library's; so a first signal waits for the import that it falls into, some seconds at most. A second one is raised at
once. Ctrl-C is a KeyboardInterrupt, SIGTERM and SIGHUP are a SystemExit, so that every `with` and `finally` on the way
out is run.
"""

import _thread
import signal
import sys
import threading
import time
from types import FrameType

AGAIN_S = 0.01
LONGEST_IMPORT_S = 10.0
ENDED = 128  # the exit status of a program that a signal ended is this and the signal's number

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))

_waiting_since: list[float] = []  # one at most: when a signal came that still waits
_coming: set[int] = set()  # signals that are about to be sent once more


def install() -> None:
    """Answer signals so from now on, those aside that whoever started the program has ignored."""
    for number in SIGNALS:
        if signal.getsignal(number) in (signal.default_int_handler, signal.SIG_DFL):
            signal.signal(number, _answer)


def over() -> None:
    """Answer them no more: what is torn down at the end is torn down in peace."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _answer(number: int, frame: FrameType | None) -> None:
    # What is torn down half-built complains that it is; nobody needs to hear of it.
    sys.unraisablehook = _lost
    if _is_importing(frame) and not _waiting_since:
        _waiting_since.append(time.monotonic())
        _once_more(signal.Signals(number))
        return
    _waiting_since.clear()
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    signal.signal(number, signal.SIG_IGN)  # once is enough: the cleaning up is not to be disturbed
    raise SystemExit(ENDED + number)


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _lost(lost: "sys.UnraisableHookArgs") -> None:
    """What fell into a finalizer, which can't be stopped; raised at once, it would fall into this hook."""
    for number in SIGNALS:
        ended = isinstance(lost.exc_value, SystemExit) and lost.exc_value.code == ENDED + number
        if ended or (isinstance(lost.exc_value, KeyboardInterrupt) and number == signal.SIGINT):
            signal.signal(number, _answer)
            _once_more(number)


def _once_more(number: signal.Signals) -> None:
    if number in _coming:
        return
    _coming.add(number)
    again = threading.Timer(AGAIN_S, _poke, [number])
    again.daemon = True
    again.start()


def _poke(number: signal.Signals) -> None:
    """Interrupt the main thread when it is done importing, or has been at it for too long."""
    main = threading.main_thread().ident
    while _waiting_since and time.monotonic() - _waiting_since[0] < LONGEST_IMPORT_S:
        if not _is_importing(sys._current_frames().get(main or 0)):
            break
        time.sleep(AGAIN_S)
    _coming.discard(number)
    _thread.interrupt_main(number)
