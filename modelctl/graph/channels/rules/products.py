"""Matrix products: what is summed over is one axis of both sides."""

from modelctl.graph.channels.dims import Dim, unify
from modelctl.graph.channels.shapes import MICROSOFT
from modelctl.graph.channels.site import Axes, Outputs, Site, Unknown, broadcast, rule


@rule("MatMul", "MatMulInteger")
@rule("FusedMatMul", domain=MICROSOFT)
def matmul(site: Site) -> Outputs:
    left, right = list(site.dims(0)), list(site.dims(1))
    if site.attribute("transBatchA", 0) or site.attribute("transBatchB", 0):
        raise Unknown("turns its batches")
    if site.attribute("transA", 0):
        left[-2:] = left[:-3:-1]
    if site.attribute("transB", 0):
        right[-2:] = right[:-3:-1]
    rows = left[-2:-1]
    columns = right[-1:] if len(right) > 1 else []
    summed = right[-2] if len(right) > 1 else right[-1]
    unify(left[-1], summed)
    batch = broadcast([left[:-2], right[:-2]])
    _tell(site, left[-1], summed, rows, columns, batch)
    return [[*batch, *rows, *columns]]


def _tell(site: Site, left: Dim, right: Dim, rows: Axes, columns: Axes, batch: Axes) -> None:
    """Which axes the weights make and take up; between two activations, which are heads."""
    if site.is_weight(1):
        site.consume(right)
        for one in columns:
            site.produce(one)
    if site.is_weight(0):
        site.consume(left)
        for one in rows:
            site.produce(one)
    if not site.is_weight(0) and not site.is_weight(1):
        for one in batch:
            site.kind("heads", one)
        for one in (left, *rows, *columns):
            site.kind("head_dim", one)


@rule("Gemm")
def gemm(site: Site) -> Outputs:
    left, right = list(site.dims(0)), list(site.dims(1))
    if site.attribute("transA", 0):
        left.reverse()
    if site.attribute("transB", 0):
        right.reverse()
    unify(left[1], right[0])
    _tell(site, left[1], right[0], left[:1], right[1:], [])
    found = [left[0], right[1]]
    return [broadcast([found, site.dims(2)]) if site.has(2) else found]


@rule("Einsum")
def einsum(site: Site) -> Outputs:
    """Axes of one letter are one; a letter that two activations share and keep counts heads or samples."""
    equation = site.attribute("equation", b"").decode().replace(" ", "")
    if "." in equation or "->" not in equation:
        raise Unknown("has axes without a name")
    before, after = equation.split("->")
    terms = before.split(",")
    meaning: dict[str, Dim] = {}
    for place, term in enumerate(terms):
        axes = site.dims(place)
        if len(term) != len(axes) or len(set(term)) < len(term):
            raise Unknown("takes a diagonal")
        for letter, dim in zip(term, axes, strict=True):
            unify(meaning.setdefault(letter, dim), dim)
    for place, term in enumerate(terms):
        for letter, dim in zip(term, site.dims(place), strict=True):
            if site.is_weight(place):
                (site.produce if letter in after else site.consume)(dim)
            elif not any(site.is_weight(other) for other in range(len(terms))):
                shared = all(letter in one for one in (*terms, after))
                site.kind("heads" if shared else "head_dim", dim)
    return [[meaning[letter] for letter in after]]
