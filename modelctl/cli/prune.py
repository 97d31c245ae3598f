"""`modelctl prune`."""

import typer

from modelctl.artifact import Artifact
from modelctl.cli.command import Answer, Model, Out, Shell, command
from modelctl.options import PruneOptions


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""

    @command(app, PruneOptions)
    def prune(model: Model, out: Out, options: PruneOptions, shell: Shell) -> Answer:
        """Fewer weights: those of least magnitude set to zero, scored before and after."""
        return shell.make("prune", Artifact.open(model), out, options)
