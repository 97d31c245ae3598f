"""`modelctl demo`."""

from pathlib import Path
from typing import Annotated

import typer

from modelctl.cli.command import Answer, Shell, command
from modelctl.options import Options

Dir = Annotated[Path, typer.Argument(help="the folder to make, or to go through again")]


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""

    @command(app, Options)
    def demo(shell: Shell, options: Options, folder: Dir = Path("modelctl-demo")) -> Answer:
        """The whole road on real digits, in a minute: train, every step, serve, ask."""
        from modelctl.demo import demo

        return demo(folder, options, shell.progress)
