"""From a torch module or exported program to a clean ONNX graph."""

from collections.abc import Mapping
from dataclasses import dataclass

import onnx
from torch.export import ExportedProgram

from modelctl.errors import CheckFailed, UnsupportedError
from modelctl.formats import program as torch_program
from modelctl.formats.program import Traced
from modelctl.graph import attention, clean, parity
from modelctl.graph.divergence import Inside

OPSET = 20  # unless another one is asked for


@dataclass(frozen=True)
class Lowered:
    """A model as ONNX, and the values inside the program that it was made of, by the names that they have there too."""

    model: onnx.ModelProto
    inside: Inside


def lower(model: Traced, sizes: Mapping[str, int], opset: int) -> Lowered:
    """The module as ONNX, in evaluation mode, traced at `sizes` (see `parity.find_sizes`); parity is not yet proven.

    CheckFailed when a dimension that was to be free is not; UnsupportedError when torch can't trace it or ONNX has no
    word for it.
    """
    model.module.eval()
    return lower_program(model, torch_program.trace(model, sizes), sizes, opset)


def lower_program(model: Traced, program: ExportedProgram, sizes: Mapping[str, int], opset: int) -> Lowered:
    """The same of a program that is traced already."""
    torch_program.refuse_training(program, model.name)
    outputs = list(model.run(parity.draw(model.inputs, sizes, (0, 0))))
    inputs = [spec.name for spec in model.inputs]
    raw, decomposed = torch_program.to_onnx(program, model.name, inputs, outputs, opset)
    attention.mask_whole_rows(raw)
    with torch_program.quiet():
        made = clean.fold(raw)
    written = {one.domain: one.version for one in made.opset_import}.get("")
    if written not in (opset, None):
        raise UnsupportedError(f"{model.name}: can't be written in opset {opset}", f"--opset {written}")
    fixed = clean.name_dimensions(made, model.inputs)
    if fixed:
        message = f"{model.name}: the dimension {fixed[0]!r} was to be free, but the result has it fixed"
        raise CheckFailed(message, "give that dimension its size in --input, or export it free")
    clean.strip(made)
    clean.check(made, model.name)
    return Lowered(
        made,
        lambda feeds, names: torch_program.values_inside(decomposed, [feeds[one] for one in inputs], names, outputs),
    )
