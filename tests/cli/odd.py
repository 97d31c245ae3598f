"""The real program with one more command, `odd`, that does whatever odd thing it is told to: for `test_main.py`."""

import socket
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Annotated

import typer

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from artifacts import origin_of, root

from modelctl.artifact import Artifact
from modelctl.cli import main
from modelctl.cli.command import Answer, Shell, command
from modelctl.errors import CheckFailed, StoreError
from modelctl.making import create
from modelctl.options import QuantizeOptions
from modelctl.report import Report

HOSTILE = "a\x1b[2J\nb\x07\x9b31m\u202e\udcff.onnx"


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""

    @command(app, QuantizeOptions)
    def odd(what: Annotated[str, typer.Argument(help="what to do")], options: QuantizeOptions, shell: Shell) -> Answer:
        """Something odd."""
        match what:
            case "bug":
                raise ValueError(HOSTILE)
            case "eof":
                raise EOFError("a short file")
            case "socket":
                one, other = socket.socketpair()
                other.close()
                with one:
                    one.send(b"x")
            case "no-name":
                raise OSError
            case "text-only":
                raise OSError("The Store said No")
            case "no":
                raise CheckFailed(f"{HOSTILE}: accuracy 0.4 is below 0.5", HOSTILE)
            case "store":
                raise StoreError("s3://x: unreachable")
            case "chatter":
                print("chatter of a library")
                return Report(subject="x", facts={"a": 1})
            case "nothing":
                return None
            case "numbers":
                return Report(
                    subject="x", facts={"nan": float("nan"), "inf": [float("inf")], "é": HOSTILE, "p": Path()}
                )
            case "much":
                return Report(subject="x", lines=tuple(f"line {index}" for index in range(100_000)))
            case "options":
                told = ("bits", "samples", "seed", "force", "op_types", "per_channel")
                return Report(subject="x", facts={name: getattr(options, name) for name in told})
            case "progress":
                shell.progress.note(f"a note about {HOSTILE}")
                for done in range(4):
                    shell.progress.advance(f"[red]working[/x] {HOSTILE}", done, 3, "samples")
                    time.sleep(0.15)
                shell.progress.note("another note")
                return Report(subject="x", facts={"done": True})
            case _:  # a folder to make something in, for a long time
                with create(Path(what) / "b.onnx", origin_of(root(Path(what)))) as draft:
                    draft.path.write_bytes(b"half")
                    shell.progress.note("writing")
                    time.sleep(60)
                return Artifact.open(Path(what) / "b.onnx")
        return None


def admit() -> None:
    """Let `modelctl odd` be a command of this process."""
    module = ModuleType("modelctl.cli.odd")
    module.register = register  # type: ignore[attr-defined]
    sys.modules["modelctl.cli.odd"] = module
    main.COMMANDS = (*main.COMMANDS, "odd")  # type: ignore[assignment]


if __name__ == "__main__":
    admit()
    main.main()
