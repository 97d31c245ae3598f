"""Where the program begins: light, so that Ctrl-C is answered while the rest of it is still being loaded."""

import sys
from typing import NoReturn


def main() -> NoReturn:
    """The entry point of the `modelctl` script."""
    try:
        from modelctl.cli.main import main as program

        program()
    except KeyboardInterrupt:
        sys.stderr.write("modelctl: interrupted\n")
        sys.exit(130)
