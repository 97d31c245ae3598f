"""Cases for the numerical check of gradients, a family of operators a file; `case.py` tells how one is written."""

from gradients import elementwise, fused, layers, reductions, shapes, spatial
from gradients.case import Case

_FAMILIES = (elementwise, fused, layers, reductions, shapes, spatial)
CASES: list[Case] = [case for family in _FAMILIES for case in family.CASES]

# Operators with floats in them and no gradient to check, with the reason.
EXCEPTIONS: dict[str, str] = {name: why for family in _FAMILIES for name, why in family.EXCEPTIONS.items()}
