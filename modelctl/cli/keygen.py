"""`modelctl keygen`."""

from pathlib import Path
from typing import Annotated

import typer

from modelctl.cli.command import Answer, Shell, command
from modelctl.options import KeygenOptions

Place = Annotated[Path, typer.Option("-o", "--out", help="key file to write", show_default=False)]


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""

    @command(app, KeygenOptions)
    def keygen(out: Place, options: KeygenOptions, shell: Shell) -> Answer:
        """A new key: OUT for its owner only, and for a pair its public half beside it (key.pem, key.pub.pem)."""
        from modelctl.steps.keygen import keygen

        return keygen(out, options, shell.progress)
