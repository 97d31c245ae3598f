"""Operators that move numbers without changing them: what lies where is index bookkeeping."""

import math
from collections.abc import Sequence

from modelctl.graph.channels.dims import Dim, concatenation, divided, freeze, product, unify
from modelctl.graph.channels.site import Axes, Outputs, Site, Unknown, broadcast, rule

_END = 2**31 - 1  # "to the end", as exporters write it


@rule("Reshape", "Flatten", "Squeeze", "Unsqueeze")
def reshape(site: Site) -> Outputs:
    """The same numbers in other axes: where products of neighbours agree, what they hold does."""
    sizes = site.sizes()
    found = regrouped(site.dims(0), sizes)
    if site.node.op_type == "Reshape":
        target = site.numbers(1)
        copied = 0 if not site.attribute("allowzero", 0) else None
        told = target if target is not None and len(target) == len(sizes) else list(sizes)
        site.follow(1, [None if size in (-1, copied) else dim for size, dim in zip(told, found, strict=True)])
    return [found]


def regrouped(axes: Sequence[Dim], sizes: Sequence[int]) -> Axes:
    """The axes of a value with `axes` after it has been reshaped to `sizes`."""
    found: list[Dim] = []
    left = [one for one in axes if one.size != 1]
    wanted = list(sizes)
    if 0 in wanted:
        return [Dim(size) for size in wanted]
    while wanted:
        if wanted[0] == 1:
            wanted.pop(0)
            found.append(Dim(1))
            continue
        taken, given = [left.pop(0)], [wanted.pop(0)]
        while (have := math.prod(one.size for one in taken)) != (want := math.prod(given)):
            if have < want:
                taken.append(left.pop(0))
            else:
                given.append(wanted.pop(0))
        if len(taken) == len(given) == 1:
            found.append(taken[0])
            continue
        made = [Dim(size) for size in given]
        unify(product(made), product(taken))
        found += made
    return found


@rule("Transpose")
def transpose(site: Site) -> Outputs:
    axes = site.dims(0)
    return [[axes[one] for one in site.attribute("perm", range(len(axes))[::-1])]]


@rule("Concat")
def concat(site: Site) -> Outputs:
    values = [site.dims(place) for place in range(len(site.node.input))]
    at = site.axis(1)
    found = []
    for place in range(len(values[0])):
        meeting = [one[place] for one in values]
        if place == at:
            found.append(concatenation(meeting))
            continue
        for one in meeting[1:]:
            unify(meeting[0], one)
        found.append(meeting[0])
    return [found]


@rule("Split")
def split(site: Site) -> Outputs:
    axes = site.dims(0)
    at = site.axis(0)
    sizes = [site.sizes(place)[at] for place, name in enumerate(site.node.output) if name]
    if len(sizes) < len(site.node.output):
        raise Unknown("leaves out a part")
    parts = divided(axes[at], sizes)
    if parts is None:
        site.freeze([axes[at]], "are cut at an uneven place by")
        parts = site.fixed(sizes, "are cut at an uneven place by")
    site.follow("split" if site.opset < 13 else 1, parts)
    return [[*axes[:at], part, *axes[at + 1 :]] for part in parts]


@rule("Slice")
def slice_(site: Site) -> Outputs:
    """A part from end to end keeps what it has; of one with steps nothing can be cut."""
    axes = list(site.dims(0))
    starts, ends = site.listed("starts", 1), site.listed("ends", 2)
    if starts is None or ends is None:
        raise Unknown("computes where it begins")
    over = site.listed("axes", 3) or list(range(len(starts)))
    steps = site.listed("steps", 4) or [1] * len(starts)
    begin: list[Dim | None] = [None] * len(starts)
    finish: list[Dim | None] = [None] * len(starts)
    for place, (start, end, at, step) in enumerate(zip(starts, ends, over, steps, strict=True)):
        at %= len(axes)
        first, last, _ = slice(start, end, step).indices(axes[at].size)
        if step == 1 and (first, last) == (0, axes[at].size):
            finish[place] = axes[at] if 0 <= end < _END else None
            continue
        sizes = [first, max(last - first, 0), axes[at].size - max(first, last)]
        # Counted from the end it would name another place once the axis is shorter.
        parts = divided(axes[at], sizes) if step == 1 and start >= 0 and end >= 0 else None
        if parts is None:
            freeze(axes[at], site.reason("are cut at an uneven place by"))
            axes[at] = Dim(len(range(axes[at].size)[start:end:step]), site.reason("are cut at an uneven place by"))
            continue
        axes[at] = parts[1]
        begin[place] = parts[0] if first else None
        finish[place] = concatenation(parts[:2]) if end < _END and last else None
    site.follow("starts" if site.opset < 10 else 1, begin)
    site.follow("ends" if site.opset < 10 else 2, finish)
    return [axes]


@rule("Pad")
def pad(site: Site) -> Outputs:
    axes = list(site.dims(0))
    pads = site.listed("pads", 1)
    if pads is None:
        raise Unknown("computes how much it adds")
    over = [one % len(axes) for one in site.listed("axes", 3) or range(len(axes))]
    for place, at in enumerate(over):
        before, after = pads[place], pads[place + len(over)]
        if before < 0 or after < 0 or ((before or after) and site.attribute("mode", b"constant") != b"constant"):
            freeze(axes[at], site.reason("are padded by"))
            axes[at] = Dim(axes[at].size + before + after, site.reason("are padded by"))
        elif before or after:
            ends = site.fixed([before, after], "are padded by")
            axes[at] = concatenation([ends[0], axes[at], ends[1]])
    return [axes]


@rule("Expand")
def expand(site: Site) -> Outputs:
    axes, sizes = site.dims(0), site.sizes()
    wide = [Dim(size) for size in sizes]
    found = broadcast([axes, wide])
    target = site.numbers(1)
    told = [1] * (len(sizes) - len(target)) + target if target is not None else list(sizes)
    dims = [None if size == 1 else dim for size, dim in zip(told, found, strict=True)]
    site.follow(1, dims[len(sizes) - len(target) :] if target is not None else dims)
    return [found]


@rule("Tile")
def tile(site: Site) -> Outputs:
    axes, sizes = site.dims(0), site.sizes()
    counts = [size // max(one.size, 1) for size, one in zip(sizes, axes, strict=True)]
    again = site.fixed(counts, "are repeated by")
    return [[one if count == 1 else product([more, one]) for count, more, one in zip(counts, again, axes, strict=True)]]


@rule("Gather")
def gather(site: Site) -> Outputs:
    """A look-up in a table: its rows stay, what each row holds is made by the table."""
    axes, indices = site.dims(0), site.dims(1)
    at = site.axis(0)
    wanted = site.numbers(1)
    before, after = axes[:at], axes[at + 1 :]
    if wanted is not None and len(indices) == 1 and wanted == list(range(axes[at].size)):
        return [axes]
    site.freeze([axes[at]], "are looked up by")
    if site.is_weight(0):
        for one in (*before, *after):
            site.produce(one)
    return [[*before, *indices, *after]]


@rule("DepthToSpace", "SpaceToDepth")
def depth_to_space(site: Site) -> Outputs:
    axes, sizes = site.dims(0), site.sizes()
    block = int(site.attribute("blocksize", 1))
    squares = site.fixed([block, block])
    if site.node.op_type == "SpaceToDepth":
        return [[axes[0], product([*squares, axes[1]]), *site.fixed(sizes[2:])]]
    rest = Dim(sizes[1])
    last = site.attribute("mode", b"DCR") == b"CRD"
    unify(axes[1], product([rest, *squares] if last else [*squares, rest]))
    return [[axes[0], rest, *site.fixed(sizes[2:])]]


@rule("Resize", "Upsample")
def resize(site: Site) -> Outputs:
    axes, sizes = site.dims(0), site.sizes()
    found = [one if one.size == size else Dim(size, site.reason("are resized by")) for one, size in zip(axes, sizes)]  # noqa: B905
    for one, made in zip(axes, found, strict=True):
        if one is not made:
            freeze(one, site.reason("are resized by"))
    told = site.numbers(3)
    if told and len(told) == len(found):
        site.follow(3, found)
    return [found]
