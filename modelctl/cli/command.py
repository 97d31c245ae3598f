"""How a function becomes a command: its options class turns into flags, its answer is printed, its errors explained."""

import contextlib
import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass, fields
from importlib import import_module
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import typer

from modelctl.artifact import Artifact, Origin
from modelctl.cli.console import Console, Teller
from modelctl.options import Options, StepOptions, knobs
from modelctl.report import Report

Answer = Artifact | Report | None

Model = Annotated[Path, typer.Argument(help="the model file", show_default=False)]
Out = Annotated[Path, typer.Option("-o", "--out", help="file to write", show_default=False)]

ALWAYS = {
    "as_json": Annotated[bool, typer.Option("--json", help="print one JSON document, also on failure")],
    "quiet": Annotated[bool, typer.Option("-q", "--quiet", help="print results and errors only")],
    "verbose": Annotated[bool, typer.Option("-v", "--verbose", help="print more, tracebacks included")],
    "no_progress": Annotated[bool, typer.Option("--no-progress", help="draw no progress bars")],
}
DRY_RUN = Annotated[bool, typer.Option("--dry-run", help="print the plan and do nothing")]


@dataclass
class Shell:
    """What a command's body is given beside its own arguments: how to listen to a step, and whether to do anything."""

    console: Console
    progress: Teller
    dry_run: bool = False

    def make(self, step: str, source: Any, out: Path, options: StepOptions) -> Answer:
        """Run the step of that name, or with `--dry-run` say what it would do."""
        module = import_module(f"modelctl.steps.{step}")
        if self.dry_run:
            return plan(module.origin(source, options), out)
        answer: Answer = getattr(module, step)(source, out, options, self.progress)
        return answer


def plan(origin: Origin, out: Path) -> Report:
    """What a step would do: its options as they would be remembered, its parents, and whether `out` stands already."""
    current = origin.is_current(out)
    facts = {
        "step": origin.step,
        "out": str(out),
        "parents": [str(parent.path) for parent in origin.parents],
        "options": origin.made_by.options,
        "current": current,
    }
    return Report(subject=str(out), facts=facts)


def command(
    app: typer.Typer, options: type[Options] | None = None, name: str | None = None, *, plans: bool = False
) -> Callable[[Callable[..., Answer]], Callable[..., Answer]]:
    """Register a function as a command of `app`.

    Its parameter `options` is replaced by one flag for each knob of the options class, `shell` is filled in, and the
    flags that every command has are added; `--dry-run` where it makes an artifact, or `plans` otherwise.
    """

    def register(body: Callable[..., Answer]) -> Callable[..., Answer]:
        own = [
            parameter.replace(annotation=hint)
            for parameter, hint in _hinted(body)
            if parameter.name not in ("options", "shell")
        ]
        makes = plans or (options is not None and issubclass(options, StepOptions))

        def run(**given: Any) -> None:
            console = Console(
                command=name or body.__name__,
                as_json=given.pop("as_json"),
                quiet=given.pop("quiet"),
                verbose=given.pop("verbose"),
                bars=not given.pop("no_progress"),
            )
            dry_run = given.pop("dry_run", False)
            if options is not None:
                flags = {field.name: given.pop(field.name) for field in fields(options)}
                given["options"] = options.parse({key: _plain(one) for key, one in flags.items() if one is not None})
            progress = console.progress()
            if "shell" in inspect.signature(body).parameters:
                given["shell"] = Shell(console, progress, dry_run)
            try:
                # Whatever a library prints is chatter; only results go to stdout.
                with contextlib.redirect_stdout(sys.stderr):
                    answer = body(**given)
            finally:
                progress.close()
            console.result(answer)

        flags = [*_flags(options), *((_parameter("dry_run", DRY_RUN, False),) if makes else ())]
        always = [_parameter(key, hint, False) for key, hint in ALWAYS.items()]
        run.__signature__ = inspect.Signature([*own, *flags, *always])  # type: ignore[attr-defined]
        run.__annotations__ = {one.name: one.annotation for one in [*own, *flags, *always]}
        run.__doc__ = body.__doc__
        app.command(name=name or body.__name__.replace("_", "-"), help=inspect.getdoc(body))(run)
        return body

    return register


def _hinted(body: Callable[..., Answer]) -> list[tuple[inspect.Parameter, Any]]:
    hints = get_type_hints(body, include_extras=True)
    signature = inspect.signature(body)
    return [
        (one.replace(kind=inspect.Parameter.KEYWORD_ONLY), hints[one.name]) for one in signature.parameters.values()
    ]


def _parameter(name: str, hint: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hint)


def _flags(options: type[Options] | None) -> list[inspect.Parameter]:
    """One keyword parameter, as typer reads it, for each knob."""
    if options is None:
        return []
    found = []
    for name, mark in knobs(options).items():
        hint, default = _flag_type(options, name)
        flag = typer.Option(mark.flag_of(name), help=mark.text, envvar=f"MODELCTL_{name.upper()}", show_envvar=False)
        found.append(_parameter(name, Annotated[hint, flag], default))
    return found


def _flag_type(options: type[Options], name: str) -> tuple[Any, Any]:
    """The type that typer parses for a knob, and its default: a tuple is a list there, an optional stays optional."""
    hint = get_args(get_type_hints(options, include_extras=True)[name])[0]
    default = getattr(options, name)
    if get_origin(hint) is tuple:
        return list[get_args(hint)[0]] | None, None  # type: ignore[misc]
    if get_origin(hint) in (Union, UnionType):
        (inner,) = (one for one in get_args(hint) if one is not NoneType)
        return inner | None, default
    return hint, default


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return str(value) if isinstance(value, Path) else value
