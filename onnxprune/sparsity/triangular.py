"""The upper Cholesky factor of an inverse, without the inverse: ``U`` (d, d) with ``H^-1 = U^T U``.

References
----------
Golub and Van Loan, "Matrix Computations", 4th edition, section 4.2 (Cholesky) and 3.1 (triangles by blocks).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["factor_of_inverse"]

Matrix = NDArray[Any]
#: Triangles up to this size are inverted as they are.
SMALL = 96


def factor_of_inverse(h: Matrix) -> Matrix:
    """Return the upper triangular ``U`` with ``H^-1 = U^T U``.

    Parameters
    ----------
    h : array [d, d]
        Symmetric and positive definite.

    Notes
    -----
    With the order of rows and columns turned round, ``H = R R^T`` for an upper triangular ``R``; then ``U = R^-1``.
    """
    r = np.linalg.cholesky(h[::-1, ::-1])[::-1, ::-1]
    factor = np.zeros_like(r)
    _invert(r, factor)
    return factor


def _invert(r: Matrix, into: Matrix) -> None:
    """Invert an upper triangle block by block: ``[[A, B], [0, D]]^-1 = [[A', -A' B D'], [0, D']]``."""
    size = len(r)
    if size <= SMALL:
        into[...] = np.triu(np.linalg.inv(r))
        return
    half = size // 2
    _invert(r[:half, :half], into[:half, :half])
    _invert(r[half:, half:], into[half:, half:])
    into[:half, half:] = -(into[:half, :half] @ r[:half, half:]) @ into[half:, half:]
