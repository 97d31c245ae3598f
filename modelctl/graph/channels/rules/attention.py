"""Attention as one operator: heads, and the width of each."""

from modelctl.graph.channels.dims import Dim, concatenation, product, unify
from modelctl.graph.channels.shapes import MICROSOFT
from modelctl.graph.channels.site import Axes, Outputs, Site, Unknown, rule


@rule("Attention")
def attention(site: Site) -> Outputs:
    """[batch, heads, length, width], or [batch, length, heads × width]; several heads may share keys and values."""
    query, key, value = (list(site.dims(place)) for place in range(3))
    if any(site.has(place) for place in (4, 5)) or len(site.node.output) > 1:
        raise Unknown("keeps keys of the past")
    if len(query) == 3:
        return [_flat_attention(site, query, key, value)]
    _keep_width(site, query[3])
    unify(query[0], key[0])
    unify(query[0], value[0])
    _share_heads(query[1], key[1], value[1])
    unify(query[3], key[3])
    unify(key[2], value[2])
    site.kind("heads", query[1])
    site.kind("head_dim", query[3])
    site.kind("head_dim", value[3])
    site.freeze([query[2], key[2]], "are places attended to by")
    return [[*query[:3], value[3]]]


def _flat_attention(site: Site, query: Axes, key: Axes, value: Axes) -> Axes:
    many = int(site.attribute("q_num_heads", 0))
    few = int(site.attribute("kv_num_heads", 0))
    if not many or not few or query[2].size % many or value[2].size % few:
        raise Unknown("does not tell its heads")
    heads, shared = Dim(many), Dim(few)
    width, out = Dim(query[2].size // many), Dim(value[2].size // few)
    _keep_width(site, width)
    _share_heads(heads, shared, shared)
    unify(query[2], product([heads, width]))
    unify(key[2], product([shared, width]))
    unify(value[2], product([shared, out]))
    site.freeze([query[1], key[1], value[1]], "are places attended to by")
    site.kind("heads", heads)
    site.kind("head_dim", width)
    site.kind("head_dim", out)
    site.follow("q_num_heads", [heads])
    site.follow("kv_num_heads", [shared])
    return [query[0], query[1], product([heads, out])]


def _share_heads(many: Dim, few: Dim, also: Dim) -> None:
    unify(few, also)
    if many.size % few.size:
        raise Unknown("shares its heads unevenly")
    unify(many, product([few, Dim(many.size // few.size)]))


def _keep_width(site: Site, width: Dim) -> None:
    """Without a scale of its own an attention divides by the root of the width, which therefore stays."""
    if site.attribute("scale") is None:
        site.freeze([width], "give their scale to")


@rule("MultiHeadAttention", domain=MICROSOFT)
def multi_head_attention(site: Site) -> Outputs:
    if any(site.has(place) for place in (6, 7)) or len(site.node.output) > 1:
        raise Unknown("keeps keys of the past")
    values = [site.dims(place) for place in range(3)]
    count = int(site.attribute("num_heads", 0))
    if any(len(one) != 3 or not count or one[2].size % count for one in values):
        raise Unknown("packs its queries")
    heads = Dim(count)
    width, out = Dim(values[0][2].size // count), Dim(values[2][2].size // count)
    _keep_width(site, width)
    for one, last in zip(values, (width, width, out), strict=True):
        unify(one[2], product([heads, last]))
        site.freeze([one[1]], "are places attended to by")
    if site.has(3):
        unify(site.dims(3)[0], concatenation([one[2] for one in values]))
    site.kind("heads", heads)
    site.kind("head_dim", out)
    site.follow("num_heads", [heads])
    return [[*values[0][:2], product([heads, out])]]


@rule("Attention", domain=MICROSOFT)
def packed_attention(site: Site) -> Outputs:
    """One matrix makes queries, keys and values, [in, 3 × heads × width]."""
    axes, weight = site.dims(0), site.dims(1)
    count = int(site.attribute("num_heads", 0))
    third = weight[1].size // 3
    if site.has(4) or len(site.node.output) > 1 or site.attribute("qkv_hidden_sizes") or not count or third % count:
        raise Unknown("has parts of unequal size or a past")
    heads, width, out = Dim(count), Dim(third // count), Dim(third // count)
    _keep_width(site, width)
    parts = [product([heads, one]) for one in (width, width, out)]
    unify(axes[2], weight[0])
    unify(weight[1], concatenation(parts))
    if site.has(2):
        unify(site.dims(2)[0], weight[1])
    site.freeze([axes[1], out], "are places attended to by")
    site.kind("heads", heads)
    site.consume(weight[0])
    site.produce(weight[1])
    site.follow("num_heads", [heads])
    return [[*axes[:2], parts[2]]]
