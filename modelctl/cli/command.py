"""How a function becomes a command: its options class turns into flags, its answer is printed, its errors explained."""

import contextlib
import copy
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, Union, get_args, get_origin, get_type_hints

import typer
from typer.models import ArgumentInfo

from modelctl.artifact import Artifact
from modelctl.cli.console import Console
from modelctl.cli.teller import Teller
from modelctl.knobs import Options, fields_of, knobs
from modelctl.options import StepOptions
from modelctl.report import Report

if TYPE_CHECKING:
    from modelctl.making import Origin

Answer = Artifact | Report | None

Model = Annotated[Path, typer.Argument(help="the model file", show_default=False)]
Out = Annotated[Path, typer.Option("-o", "--out", help="file to write", show_default=False)]

ALWAYS = {
    "as_json": Annotated[bool, typer.Option("--json", help="print one JSON document, also on failure")],
    "quiet": Annotated[bool, typer.Option("-q", "--quiet", help="print results and errors only")],
    "verbose": Annotated[bool, typer.Option("-v", "--verbose", help="print more, tracebacks included")],
    "no_progress": Annotated[bool, typer.Option("--no-progress", help="draw no progress bars")],
}
CONTEXT = {"help_option_names": ["-h", "--help"]}
DRY_RUN = Annotated[bool, typer.Option("--dry-run", help="print the plan and do nothing")]


@dataclass(frozen=True)
class Run:
    """A command line that has been understood: how to talk, and what to do."""

    console: Console
    act: Callable[[], None]


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


def plan(origin: "Origin", out: Path) -> Report:
    """What a step would do: its options as they would be remembered, its parents, and whether `out` stands already.

    Whatever `create` would refuse before any work is refused here.
    """
    from modelctl.making import check_out  # here, for `--help` need not wait for it

    check_out(out, origin)
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

        def run(**given: Any) -> Run:
            console = Console(
                command=name or body.__name__,
                as_json=given.pop("as_json"),
                quiet=given.pop("quiet"),
                verbose=given.pop("verbose"),
                bars=not given.pop("no_progress"),
            )
            return Run(console, lambda: _act(body, options, console, given))

        flags = [*_flags(options), *((_parameter("dry_run", DRY_RUN, False),) if makes else ())]
        always = [_parameter(key, hint, False) for key, hint in ALWAYS.items()]
        run.__signature__ = inspect.Signature([*own, *flags, *always])  # type: ignore[attr-defined]
        run.__annotations__ = {one.name: one.annotation for one in [*own, *flags, *always]}
        run.__doc__ = body.__doc__
        said = name or body.__name__.replace("_", "-")
        app.command(name=said, help=inspect.getdoc(body), context_settings=CONTEXT)(run)
        return body

    return register


def _act(body: Callable[..., Answer], options: type[Options] | None, console: Console, given: dict[str, Any]) -> None:
    dry_run = given.pop("dry_run", False)
    if options is not None:
        flags = {name: given.pop(name) for name in knobs(options)}
        given["options"] = options.parse({key: _plain(one) for key, one in flags.items() if one is not None})
    progress = Teller(console)
    if "shell" in inspect.signature(body).parameters:
        given["shell"] = Shell(console, progress, dry_run)
    # Whatever a library prints is chatter; only results go to stdout. The bar goes while it still has the streams.
    with contextlib.redirect_stdout(console.err), contextlib.closing(progress):
        answer = body(**given)
    console.result(answer)


def _hinted(body: Callable[..., Answer]) -> list[tuple[inspect.Parameter, Any]]:
    hints = get_type_hints(body, include_extras=True)
    signature = inspect.signature(body)
    return [
        (one.replace(kind=inspect.Parameter.KEYWORD_ONLY), _shouted(one.name, hints[one.name]))
        for one in signature.parameters.values()
    ]


def _shouted(name: str, hint: Any) -> Any:
    """An argument's hint, by which the help calls it MODEL rather than model."""
    kind, *marks = (hint.__origin__, *hint.__metadata__) if get_origin(hint) is Annotated else (hint,)
    if not marks or not isinstance(marks[0], ArgumentInfo) or marks[0].metavar:
        return hint
    mark = copy.copy(marks[0])
    mark.metavar = name.upper()
    return Annotated[kind, mark]


def _parameter(name: str, hint: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hint)


def _flags(options: type[Options] | None) -> list[inspect.Parameter]:
    """One keyword parameter, as typer reads it, for each knob."""
    if options is None:
        return []
    found = []
    for name, (kind, mark) in fields_of(options).items():
        hint, default, metavar = _flag_type(kind, getattr(options, name))
        flag = typer.Option(mark.flag_of(name), help=mark.text, metavar=metavar, envvar=mark.variable_of(name))
        flag.show_envvar = False
        found.append(_parameter(name, Annotated[hint, flag], default))
    return found


def _flag_type(kind: Any, default: Any) -> tuple[Any, Any, str | None]:
    """The type that typer parses for a knob, its default, and what the help calls a value if typer's word is odd.

    A tuple is a list there, an optional stays optional, and what may be of several types is a text.
    """
    if get_origin(kind) is tuple:
        inner = get_args(kind)[0]
        return list[inner] | None, None, f"<{inner.__name__.lower()}>"  # type: ignore[valid-type]
    if get_origin(kind) in (Union, UnionType):
        inner, *others = (one for one in get_args(kind) if one is not NoneType)
        return (str, default, None) if others else (inner | None, default, None)
    return kind, default, None


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return str(value) if isinstance(value, Path) else value
