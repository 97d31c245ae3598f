"""`modelctl decrypt`."""

from pathlib import Path
from typing import Annotated

import typer

from modelctl.artifact import Artifact
from modelctl.cli.command import Answer, Model, Shell, command
from modelctl.options import DecryptOptions

Place = Annotated[Path, typer.Option("-o", "--out", help="folder, or file of the name inside", show_default=False)]


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""

    @command(app, DecryptOptions)
    def decrypt(model: Model, out: Place, options: DecryptOptions, shell: Shell) -> Answer:
        """Back to the plain artifact, manifest and signature as they were; all of it verified, or nothing written."""
        from modelctl.steps.decrypt import decrypt

        return decrypt(Artifact.open(model), out, options, shell.progress)
