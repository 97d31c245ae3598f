"""Tensors joined, cut, repeated and padded."""

import torch
from torch.nn import functional

from modelctl.graph.operators.node import Call, Node, numbers_of, operator


@operator("Concat")
def concat(node: Node) -> Call:
    """Along an axis."""
    axis = node.integer("axis", 1)
    return lambda *inputs: torch.cat(inputs, axis)


@operator("Split", host=(1,))
def split(node: Node) -> Call:
    """Into given sizes (an attribute up to opset 12, then an input) or as many equal parts as there are outputs."""
    axis, count = node.integer("axis"), node.integer("num_outputs", node.outputs)
    held = node.constant(1)
    if node.has(1) and held is None:
        return lambda x, sizes: torch.split(x, numbers_of(sizes), axis)
    sizes = list(node.integers("split")) if held is None else numbers_of(held)
    if sizes:
        return lambda x, *_: torch.split(x, sizes, axis)

    def run(x: torch.Tensor, *_: None) -> tuple[torch.Tensor, ...]:
        size = x.shape[axis]
        part = -(-size // count)
        return torch.split(x, [max(0, min(part, size - part * place)) for place in range(count)], axis)

    return run


@operator("Tile", host=(1,))
def tile(node: Node) -> Call:
    """Repeated along each axis."""
    held = node.constant(1)
    if held is None:
        return lambda x, repeats: x.repeat(numbers_of(repeats))
    times = numbers_of(held)
    return lambda x, _: x.repeat(times)


@operator("Pad", host=(1, 2, 3))
def pad(node: Node) -> Call:
    """Pads and value are attributes up to opset 10, then inputs; negative pads cut off."""
    mode = node.choice("mode", "constant", "reflect", "edge", "wrap")
    if node.opset < 11:
        pads, fill = node.integers("pads"), node.number("value")
        return lambda x: _padded(x, mode, pads, range(x.dim()), fill)

    def run(
        x: torch.Tensor,
        pads: torch.Tensor,
        value: torch.Tensor | None = None,
        axes: torch.Tensor | None = None,
    ) -> torch.Tensor:
        along = range(x.dim()) if axes is None else [axis % x.dim() for axis in numbers_of(axes)]
        fill = 0 if value is None or not value.numel() else value.item()
        return _padded(x, mode, numbers_of(pads), along, fill)

    held = [node.constant(place) for place in (1, 2, 3)]
    if any(one is None and node.has(place) for place, one in enumerate(held, 1)) or held[2] is not None:
        return run
    amounts = numbers_of(held[0]) if held[0] is not None else []
    number = 0 if held[1] is None or not held[1].numel() else held[1].item()
    return lambda x, *_: _padded(x, mode, amounts, range(x.dim()), number)


def _padded(
    x: torch.Tensor, mode: str, pads: list[int] | tuple[int, ...], axes: range | list[int], fill: float
) -> torch.Tensor:
    """`pads`: how much before each of the axes, then how much after each."""
    around = {axis: (pads[place], pads[place + len(axes)]) for place, axis in enumerate(axes)}
    if mode == "constant":
        flat = [amount for axis in range(x.dim() - 1, -1, -1) for amount in around.get(axis, (0, 0))]
        return functional.pad(x, flat, value=fill)
    for axis, (before, after) in around.items():
        if before or after:
            x = x.index_select(axis, _reach(x.shape[axis], before, after, mode, x.device))
    return x


def _reach(size: int, before: int, after: int, mode: str, device: torch.device) -> torch.Tensor:
    """Which places of an axis the padded one shows."""
    places = torch.arange(-before, size + after, device=device)
    if mode == "edge":
        return places.clamp(0, size - 1)
    if mode == "wrap":
        return places % size
    period = max(2 * (size - 1), 1)
    folded = places % period
    return torch.minimum(folded, period - folded) if size > 1 else torch.zeros_like(places)


@operator("CenterCropPad", host=(1,))
def center_crop_pad(node: Node) -> Call:
    """Cut or padded with zeros on both sides, to a shape."""
    given = node.integers("axes") if node.given("axes") else None

    def run(x: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        axes = range(x.dim()) if given is None else [axis % x.dim() for axis in given]
        flat = [0] * (2 * x.dim())
        for axis, size in zip(axes, numbers_of(wanted), strict=True):
            more = size - x.shape[axis]
            before = more // 2 if more > 0 else -(-more // 2)
            flat[2 * (x.dim() - 1 - axis)] = before
            flat[2 * (x.dim() - 1 - axis) + 1] = more - before
        return functional.pad(x, flat)

    return run


@operator("ReverseSequence", host=())
def reverse_sequence(node: Node) -> Call:
    """The first numbers along the time axis turned round, as many as a length says for each of the batch."""
    batch_axis, time_axis = node.integer("batch_axis", 1), node.integer("time_axis")

    def run(x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        times = torch.arange(x.shape[time_axis], device=x.device)
        turned = lengths.unsqueeze(1) - 1 - times
        places = torch.where(turned >= 0, turned, times)
        across = [1] * x.dim()
        across[batch_axis], across[time_axis] = places.shape
        places = places if batch_axis < time_axis else places.t()
        return torch.gather(x, time_axis, places.reshape(across).expand(x.shape))

    return run
