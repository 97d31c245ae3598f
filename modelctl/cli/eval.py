"""`modelctl eval`."""

import typer

from modelctl.artifact import Artifact
from modelctl.cli.command import Answer, Model, Shell, command
from modelctl.options import EvalOptions


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""

    @command(app, EvalOptions, name="eval")
    def evaluate(model: Model, options: EvalOptions, shell: Shell) -> Answer:
        """What a model is worth: accuracy, latency, size, beside a baseline; gates turn a no into exit 1."""
        from modelctl.steps.eval import eval as evaluate

        return evaluate(Artifact.open(model), options, shell.progress)
