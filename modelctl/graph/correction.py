"""Rounding a product's weight to few bits so that the product, not the weight, comes out closest.

GPTQ (Frantar et al. 2022, arXiv:2210.17323): the rows of a weight W [K, N] are rounded one after another, and the
error of each is made good in the rows that follow, as far as the inputs X [n, K] allow. The squared error of X·W is a
quadratic form with the Hessian H = XᵀX, and what is to be spread is given by the upper Cholesky factor U of H⁻¹: with
e = (w_k - rounded w_k) / U_kk, every later row j loses U_kj · e.
"""

from typing import Any

import numpy as np

from modelctl.data.samples import Array
from modelctl.graph.blocks import Coded, Coding, grid, rounded

DAMPING = 0.01  # of the mean of H's diagonal, added to it (the article's)
CHUNK = 32  # rows, at least, whose errors reach the rest in one product; it is a whole number of blocks


def corrected(
    weight: Array, moments: Array, coding: Coding, kind: np.dtype[Any], by_size: bool = False, damping: float = DAMPING
) -> Coded:
    """A weight [K, N] in few bits, for inputs with the second moments XᵀX [K, K]; scales are of type `kind`.

    `by_size`: rows of large inputs go first, with scales taken from the weight as it was. Inputs that are always zero
    correct nothing.
    """
    rows = len(weight)
    order = np.argsort(-np.diag(moments), kind="stable") if by_size else np.arange(rows)
    spread = _spread(moments[np.ix_(order, order)], damping)
    left = weight[order].astype(np.float64)
    starts = range(0, rows, coding.block)
    grids = [grid(weight[start : start + coding.block], coding, kind) for start in starts]
    numbers = np.empty(weight.shape, np.uint8)
    chunk = -(-CHUNK // coding.block) * coding.block
    for start in range(0, rows, chunk):
        end = min(start + chunk, rows)
        errors = np.empty((end - start, weight.shape[1]))
        for row in range(start, end):
            place = int(order[row])
            if not by_size and place % coding.block == 0:
                grids[place // coding.block] = grid(left[row : row + coding.block], coding, kind)
            scale, zero = grids[place // coding.block]
            numbers[place] = rounded(left[row], scale, zero, coding)
            stands_for = (numbers[place].astype(np.float64) - zero) * scale
            error = (left[row] - stands_for) / spread[row, row]
            left[row + 1 : end] -= np.outer(spread[row, row + 1 : end], error)
            errors[row - start] = error
        left[end:] -= spread[start:end, end:].T @ errors
    return Coded(coding, numbers, np.stack([one for one, _ in grids]), np.stack([one for _, one in grids]))


def relative_error(wanted: Array, found: Array, hessian: Array | None) -> float:
    """‖X(W - W')‖ / ‖XW‖ for XᵀX = `hessian` [K, K]; ‖W - W'‖ / ‖W‖ without one."""

    def size(matrix: Array) -> float:
        return float(np.vdot(matrix, matrix if hessian is None else hessian @ matrix))

    error, whole = size((wanted - found).astype(np.float64)), size(wanted.astype(np.float64))
    return float(np.sqrt(max(error, 0.0) / whole)) if whole > 0 else 0.0


def _spread(moments: Array, damping: float) -> Array:
    """The upper Cholesky factor of the damped moments' inverse."""
    damped = moments.astype(np.float64)
    diagonal = np.einsum("ii->i", damped)
    diagonal[diagonal == 0] = 1
    diagonal += damping * diagonal.mean()
    # H = L·Lᵀ of H turned about both ways gives U = L⁻¹ turned back, without the inverse of H.
    return _inverse(np.linalg.cholesky(damped[::-1, ::-1]))[::-1, ::-1]


def _inverse(lower: Array) -> Array:
    """The inverse of a lower triangle, in halves: a quarter of the work that it is for any matrix."""
    size = len(lower) // 2
    if size < 32:
        return np.linalg.inv(lower)
    first, second = _inverse(lower[:size, :size]), _inverse(lower[size:, size:])
    found = np.zeros_like(lower)
    found[:size, :size], found[size:, size:] = first, second
    found[size:, :size] = -second @ (lower[size:, :size] @ first)
    return found
