"""Sequences, which are lists of tensors."""

import torch

from modelctl.graph.operators.node import Call, Node, numbers_of, operator, plain

Sequence = list[torch.Tensor]

plain("SequenceConstruct", lambda *inputs: list(inputs))
plain("SequenceEmpty", list)
plain("SequenceLength", lambda sequence: torch.tensor(len(sequence)))
plain("SequenceAt", lambda sequence, place: sequence[int(place)], host=(1,))


@operator("SequenceInsert", host=(2,))
def sequence_insert(_: Node) -> Call:
    """Before a place, or at the end."""

    def run(sequence: Sequence, tensor: torch.Tensor, place: torch.Tensor | None = None) -> Sequence:
        at = len(sequence) if place is None else int(place)
        return [*sequence[:at], tensor, *sequence[at:]]

    return run


@operator("SequenceErase", host=(1,))
def sequence_erase(_: Node) -> Call:
    """Without the one at a place, or without the last."""

    def run(sequence: Sequence, place: torch.Tensor | None = None) -> Sequence:
        at = (-1 if place is None else int(place)) % len(sequence)
        return [*sequence[:at], *sequence[at + 1 :]]

    return run


@operator("SplitToSequence", host=(1,))
def split_to_sequence(node: Node) -> Call:
    """Into sizes, into equal ones of one size, or one by one, then without the axis unless `keepdims`."""
    axis, keep = node.integer("axis"), bool(node.integer("keepdims", 1))

    def run(x: torch.Tensor, sizes: torch.Tensor | None = None) -> Sequence:
        if sizes is None:
            return [one.unsqueeze(axis) if keep else one for one in x.unbind(axis)]
        parts = int(sizes) if sizes.dim() == 0 else numbers_of(sizes)
        return list(torch.split(x, parts, axis))

    return run


@operator("ConcatFromSequence")
def concat_from_sequence(node: Node) -> Call:
    """Along an axis, which may be a new one."""
    axis, call = node.integer("axis"), torch.stack if node.integer("new_axis") else torch.cat
    return lambda sequence: call(sequence, axis)
