"""What picks numbers by their value: the largest ones, different ones, those that are not zero."""

import torch

from modelctl.graph.operators.node import Call, Node, operator, plain


@operator("TopK", host=(1,))
def top_k(node: Node) -> Call:
    """The `k` (an attribute up to opset 9) largest or smallest, in order; of equal ones those that come first."""
    axis, largest, attribute = node.integer("axis", -1), bool(node.integer("largest", 1)), node.integer("k")

    def run(x: torch.Tensor, k: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        count = attribute if k is None else int(k)
        # A stable sort, as torch.topk gives equal numbers in any order.
        values, places = torch.sort(x, dim=axis, descending=largest, stable=True)
        return values.narrow(axis, 0, count), places.narrow(axis, 0, count)

    return run


@operator("Unique")
def unique(node: Node) -> Call:
    """Values (or slices along `axis`) in rising order or in that of their first places, with those and counts."""
    in_order = bool(node.integer("sorted", 1))
    axis = node.integer("axis") if node.given("axis") else None

    def run(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        along, flat = (0, x.reshape(-1)) if axis is None else (axis, x)
        _, inverse, counts = torch.unique(flat.detach(), return_inverse=True, return_counts=True, dim=along)
        inverse = inverse.reshape(-1)
        size = flat.shape[along]
        first = torch.full_like(counts, size).scatter_reduce(
            0, inverse, torch.arange(size, device=x.device), "amin", include_self=True
        )
        if not in_order:
            order = torch.argsort(first)
            first, counts = first[order], counts[order]
            inverse = torch.argsort(order)[inverse]
        return flat.index_select(along, first), first, inverse, counts

    return run


@operator("Compress")
def compress(node: Node) -> Call:
    """The slices along `axis` (or numbers of the flat tensor) whose condition is true."""
    axis = node.integer("axis") if node.given("axis") else None

    def run(x: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        places = torch.nonzero(condition).reshape(-1)
        return x.reshape(-1)[places] if axis is None else x.index_select(axis, places)

    return run


plain("NonZero", lambda x: torch.nonzero(x).t())
