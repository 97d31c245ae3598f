"""`modelctl train`."""

import typer

from modelctl.artifact import Artifact
from modelctl.cli.command import Answer, Model, Out, Shell, command
from modelctl.options import TrainOptions


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""

    @command(app, TrainOptions)
    def train(model: Model, out: Out, options: TrainOptions, shell: Shell) -> Answer:
        """Teach the ONNX file MODEL further, without the source that it was made from."""
        return shell.make("train", Artifact.open(model), out, options)
