"""Cases for the numerical check of gradients, a family of operators a file; `case.py` tells how one is written."""

from gradients import elementwise, reductions, shapes
from gradients.case import Case

CASES: list[Case] = [*elementwise.CASES, *reductions.CASES, *shapes.CASES]

# Operators with floats in them and no gradient to check, with the reason.
EXCEPTIONS: dict[str, str] = {**elementwise.EXCEPTIONS, **reductions.EXCEPTIONS, **shapes.EXCEPTIONS}
