"""`modelctl decrypt`."""

from pathlib import Path
from typing import Annotated

import typer

from modelctl.artifact import Artifact
from modelctl.cli.command import Answer, Model, Shell, command
from modelctl.errors import UsageError
from modelctl.options import DecryptOptions

Place = Annotated[
    Path, typer.Option("-o", "--out", help="folder, or file of the name inside; -: standard output", show_default=False)
]


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""

    @command(app, DecryptOptions)
    def decrypt(model: Model, out: Place, options: DecryptOptions, shell: Shell) -> Answer:
        """Back to the plain artifact, manifest and signature as they were; all of it verified, or nothing written."""
        from modelctl.steps.decrypt import content, decrypt

        if out != Path("-"):
            return decrypt(Artifact.open(model), out, options, shell.progress)
        if shell.console.as_json or shell.console.out.isatty():
            who = "--json" if shell.console.as_json else "a terminal"
            raise UsageError(f"-o -: a model's bytes are nothing for {who}", "-o .")
        shell.console.content(content(Artifact.open(model), options, shell.progress))
        return None
