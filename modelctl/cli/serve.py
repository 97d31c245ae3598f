"""`modelctl serve`."""

from typing import Annotated

import typer

from modelctl.cli.command import Answer, Shell, command
from modelctl.options import ServeOptions
from modelctl.report import Report

Models = Annotated[
    list[str],
    typer.Argument(
        metavar="MODEL|REF",
        help="model files, sealed or not, [STORE/]name:tag refs, or ensembles (.toml)",
        show_default=False,
    ),
]


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""

    @command(app, ServeOptions)
    def serve(models: Models, options: ServeOptions, shell: Shell) -> Answer:
        """Answers over HTTP and gRPC: Open Inference Protocol, /predict, /metrics.

        Prints `ready URL URL` once it answers. Ctrl-C or SIGTERM is its normal end, with exit status 0: what was
        accepted is answered first; a second one ends it at once.
        """
        from modelctl.serve.workers import serve

        def announce(url: str, served: list[dict[str, str]]) -> None:
            shell.progress.close()
            grpc = url.replace("http", "grpc", 1)  # on the same port; grpcs where it is https
            facts = {"url": url, "grpc": grpc, "models": served}
            shell.console.result(Report(subject=url, facts=facts, lines=(f"ready {url} {grpc}",)))

        serve(models, options, announce, shell.progress)
        return None
