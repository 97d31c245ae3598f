"""Flags, options, defaults, help and README say the same, for every command."""

import inspect
from typing import Any

import generated
import pytest

from modelctl import options
from modelctl.cli.command import ALWAYS
from modelctl.cli.main import COMMANDS
from modelctl.knobs import Options, fields_of, knobs
from modelctl.options import StepOptions

BUILT = generated.commands()
README = generated.README.read_text()

# The table of design and issue: what scripts rely on.
PROMISED = {
    "export": "--weights --input --opset --rtol --atol --data --allow-vacuous --unsafe-pickle",
    "optimize": "--float16 --rtol --atol --allow-vacuous --data --max-drop --min-speedup",
    "quantize": "--method --bits --calibration --per-channel --per-tensor --data --samples --max-drop --min-speedup "
    "--op-type --exclude --target --min-agreement --smooth --no-smooth --time-budget-s --provider --explain --plot",
    "prune": "--method --sparsity --threshold --keep --pattern --target --importance --scope --schedule --epochs --lr "
    "--align --data --max-drop --min-speedup",
    "distill": "--student --student-size --temperature --alpha --epochs --batch-size --lr --data",
    "train": "--data --loss --optimizer --lr --schedule --epochs --batch-size --patience --teacher --checkpoint "
    "--freeze --only",
    "eval": "--data --metric --baseline --min-accuracy --max-latency-ms --max-size-mb --batch --threads "
    "--identity --key-file --passphrase",
    "keygen": "-o --type",
    "encrypt": "--recipient --key-file --passphrase",
    "decrypt": "-o --identity --key-file --passphrase",
    "sign": "--key",
    "verify": "--key --root",
    "serve": "--host --port --max-batch --name --require-signature --identity --key-file --passphrase",
    "pull": "-o",
}  # fmt: skip


def options_of(command: str) -> type[Options] | None:
    """The options class of a command, by its name."""
    found: type[Options] | None = getattr(options, f"{command.capitalize()}Options", None)
    return found


def flags_of(command: str) -> dict[str, Any]:
    """A command's flags, each with the parameter that typer made of it."""
    found = [one for one in BUILT[command].params if one.param_type_name == "option"]
    return {flag: one for one in found for flag in (*one.opts, *one.secondary_opts)}


def test_every_command_is_registered_once_and_tells_what_it_does() -> None:
    assert list(BUILT) == list(COMMANDS)
    assert len(set(COMMANDS)) == len(COMMANDS)
    for name, command in BUILT.items():
        assert command.help, name
        assert command.help[0].isupper(), name
        assert command.help.rstrip().endswith("."), name


def test_every_options_class_is_a_commands() -> None:
    shared = {"Options", "StepOptions", "MeasuredOptions", "OpeningOptions"}
    classes = {name for name, one in inspect.getmembers(options, inspect.isclass) if issubclass(one, Options)}
    assert {name.removesuffix("Options").lower() for name in classes - shared} <= set(COMMANDS)


@pytest.mark.parametrize("command", [name for name in COMMANDS if options_of(name)])
def test_flags_are_the_options_knobs_with_their_texts_and_defaults(command: str) -> None:
    cls = options_of(command)
    assert cls is not None
    flags = flags_of(command)
    for name, (kind, mark) in fields_of(cls).items():
        opts = mark.flag_of(name).split("/")
        assert set(opts) <= set(flags), f"{command} lacks {opts}"
        parameter = flags[opts[0]]
        assert parameter.name == name
        assert parameter.help == mark.text
        assert parameter.envvar == mark.variable_of(name)
        if str(kind).startswith("tuple"):
            assert parameter.multiple
            assert getattr(cls, name) == ()
            assert not parameter.default
        else:
            assert parameter.default == getattr(cls, name), f"{command} {opts}"


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_has_no_flag_that_nobody_documents(command: str) -> None:
    cls = options_of(command)
    known = set(knobs(cls)) if cls else set()
    known |= {*ALWAYS, "help", "out"} | ({"dry_run"} if cls is None or issubclass(cls, StepOptions) else set())
    extra = {one.name for one in flags_of(command).values()} - known
    for name in extra:  # a command's own flag, written out in its file: allowed where it has a text
        assert next(one for one in flags_of(command).values() if one.name == name).help, f"{command} {name}"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_what_all_have(command: str) -> None:
    flags = flags_of(command)
    assert {"--json", "-q", "--quiet", "-v", "--verbose", "--no-progress"} <= set(flags)
    cls = options_of(command)
    if cls is not None:
        assert "--threads" in flags
    if cls is not None and issubclass(cls, StepOptions):
        assert {"-o", "--out", "--annotate", "--force", "--dry-run"} <= set(flags)


@pytest.mark.parametrize("command", PROMISED)
def test_flags_that_scripts_rely_on_are_there(command: str) -> None:
    assert command in COMMANDS
    assert set(PROMISED[command].split()) <= set(flags_of(command))


def test_readme_has_the_reference_that_the_program_writes() -> None:
    block = README.partition(generated.BEGIN)[2].partition(generated.END)[0]
    assert block.strip() == generated.reference().strip(), generated.AGAIN


@pytest.mark.parametrize("command", COMMANDS)
def test_readme_names_every_command_and_flag(command: str) -> None:
    reference = README.partition("## Commands")[2].partition(generated.END)[0]
    assert f"### `modelctl {command}" in reference
    for flag in set(flags_of(command)) - {"--help", "-h"}:
        assert f"`{flag}`" in reference, f"{command} {flag}"
