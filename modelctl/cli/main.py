"""The program: finds the command, runs it, and turns whatever happened into an exit status.

0 done · 1 the answer is no · 2 could not · 70 a bug · 130 Ctrl-C · 143 asked to end · 141 nobody reads the output
"""

import contextlib
import sys
from collections.abc import Sequence
from importlib import import_module
from io import TextIOWrapper
from types import TracebackType
from typing import Annotated, Any, NoReturn

import typer
from typer.main import get_command

from modelctl import __version__
from modelctl.cli import interrupts
from modelctl.cli.command import CONTEXT, Run
from modelctl.cli.console import STOPPED, Console, OutputGone
from modelctl.cli.usage import explained, refuse_odd_words
from modelctl.errors import ModelctlError

COMMANDS = (
    "export",
    "optimize",
    "quantize",
    "prune",
    "distill",
    "train",
    "eval",
    "predict",
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


def build(names: Sequence[str] = COMMANDS) -> typer.Typer:
    """The whole command line, every command registered; or, to start the sooner, those alone that are asked for."""
    app = typer.Typer(
        name="modelctl",
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        no_args_is_help=True,
        context_settings=CONTEXT,
        help="From a trained model to a served prediction: every step measured, recorded and verifiable.",
    )

    @app.callback()
    def root(
        version: Annotated[
            bool, typer.Option("--version", help="print the version", callback=_print_version, is_eager=True)
        ] = False,
    ) -> None:
        pass

    for name in names:
        import_module(f"modelctl.cli.{name}").register(app)
    return app


def _parsed(argv: list[str]) -> Any:
    """What typer makes of a command line; to start the sooner, no other command is registered than the one asked for.

    That one is called itself, without the program around it, whose flags typer would read with pydantic.
    """
    if argv and argv[0] in COMMANDS:
        app: Any = get_command(build(argv[:1]))
        return app.commands[argv[0]](args=argv[1:], prog_name=f"modelctl {argv[0]}", standalone_mode=False)
    whole = get_command(build(() if argv == ["--version"] else COMMANDS))
    return whole(args=argv, prog_name="modelctl", standalone_mode=False)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"modelctl {__version__}")
        raise typer.Exit


def _uncover(_kind: type | None, error: BaseException | None, _trace: TracebackType | None) -> None:
    """Ctrl-C is Ctrl-C, and a request to end one, also when a library made an error of its own of it."""
    found = error
    while found is not None and not _is_stop(found):
        found = found.__cause__ or found.__context__
    if isinstance(found, KeyboardInterrupt):
        raise KeyboardInterrupt from error
    if isinstance(found, SystemExit):
        raise SystemExit(found.code) from error


def _is_stop(error: BaseException) -> bool:
    return isinstance(error, KeyboardInterrupt) or (isinstance(error, SystemExit) and error.code in STOPPED)


def status_of(argv: list[str]) -> int:
    """Run one command line and return its exit status; everything it has to say has been printed."""
    console = Console(
        command=next((word for word in argv if not word.startswith("-")), ""),
        as_json="--json" in argv,
        verbose="-v" in argv or "--verbose" in argv,
    )
    try:
        refuse_odd_words(argv)
        # Typer only parses. The command runs outside of it: it would take a broken socket for a closed pipe and exit
        # without a word, and the EOFError of a short file for Ctrl-D.
        parsed = _parsed(argv)
        if isinstance(parsed, Run):
            console = parsed.console
            with contextlib.ExitStack() as covered:
                covered.push(_uncover)
                parsed.act()
            return 0
        return console.stopped(parsed) if parsed in STOPPED else int(parsed or 0)
    except ModelctlError as error:
        return console.error(error)
    except typer.TyperException as error:
        if not argv:  # the "error" is the help text
            console.tell(*error.format_message().splitlines())
            return 2
        return console.error(explained(error, argv, COMMANDS))
    except (KeyboardInterrupt, typer.Abort):
        return console.stopped(130)
    except SystemExit as gone:
        if gone.code in STOPPED:
            return console.stopped(int(gone.code or 0))
        raise
    except OutputGone:
        return 141
    except OSError as error:
        return console.error(error)
    except Exception as error:  # noqa: BLE001 - the one place where a bug is met
        return console.bug(error)


def main() -> NoReturn:
    """The program; `start` is where it begins."""
    interrupts.install()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a name that the terminal's encoding lacks stops nothing
    try:
        status = status_of(sys.argv[1:])
    except OutputGone:  # while telling of something else
        status = 141
    interrupts.over()
    sys.exit(status)
