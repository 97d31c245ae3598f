"""`modelctl distill`."""

import typer

from modelctl.artifact import Artifact
from modelctl.cli.command import Answer, Model, Out, Shell, command
from modelctl.options import DistillOptions


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""

    @command(app, DistillOptions)
    def distill(model: Model, out: Out, options: DistillOptions, shell: Shell) -> Answer:
        """A smaller student that learns what the teacher MODEL answers."""
        return shell.make("distill", Artifact.open(model), out, options)
