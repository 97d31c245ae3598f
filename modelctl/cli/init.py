"""`modelctl init`."""

from pathlib import Path
from typing import Annotated

import typer

from modelctl.cli.command import Answer, Shell, command
from modelctl.options import InitOptions

Dir = Annotated[Path, typer.Argument(help="the folder to make", show_default=False)]


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""

    @command(app, InitOptions)
    def init(folder: Dir, options: InitOptions, shell: Shell) -> Answer:
        """A project to start from: net, training script, modelctl.toml, Makefile, CI step."""
        from modelctl.steps.init import init

        return init(folder, options, shell.progress)
