"""Compare what two models compute, and refuse comparisons that would say nothing."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["NEAR", "STEP", "Difference", "compare", "worst"]

Array: TypeAlias = NDArray[Any]

#: How far two results of onnxruntime's Sigmoid may be apart, however small they are: it is computed around 0.5, in
#: steps of 2^-24. That matters where the largest value is a few thousand such steps; one of a few dozen says nothing.
STEP, FEW, MANY = 4 * 2.0**-24, 100, 10_000
NEAR = "too near to zero"


@dataclass(frozen=True)
class Difference:
    """How far two arrays are apart.

    Attributes
    ----------
    error : float
        Floats: max|a - b| / max|a| over finite elements. Integers and booleans: the share of elements that
        differ. Infinite where shapes, types or the places of NaN and infinity differ.
    void : str
        Why equality would say nothing (empty, constant, nothing finite); empty where the comparison counts.
    """

    error: float
    void: str = ""


def compare(a: Array, b: Array, step: float = 0.0) -> Difference:
    """Compare an array with its reference.

    Parameters
    ----------
    a : array
        The reference.
    b : array
        What must equal it.
    step : float
        By how much floats may differ besides; see `onnxprune.proof.interior.steps`.

    Returns
    -------
    Difference
        An array that is void is compared all the same: only agreement is refused, a difference counts.
    """
    a, b = np.asarray(a), np.asarray(b)
    if a.shape != b.shape or a.dtype != b.dtype:
        return Difference(np.inf)
    if a.size == 0:
        return Difference(0.0, "empty")
    if not _is_float(a):
        share = float(np.mean(a != b))
        return Difference(share, "constant" if _constant(a) else "")
    a, b = _as_float(a), _as_float(b)
    finite = np.isfinite(a)
    if not np.array_equal(finite, np.isfinite(b)) or not np.array_equal(
        a[~finite], b[~finite], equal_nan=True
    ):
        return Difference(np.inf)
    void = "NaN" if np.isnan(a).any() else ""
    if not finite.all():
        a, b = a[finite], b[finite]
    if a.size == 0:
        return Difference(0.0, void or "nothing finite")
    gap, peak = float(np.abs(a - b).max()), float(np.abs(a).max())
    if gap <= step and peak < step * MANY:
        return Difference(0.0, void or (NEAR if peak < step * FEW else ""))
    error = 0.0 if gap == 0 else np.inf if peak == 0 else gap / peak
    return Difference(error, void or ("constant" if _constant(a) else ""))


def worst(differences: Iterable[Difference]) -> Difference:
    """Sum up one output over several inputs: the greatest error; void only where every comparison is."""
    differences = list(differences)
    if not differences:
        return Difference(0.0, "not compared")
    voids = [d.void for d in differences]
    return Difference(max(d.error for d in differences), voids[0] if all(voids) else "")


def _is_float(a: Array) -> bool:
    return a.dtype.kind == "f" or a.dtype.name in ("bfloat16",)


def _as_float(a: Array) -> Array:
    return a if a.dtype in (np.float32, np.float64) else a.astype(np.float32)


def _constant(a: Array) -> bool:
    """Whether all elements are equal; one element alone says something unless it is zero."""
    return bool((a == a.flat[0]).all()) if a.size > 1 else bool(a.flat[0] == 0)
