"""One numerical check of an operator's gradients: a node, and the values that it is given.

Each family of operators has a file here with its cases (`elementwise.py`, `shapes.py`, …), a list `CASES` that
`gradients/__init__.py` collects; `tests/graph/operators/test_gradients.py` checks them all with
`torch.autograd.gradcheck` in float64:

    CASES = [
        Case("Relu", [(2, 3)]),                                             # a shape: drawn from a normal distribution
        Case("Log", [positive(2, 3)]),                                      # a float tensor: those very values
        Case("Clip", [(8,), Held(-0.5), Held(0.5)]),                        # not learned: an initializer of the graph
        Case("Conv", [(1, 2, 5, 5), (3, 2, 3, 3), None, ...], {"pads": [1, 1, 1, 1]}),
        Case("Gather", [(4, 3), whole([0, 2, -1])], {"axis": 0}),           # whole numbers: an initializer, too
        Case("Split", [(6, 2)], {"num_outputs": 3}, outputs=3, opset=18),
        Case("SequenceAt", [(2,), (3,), whole(1)], gathered=2),             # the first two make a sequence
    ]

Gradients are asked for every input that is a shape or a float tensor, of every output that is float and depends on
them. Keep shapes small (gradcheck runs the graph twice per number) and values off kinks.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper

NEWEST = onnx.defs.onnx_opset_version()


@dataclass(frozen=True)
class Held:
    """A value that is no weight: floats (as float64), whole numbers or booleans, or a list of them."""

    value: Any


Input = tuple[int, ...] | torch.Tensor | Held | None


@dataclass(frozen=True)
class Case:
    """A node of operator `op` (of `domain`, in operator set `opset`) with attributes, inputs and a number of outputs.

    `training`: run the graph in training mode. `seeded`: seed torch anew before each run, for operators that draw.
    `gathered`: how many of the inputs, from the first, are put into a sequence that is the node's first input.
    """

    op: str
    inputs: Sequence[Input]
    attributes: dict[str, Any] = field(default_factory=dict)
    outputs: int = 1
    opset: int = NEWEST
    domain: str = ""
    training: bool = False
    seeded: bool = False
    gathered: int = 0

    def model(self, kind: int = onnx.TensorProto.DOUBLE) -> onnx.ModelProto:
        """The graph of this one node, its floats of type `kind`; what is asked for gradients are its inputs."""
        names = ["" if one is None else f"x{place}" for place, one in enumerate(self.inputs)]
        held = [(name, one.value) for name, one in zip(names, self.inputs, strict=True) if isinstance(one, Held)]
        given = [name for name, one in zip(names, self.inputs, strict=True) if one is not None]
        inner = {name for name, _ in held}
        made = [f"y{place}" for place in range(self.outputs)]
        taken = ["sequence", *names[self.gathered :]] if self.gathered else names
        before = [helper.make_node("SequenceConstruct", names[: self.gathered], ["sequence"])] if self.gathered else []
        node = helper.make_node(self.op, taken, made, name=self.op.lower(), domain=self.domain, **self.attributes)
        graph = helper.make_graph(
            [*before, node],
            "case",
            [helper.make_tensor_value_info(name, kind, None) for name in given if name not in inner],
            [helper.make_empty_tensor_value_info(name) for name in made],
            [numpy_helper.from_array(_of_kind(np.asarray(one), kind), name) for name, one in held],
        )
        opsets = [helper.make_opsetid("", self.opset)]
        return helper.make_model(
            graph, opset_imports=opsets + ([helper.make_opsetid(self.domain, 1)] if self.domain else [])
        )

    def values(self) -> list[torch.Tensor]:
        """The values of the graph's inputs, in float64, asking for gradients."""
        draw = torch.Generator().manual_seed(7)
        found = []
        for one in self.inputs:
            if isinstance(one, tuple):
                found.append(torch.randn(one, generator=draw, dtype=torch.float64))
            elif isinstance(one, torch.Tensor):
                found.append(one.to(torch.float64).clone())
        return [one.requires_grad_() for one in found]


def _of_kind(array: np.ndarray[Any, Any], kind: int) -> np.ndarray[Any, Any]:
    return array.astype(helper.tensor_dtype_to_np_dtype(kind)) if array.dtype.kind == "f" else array


def whole(values: Any) -> Held:
    """Whole numbers (indices, shapes, axes), int64."""
    return Held(np.asarray(values, np.int64))


def positive(*shape: int) -> torch.Tensor:
    """Numbers between 0.5 and 2."""
    return between(0.5, 2.0, *shape)


def between(low: float, high: float, *shape: int) -> torch.Tensor:
    """Numbers in a range."""
    draw = torch.Generator().manual_seed(11)
    return low + (high - low) * torch.rand(shape, generator=draw, dtype=torch.float64)


def spread(*shape: int) -> torch.Tensor:
    """Numbers without ties, well apart and not near zero, shuffled; for what sorts and compares."""
    count = int(np.prod(shape))
    draw = torch.Generator().manual_seed(13)
    steps = 0.3 + 0.5 * torch.arange(count, dtype=torch.float64) / max(1, count) * 8
    signs = torch.where(torch.arange(count) % 2 == 0, 1.0, -1.0)
    return (steps * signs)[torch.randperm(count, generator=draw)].reshape(shape)
