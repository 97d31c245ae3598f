"""The handwritten digits that ship with modelctl: small enough to carry, real enough to learn from.

1797 images of 8×8 in 0…1 and the digit that each shows; origin and licence (CC BY 4.0) in `digits.LICENSE.md`.
"""

from pathlib import Path

NAME = "digits.npz"


def path() -> Path:
    """Where the file lies: `x` float32 [1797, 1, 8, 8], `y` int64 [1797]."""
    return Path(__file__).with_name(NAME)


def licence() -> Path:
    """Where the note of origin and licence lies, which goes wherever the file goes."""
    return Path(__file__).with_name("digits.LICENSE.md")
