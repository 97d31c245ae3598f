"""`modelctl quantize`."""

import typer

from modelctl.artifact import Artifact
from modelctl.cli.command import Answer, Model, Out, Shell, command
from modelctl.options import QuantizeOptions


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""

    @command(app, QuantizeOptions)
    def quantize(model: Model, out: Out, options: QuantizeOptions, shell: Shell) -> Answer:
        """Fewer bits, in whatever way is best within the budget, proven on samples no search has seen; or exit 1."""
        return shell.make("quantize", Artifact.open(model), out, options)
