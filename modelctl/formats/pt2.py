"""`.pt2`: an exported program of torch, read without running anything in the file.

The archive is a zip of a graph in JSON and tensors as plain bytes, but torch also loads pickles from it (example
inputs, tensors of unusual types, custom objects) and hands the text of symbolic sizes to sympy, which evaluates it as
Python. So both are looked through first, by torch's own zip reader, and torch is held to its unpickler that builds
tensors only. Source: torch/export/pt2_archive/_package.py and torch/_export/serde/serialize.py of torch 2.13.
"""

import ast
import contextlib
import io
import json
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.export.pt2_archive._package import PT2ArchiveReader
from torch.utils import _pytree as pytree

from modelctl.artifact import Artifact
from modelctl.errors import ArtifactError, UnsupportedError
from modelctl.factory import AuthorsCode
from modelctl.formats import pickles
from modelctl.formats.program import Traced, quiet
from modelctl.manifest import TensorSpec

_FORCED = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
_HINT = "--unsafe-pickle, for a file you made yourself"
_ARITHMETIC = (
    *(ast.Expression, ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.Call, ast.keyword, ast.Name, ast.Constant),
    *(ast.Load, ast.operator, ast.unaryop, ast.boolop, ast.cmpop),
)
_SYMBOL = re.compile(r"[a-z]+[0-9]+")


def read(file: Artifact, unsafe: bool = False) -> ExportedProgram:
    """The program in a `.pt2` file; ArtifactError when there is none, or a part of it would run code."""
    data = file.load().primary
    name = str(file.path)
    if not data:
        raise ArtifactError(f"{name}: is empty")
    with AuthorsCode(f"{name}: not an exported program that this torch reads, or cut short"), quiet(), _tensors_only():
        if unsafe:
            os.environ.pop(_FORCED, None)
        else:
            _refuse_code(PT2ArchiveReader(io.BytesIO(data)), name)
        return torch.export.load(io.BytesIO(data))


@contextlib.contextmanager
def _tensors_only() -> Iterator[None]:
    """torch loads what it loads here by the unpickler that builds nothing but tensors, even where it asks otherwise."""
    before = os.environ.get(_FORCED)
    os.environ[_FORCED] = "1"
    try:
        yield
    finally:
        os.environ.pop(_FORCED, None)
        if before is not None:
            os.environ[_FORCED] = before


def _refuse_code(archive: Any, name: str) -> None:
    files = archive.get_file_names()
    if not any(file.startswith("models/") for file in files):
        raise ArtifactError(f"{name}: not an exported program: the archive holds no model")
    for file in files:
        leaf = file.rpartition("/")[2]
        if leaf.startswith(("custom_obj_", "opaque_obj_")):
            raise ArtifactError(f"{name}: holds a pickle that would run code: {leaf}", _HINT)
        if file.endswith(".json"):
            told = json.loads(archive.read_bytes(file))
            for text in _expressions(told):
                if not _is_arithmetic(text):
                    raise ArtifactError(f"{name}: a size that would run code: {text[:80]!r}", _HINT)
            folder = file.rpartition("/")[0]
            for leaf in _pickled(told):
                pickles.refuse_code(archive.read_bytes(f"{folder}/{leaf}"), name)
        elif file.endswith(".pt"):
            content = archive.read_bytes(file)
            if content:
                pickles.refuse_code(content, name)


def _walk(told: Any) -> Iterator[dict[str, Any]]:
    waiting = [told]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            yield one
            waiting.extend(one.values())
        elif isinstance(one, list):
            waiting.extend(one)


def _expressions(told: Any) -> Iterator[str]:
    """The texts that torch would have sympy evaluate."""
    return (str(one["expr_str"]) for one in _walk(told) if one.get("expr_str") is not None)


def _pickled(told: Any) -> Iterator[str]:
    return (str(one["path_name"]) for one in _walk(told) if one.get("use_pickle") and "path_name" in one)


def _is_arithmetic(text: str) -> bool:
    """Whether a text is nothing but numbers, operators, sympy's own functions (`FloorDiv`), and `Symbol('s1')`."""
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    allowed: set[int] = set()  # texts and small-letter names where they are harmless
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Symbol":
            allowed.update(id(one) for one in node.args if isinstance(one, ast.Constant) and _is_symbol(one.value))
        elif isinstance(node, ast.Name) and _is_symbol(node.id):
            allowed.add(id(node))
    return all(_is_harmless(node, allowed) for node in ast.walk(tree))


def _is_symbol(value: object) -> bool:
    return isinstance(value, str) and _SYMBOL.fullmatch(value) is not None


def _is_harmless(node: ast.AST, allowed: set[int]) -> bool:
    if isinstance(node, ast.Constant):
        return isinstance(node.value, int | float) or id(node) in allowed
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Name) and node.func.id[0].isupper() and node.func.id != "Lambda"
    if isinstance(node, ast.Name):
        return id(node) in allowed or node.id[0].isupper() or node.id in ("oo", "int_oo")
    return isinstance(node, _ARITHMETIC)


def traced(program: ExportedProgram, name: str) -> Traced:
    """The program as something that can be run, its free dimensions called batch and `<input>_<axis>`.

    UnsupportedError for inputs that are no tensors or whose sizes depend on one another.
    """
    values = {node.name: node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"}
    names: dict[str, str] = {}
    inputs = tuple(_spec(one, values.get(str(one)), names, name) for one in program.graph_signature.user_inputs)
    ranges = {str(symbol): (one.lower, one.upper) for symbol, one in program.range_constraints.items()}
    limits = {names[symbol]: _limits(*ranges[symbol]) for symbol in names if symbol in ranges}
    tree = program.call_spec.in_spec
    assert tree is not None

    def call(given: Sequence[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        args, kwargs = pytree.tree_unflatten(list(given), tree)
        return tuple(args), dict(kwargs)

    with quiet():
        module = program.module(check_guards=False)  # what is checked is `limits`, so that a batch of one is tried too
    return Traced(name, module, inputs, call, limits=limits)


def _spec(one: Any, value: Any, names: dict[str, str], where: str) -> TensorSpec:
    if not isinstance(value, torch.Tensor):
        raise UnsupportedError(f"{where}: input {one!r} is no tensor, and only tensors can be fed")
    shape: list[int | str] = []
    for axis, size in enumerate(value.shape):
        if isinstance(size, int):
            shape.append(size)
            continue
        symbol = str(size)
        if not symbol.isidentifier():
            raise UnsupportedError(f"{where}: axis {axis} of input {one!r} is {symbol}, which depends on another size")
        word = "batch" if axis == 0 and "batch" not in names.values() else f"{one}_{axis}"
        shape.append(names.setdefault(symbol, word))
    return TensorSpec(name=str(one), dtype=str(value.dtype).removeprefix("torch."), shape=tuple(shape))


def _limits(lower: Any, upper: Any) -> tuple[int, int | None]:
    """The sizes that a program takes: torch writes 2 as the least where it knows of no least size."""
    low = int(lower) if lower.is_Integer else 0
    return (1 if low <= 2 else low), (int(upper) if upper.is_Integer else None)
