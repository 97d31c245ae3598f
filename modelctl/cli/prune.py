"""`modelctl prune`."""

import typer

from modelctl.artifact import Artifact
from modelctl.cli.command import Answer, Model, Out, Shell, command
from modelctl.options import PruneOptions


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""

    @command(app, PruneOptions)
    def prune(model: Model, out: Out, options: PruneOptions, shell: Shell) -> Answer:
        """Fewer weights, channels or layers, healed with MODEL as teacher, and accepted only when measured good."""
        return shell.make("prune", Artifact.open(model), out, options)
