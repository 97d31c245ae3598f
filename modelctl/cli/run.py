"""`modelctl run`."""

from pathlib import Path
from typing import Annotated

import typer

from modelctl.cli.command import Answer, Shell, command
from modelctl.options import Options

File = Annotated[Path, typer.Argument(help="the pipeline file")]


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""

    @command(app, Options, plans=True)
    def run(shell: Shell, options: Options, file: File = Path("modelctl.toml")) -> Answer:
        """The pipeline of a modelctl.toml: checked whole first, then only what is stale is run."""
        from modelctl.pipeline import execution

        return execution.run(file, options, shell.progress, dry_run=shell.dry_run)
