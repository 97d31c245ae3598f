"""`modelctl predict`."""

from typing import Annotated

import typer

from modelctl.artifact import Artifact
from modelctl.cli.command import Answer, Model, Shell, command
from modelctl.options import PredictOptions

Inputs = Annotated[
    list[str],
    typer.Argument(
        metavar="INPUT",
        help="pictures, .csv, .json, .jsonl, .txt or .npz files, or a text or a row in JSON itself",
        show_default=False,
    ),
]


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""

    @command(app, PredictOptions)
    def predict(model: Model, inputs: Inputs, options: PredictOptions, shell: Shell) -> Answer:
        """What a model answers to raw inputs, through what its manifest declares before and after it."""
        from modelctl.steps.predict import predict

        return predict(Artifact.open(model), inputs, options, shell.progress)
