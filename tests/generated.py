"""What in the repository the program itself writes: two schemas, and README's commands and operators.

`python tests/generated.py` writes all anew; `test_schemas.py`, `serve/test_openapi.py`, `test_contracts.py` and
`graph/operators/test_conformance.py` hold them to what stands here.
"""

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from typer.main import get_command

from modelctl import manifest
from modelctl.cli.main import build

REPOSITORY = Path(__file__).resolve().parent.parent
SCHEMA = REPOSITORY / "schemas" / "manifest.schema.json"
CONTRACT = REPOSITORY / "schemas" / "openapi.json"
README = REPOSITORY / "README.md"
BEGIN = "<!-- commands:begin -->"
END = "<!-- commands:end -->"
OPERATORS = ("<!-- operators:begin -->", "<!-- operators:end -->")
AGAIN = "run: python tests/generated.py"


def schema_text() -> str:
    """The text of `schemas/manifest.schema.json`."""
    return json.dumps(manifest.json_schema(), indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def contract_text() -> str:
    """The text of `schemas/openapi.json`: what a server tells of itself that has one model, called NAME."""
    import servers

    from modelctl.options import ServeOptions
    from modelctl.serve import openapi
    from modelctl.serve.changes import Ledger
    from modelctl.serve.http import App
    from modelctl.serve.shelf import Alone, Shelf

    with TemporaryDirectory() as folder:
        source, options = servers.affine(Path(folder) / "NAME.onnx"), ServeOptions()
        models = servers.loaded(source)
    ledger = Ledger([str(source)], models.board)
    ledger.names = models.names()
    document = openapi.document(App(models, options, Alone(Shelf(models, ledger, options))))
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def commands() -> dict[str, Any]:
    """The commands as typer built them, by name, in the order of the help."""
    return dict(get_command(build()).commands)  # type: ignore[attr-defined]


def reference() -> str:
    """Every command with its arguments and flags, in Markdown; what all share is told once."""
    told = {name: [_flag(one) for one in _options(command)] for name, command in commands().items()}
    shared = [row for row in next(iter(told.values()), []) if all(row in rows for rows in told.values())]
    blocks = []
    for name, command in commands().items():
        usage = " ".join(["modelctl", name, *(_argument(one) for one in _arguments(command))])
        blocks.append(f"### `{usage}`\n\n{command.help}\n")
        blocks.append(_table([row for row in told[name] if row not in shared]))
    blocks.append("### Every command has\n")
    blocks.append(_table(shared))
    return "\n".join(block for block in blocks if block)


def _table(rows: list[tuple[str, str]]) -> str:
    if not rows:
        return ""
    lines = ["| flag | what |", "|---|---|", *(f"| {flag} | {text} |" for flag, text in rows)]
    return "\n".join(lines) + "\n"


def _arguments(command: Any) -> list[Any]:
    return [one for one in command.params if one.param_type_name == "argument"]


def _options(command: Any) -> list[Any]:
    return [one for one in command.params if one.param_type_name == "option" and one.name != "help" and not one.hidden]


def _argument(argument: Any) -> str:
    name = argument.metavar or argument.name.upper()
    more = "…" if argument.nargs == -1 else ""
    return f"{name}{more}" if argument.required else f"[{name}{more}]"


def _flag(option: Any) -> tuple[str, str]:
    """A flag's row: how it is typed, and its text with the default."""
    typed = " / ".join(f"`{one}`" for one in (*option.opts, *option.secondary_opts))
    default = getattr(option.default, "value", option.default)
    text = (option.help or "").replace("|", "\\|")
    if option.required:
        text += "; required"
    elif default is not None and not option.is_flag:
        text += f"; default {default}"
    elif option.is_flag and option.secondary_opts:
        text += f"; default `{(option.opts if option.default else option.secondary_opts)[0]}`"
    return typed, text


def readme_with(text: str, begin: str = BEGIN, end: str = END) -> str:
    """README with `text` between two marks."""
    readme = README.read_text()
    before, _, rest = readme.partition(begin)
    return f"{before}{begin}\n\n{text}\n{end}{rest.partition(end)[2]}"


if __name__ == "__main__":
    SCHEMA.write_text(schema_text())
    CONTRACT.write_text(contract_text())
    README.write_text(readme_with(reference()))
    import node_tests

    README.write_text(readme_with(node_tests.section(), *OPERATORS))
