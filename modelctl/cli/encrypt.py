"""`modelctl encrypt`."""

import typer

from modelctl.artifact import Artifact
from modelctl.cli.command import Answer, Model, Out, Shell, command
from modelctl.options import EncryptOptions


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""

    @command(app, EncryptOptions)
    def encrypt(model: Model, out: Out, options: EncryptOptions, shell: Shell) -> Answer:
        """Sealed for recipients, a key file or a passphrase; manifest and signature travel inside."""
        return shell.make("encrypt", Artifact.open(model), out, options)
