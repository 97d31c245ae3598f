"""From a torch module or exported program to a clean ONNX graph."""

from collections.abc import Mapping

import onnx
from torch.export import ExportedProgram

from modelctl.errors import CheckFailed, UnsupportedError
from modelctl.formats import program as torch_program
from modelctl.formats.program import Traced
from modelctl.graph import clean, parity

OPSET = 20  # unless another one is asked for


def lower(model: Traced, sizes: Mapping[str, int], opset: int) -> onnx.ModelProto:
    """The module as ONNX, in evaluation mode, traced at `sizes` (see `parity.find_sizes`); parity is not yet proven.

    CheckFailed when a dimension that was to be free is not; UnsupportedError when torch can't trace it or ONNX has no
    word for it.
    """
    model.module.eval()
    return lower_program(model, torch_program.trace(model, sizes), sizes, opset)


def lower_program(model: Traced, program: ExportedProgram, sizes: Mapping[str, int], opset: int) -> onnx.ModelProto:
    """The same of a program that is traced already."""
    torch_program.refuse_training(program, model.name)
    outputs = list(model.run(parity.draw(model.inputs, sizes, (0, 0))))
    raw = torch_program.to_onnx(program, model.name, [spec.name for spec in model.inputs], outputs, opset)
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
    return made
