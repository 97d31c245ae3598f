"""`modelctl verify`."""

import typer

from modelctl.cli.command import Answer, Model, Shell, command
from modelctl.options import VerifyOptions


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""

    @command(app, VerifyOptions)
    def verify(model: Model, options: VerifyOptions, shell: Shell) -> Answer:
        """Re-hash every file, check the chain, its roots and the signatures; exit status 1 if anything is not right."""
        from modelctl.steps.verify import verify

        return verify(model, options, shell.progress)
