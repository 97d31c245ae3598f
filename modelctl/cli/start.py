"""Where the program begins: light, so that Ctrl-C and SIGTERM are heard while the rest of it is still being loaded."""

import os
import sys
from typing import NoReturn

from modelctl.cli import interrupts


def main() -> NoReturn:
    """The entry point of the `modelctl` script."""
    _open_what_is_closed()
    interrupts.install()
    try:
        try:
            from modelctl.cli.main import main as program
        except SystemExit:  # nothing else ends the loading
            sys.stderr.write("modelctl: terminated\n")
            raise
        program()
    except KeyboardInterrupt:
        sys.stderr.write("modelctl: interrupted\n")
        sys.exit(130)


def _open_what_is_closed() -> None:
    """Give stdin, stdout and stderr a place: a file that took the number of one that is closed would get its words."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode))
