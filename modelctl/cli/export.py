"""`modelctl export`."""

from typing import Annotated

import typer

from modelctl.cli.command import Answer, Out, Shell, command
from modelctl.options import ExportOptions

From = Annotated[str, typer.Argument(help="module:factory, a .pt2 file, or an .onnx file", show_default=False)]


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""

    @command(app, ExportOptions)
    def export(source: From, out: Out, options: ExportOptions, shell: Shell) -> Answer:
        """Into ONNX from module:factory, .pt2 or .onnx, with proof that it is the same model."""
        from modelctl.steps.export import Source

        return shell.make("export", Source.parse(source), out, options)
