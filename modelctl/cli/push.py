"""`modelctl push`."""

from typing import Annotated

import typer

from modelctl.artifact import Artifact
from modelctl.cli.command import Answer, Model, Shell, command
from modelctl.options import PushOptions

To = Annotated[str, typer.Argument(metavar="[STORE/]NAME:TAG", help="where to", show_default=False)]


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""

    @command(app, PushOptions)
    def push(model: Model, to: To, options: PushOptions, shell: Shell) -> Answer:
        """Into a store, under a tag; only what the store lacks is sent."""
        from modelctl.steps.push import push

        return push(Artifact.open(model), to, options, shell.progress)
