"""`modelctl inspect`."""

import typer

from modelctl.cli.command import Answer, Model, Shell, command


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""

    @command(app)
    def inspect(model: Model, shell: Shell) -> Answer:
        """What it is: files, inputs and outputs, figures, signatures, who may open it."""
        from modelctl.steps.inspect import inspect

        return inspect(model, shell.progress)
