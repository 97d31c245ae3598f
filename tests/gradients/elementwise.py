"""Cases of the operators that treat every number by itself."""

from gradients.case import Case

CASES = [
    Case("Add", [(2, 3), (3,)]),
    Case("Relu", [(2, 3)]),
]

# Operator: why it has no gradient to check.
EXCEPTIONS: dict[str, str] = {}
