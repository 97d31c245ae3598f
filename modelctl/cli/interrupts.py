"""Ctrl-C, raised where it can be borne: not in the middle of an import, and not lost in a finalizer.

Commands that were interrupted while they still loaded libraries have crashed, or taken the interrupt for an error of
the library's; so a first Ctrl-C waits for the import that it falls into, some seconds at most. A second one is
raised at once.
"""

import _thread
import signal
import sys
import threading
import time
from types import FrameType

AGAIN_S = 0.01
LONGEST_IMPORT_S = 10.0

_waiting_since: list[float] = []  # one at most: when a Ctrl-C came that still waits


def install() -> None:
    """Answer Ctrl-C so from now on, unless whoever started the program has it ignored."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)


def over() -> None:
    """Answer it no more: what is torn down at the end is torn down in peace."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _interrupt(_number: int, frame: FrameType | None) -> None:
    # What is torn down half-built complains that it is; nobody needs to hear of it.
    sys.unraisablehook = _lost
    if _is_importing(frame) and not _waiting_since:
        _waiting_since.append(time.monotonic())
        _once_more()
        return
    _waiting_since.clear()
    raise KeyboardInterrupt


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _lost(lost: "sys.UnraisableHookArgs") -> None:
    if isinstance(lost.exc_value, KeyboardInterrupt):
        # It fell into a finalizer, which can't be stopped; raised at once, it would fall into this hook.
        _once_more()


def _once_more() -> None:
    again = threading.Timer(AGAIN_S, _poke)
    again.daemon = True
    again.start()


def _poke() -> None:
    """Interrupt the main thread when it is done importing, or has been at it for too long."""
    main = threading.main_thread().ident
    while _waiting_since and time.monotonic() - _waiting_since[0] < LONGEST_IMPORT_S:
        if not _is_importing(sys._current_frames().get(main or 0)):
            break
        time.sleep(AGAIN_S)
    _thread.interrupt_main()
