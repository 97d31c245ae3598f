"""The program: finds the command, runs it, and turns whatever happened into an exit status.

0 done · 1 the answer is no · 2 could not · 70 a bug · 130 Ctrl-C
"""

import os
import signal
import sys
from importlib import import_module
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer

from modelctl import __version__
from modelctl.cli.console import Console
from modelctl.errors import ModelctlError, UsageError

COMMANDS = ("quantize", "run")
COMMANDS_ALL = (
    "export",
    "quantize",
    "prune",
    "distill",
    "eval",
    "encrypt",
    "decrypt",
    "keygen",
    "sign",
    "verify",
    "inspect",
    "log",
    "push",
    "pull",
    "serve",
    "run",
    "init",
    "demo",
)


def build() -> typer.Typer:
    """The whole command line, every command registered."""
    app = typer.Typer(
        name="modelctl",
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        no_args_is_help=True,
        context_settings={"help_option_names": ["-h", "--help"]},
        help="From a trained model to a served prediction: every step measured, recorded and verifiable.",
    )

    @app.callback()
    def root(
        version: Annotated[
            bool, typer.Option("--version", help="print the version", callback=_print_version, is_eager=True)
        ] = False,
    ) -> None:
        pass

    for name in COMMANDS:
        import_module(f"modelctl.cli.{name}").register(app)
    return app


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"modelctl {__version__}")
        raise typer.Exit


def _terminate(number: int, _frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)  # so that every `with` and `finally` on the way out is run


def status_of(argv: list[str]) -> int:
    """Run one command line and return its exit status; everything it has to say has been printed."""
    console = Console(
        command=next((word for word in argv if not word.startswith("-")), ""),
        as_json="--json" in argv,
        verbose="-v" in argv or "--verbose" in argv,
    )
    try:
        status: Any = build()(args=argv, prog_name="modelctl", standalone_mode=False)
    except ModelctlError as error:
        return console.error(error)
    except typer.TyperException as error:
        hint = f"modelctl {console.command} --help" if console.command in COMMANDS else "modelctl --help"
        message = error.format_message().rstrip(".")
        return console.error(UsageError(message[:1].lower() + message[1:], hint))
    except (KeyboardInterrupt, typer.Abort):
        return console.interrupted()
    except BrokenPipeError:
        # Whoever read our output has gone; what is still buffered has nowhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        return console.error(error)
    except Exception as error:  # noqa: BLE001 - the one place where a bug is met
        return console.bug(error)
    if status == 130:  # with standalone_mode off, typer returns what Ctrl-C would have exited with
        return console.interrupted()
    return status if isinstance(status, int) else 0


def main() -> NoReturn:
    """The entry point of the `modelctl` script."""
    signal.signal(signal.SIGTERM, _terminate)
    sys.exit(status_of(sys.argv[1:]))
