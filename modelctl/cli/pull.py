"""`modelctl pull`."""

from pathlib import Path
from typing import Annotated

import typer

from modelctl.cli.command import Answer, Shell, command
from modelctl.options import PullOptions

From = Annotated[str, typer.Argument(metavar="[STORE/]NAME:TAG", help="what to fetch", show_default=False)]
Into = Annotated[Path, typer.Option("-o", "--out", help="folder to write into", show_default=False)]


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""

    @command(app, PullOptions)
    def pull(ref: From, out: Into, options: PullOptions, shell: Shell) -> Answer:
        """Out of a store, verified on the way in; all files or none."""
        from modelctl.steps.pull import pull

        return pull(ref, out, options, shell.progress)
