"""Convolutions, grouped, depthwise and transposed ones too, and pooling."""

from modelctl.graph.channels.dims import Dim, product, unify
from modelctl.graph.channels.shapes import MICROSOFT
from modelctl.graph.channels.site import Axes, Outputs, Site, Unknown, rule


@rule("Conv", "ConvTranspose", "ConvInteger")
@rule("FusedConv", domain=MICROSOFT)
def convolution(site: Site) -> Outputs:
    """Of groups either whole ones can go, or as many channels in or out of each.

    A kernel is [out, in / groups, …]; transposed [in, out / groups, …].
    """
    axes, kernel = site.dims(0), site.dims(1)
    count = int(site.attribute("group", 1))
    turned = site.node.op_type == "ConvTranspose"
    if count < 1 or axes[1].size % count or kernel[0].size % count:
        raise Unknown("has groups of unequal size")
    site.freeze(kernel[2:], "are places in the kernel of")
    first, second = kernel[0], kernel[1]
    if count == 1:
        into, out = (first, second) if turned else (second, first)
        unify(axes[1], into)
    else:
        groups = Dim(count)
        inner = Dim(kernel[0].size // count)
        unify(first, product([groups, inner]))
        other = product([groups, second])
        into, out = (first, other) if turned else (other, first)
        unify(axes[1], into)
        site.follow("group", [groups])
    if site.is_weight(1):
        site.produce(second if turned and count > 1 else out)
        site.consume(second if not turned and count > 1 else into)
        if count > 1:
            site.produce(first)
    places = [2] if site.node.op_type != "ConvInteger" else []
    for place in places:
        if site.has(place):
            unify(site.dims(place)[0], out)
    return [_placed(site, [axes[0], out])]


@rule("MaxPool", "AveragePool", "LpPool", "GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool")
def pool(site: Site) -> Outputs:
    axes = site.dims(0)
    if len(site.node.output) > 1 and site.node.output[1]:
        raise Unknown("tells where it found its maximum")
    return [_placed(site, axes[:2])]


@rule("LRN")
def local_norm(site: Site) -> Outputs:
    axes = site.dims(0)
    site.freeze([axes[1]], "are weighed against their neighbours by")
    return [axes]


def _placed(site: Site, front: Axes) -> Axes:
    """Batch and channels, and the places of a map."""
    return [*front, *site.fixed(site.sizes()[2:])]
