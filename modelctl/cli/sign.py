"""`modelctl sign`."""

import typer

from modelctl.artifact import Artifact
from modelctl.cli.command import Answer, Model, Shell, command
from modelctl.options import SignOptions


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""

    @command(app, SignOptions)
    def sign(model: Model, options: SignOptions, shell: Shell) -> Answer:
        """Sign the files and the manifest, and with them the whole history, into MODEL.dsse.json."""
        from modelctl.steps.sign import sign

        return sign(Artifact.open(model), options, shell.progress)
