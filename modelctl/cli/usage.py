"""What is wrong with a command line, in modelctl's words, and the line that was probably meant."""

import os
import re
import shlex
from collections.abc import Sequence
from difflib import get_close_matches

import typer

from modelctl.errors import UsageError

ANYWHERE = ("--json", "--quiet", "-q", "--verbose", "-v", "--no-progress")  # what every command has
OUT = ("-o", "--out")


def explained(error: typer.TyperException, argv: Sequence[str], commands: Sequence[str]) -> UsageError:
    """The parser's error as a UsageError: the flag, the trouble, and a hint that can be typed."""
    command = next((word for word in argv if not word.startswith("-")), "")
    more = shlex.join(["modelctl", *([command] if command in commands else []), "--help"])
    if command and command not in commands:
        meant = get_close_matches(command, commands, 1)
        return UsageError(f"no such command: {command}", _corrected(argv, command, meant) or more)
    flag = getattr(error, "option_name", None)
    message = error.format_message()
    if isinstance(flag, str) and message.startswith("No such option"):
        if command and flag in ANYWHERE and argv.index(command) > _index(argv, flag):
            rest = [word for word in argv if word != flag]
            return UsageError(f"{flag}: stands before the command", shlex.join(["modelctl", *rest, flag]))
        return UsageError(
            f"no such option: {flag}", _corrected(argv, flag, getattr(error, "possibilities", None)) or more
        )
    if found := re.match(r"Invalid value for '([^']+)'[^:]*: (?:Value error, )?(?s:(.*))", message):
        trouble = _lower(found[2]).removeprefix("input ").partition(", unable to parse")[0]
        return UsageError(f"{found[1]}: {trouble}", _variable(error, argv) or more)
    return UsageError(_lower(message), more)


def refuse_odd_words(argv: Sequence[str]) -> None:
    """UsageError for an empty word, as an unset variable of a shell leaves behind, and for `-` where it means nothing.

    `-` is standard output for `decrypt -o -` and for the log of `serve` alone: any other artifact is a file with its
    manifest beside it.
    """
    for before, word in zip(("modelctl", *argv), argv, strict=False):
        if word == "--":
            return
        place, value = before, word
        if word.startswith("--") and "=" in word:
            place, _, value = word.partition("=")
        if not value:
            raise UsageError(f"{place}: an empty word follows, where a name or a value belongs")
        if value == "-" and not (argv[0] == "decrypt" and place in OUT) and place != "--log-requests":
            way = "output" if place in OUT else "input"
            raise UsageError(f"{place} -: standard {way} is no place for this", "./- if a file is called so")


def _lower(message: str) -> str:
    message = message.strip().rstrip(".")
    return message[:1].lower() + message[1:]


def _index(argv: Sequence[str], flag: str) -> int:
    return next((index for index, word in enumerate(argv) if word.partition("=")[0] == flag), len(argv))


def _corrected(argv: Sequence[str], wrong: str, meant: Sequence[str] | None) -> str | None:
    """The command line with its `wrong` word replaced by the closest of those that may have been `meant`."""
    by_name = {one.lstrip("-"): one for one in meant or []}
    closest = get_close_matches(wrong.lstrip("-"), by_name, 1)
    if not closest:
        return None
    words = list(argv)
    index = _index(words, wrong)
    if index < len(words):
        words[index] = by_name[closest[0]] + words[index][len(wrong) :]
    return shlex.join(["modelctl", *words])


def _variable(error: typer.TyperException, argv: Sequence[str]) -> str | None:
    """How to be rid of a wrong value that the environment gave, not the command line."""
    option = getattr(error, "param", None)
    name = getattr(option, "envvar", None)
    given = any(_index(argv, flag) < len(argv) for flag in getattr(option, "opts", ()))
    return f"unset {name}" if isinstance(name, str) and os.environ.get(name) and not given else None
