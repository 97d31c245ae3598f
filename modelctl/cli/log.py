"""`modelctl log`."""

import typer

from modelctl.cli.command import Answer, Model, Shell, command


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""

    @command(app)
    def log(model: Model, shell: Shell) -> Answer:
        """Where it comes from: the chain down to the checkpoint, with the figures of each step."""
        from modelctl.steps.log import log

        return log(model, shell.progress)
