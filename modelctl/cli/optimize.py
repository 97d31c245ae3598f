"""`modelctl optimize`."""

import typer

from modelctl.artifact import Artifact
from modelctl.cli.command import Answer, Model, Out, Shell, command
from modelctl.options import OptimizeOptions


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""

    @command(app, OptimizeOptions)
    def optimize(model: Model, out: Out, options: OptimizeOptions, shell: Shell) -> Answer:
        """The same function in fewer nodes: folded and fused, proven the same, and accepted only when measured good."""
        return shell.make("optimize", Artifact.open(model), out, options)
