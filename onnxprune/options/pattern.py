"""Patterns of zeros, on weights in the canonical layout.

Canonical is ``[blocks, outputs, inputs, taps]``: inputs are contracted, taps are the kernel's positions (1 for
matrices). Every pattern but N:M is made of tiles of equal size, which go or stay as a whole.

| pattern | |
|---|---|
| ``N:M`` | of every M inputs at one tap, at most N stay |
| ``unstructured`` | single weights |
| ``block:RxC`` | R outputs by C inputs, at one tap |
| ``kernel`` | all taps of one input and one output |
| ``vector`` | one input at one tap, for all outputs: a row of the matrix that the layer multiplies with |

Where a dimension doesn't divide, the tail stays dense.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from onnxprune.errors import UsageError

__all__ = ["Pattern", "parse_pattern"]


@dataclass(frozen=True)
class Pattern:
    """A pattern of zeros.

    Attributes
    ----------
    text : str
    kind : str
        ``"n:m"``, ``"unstructured"``, ``"block"``, ``"kernel"`` or ``"vector"``.
    keep, of : int
        N and M; 0 for other kinds.
    rows, columns : int
        Outputs and inputs of a block.
    """

    text: str
    kind: str
    keep: int = 0
    of: int = 0
    rows: int = 1
    columns: int = 1

    @property
    def fixed(self) -> bool:
        """Whether the pattern itself says how many weights go."""
        return self.kind == "n:m"


def parse_pattern(text: str) -> Pattern:
    """Read a pattern.

    Raises
    ------
    UsageError
        If the text is none.

    Examples
    --------
    >>> parse_pattern("2:4").of, parse_pattern("block:4x1").rows
    (4, 4)
    """
    plain = str(text).strip().lower()
    if plain in ("unstructured", "kernel", "vector"):
        return Pattern(plain, plain)
    if match := re.fullmatch(r"(\d{1,4}):(\d{1,4})", plain):
        keep, of = (int(n) for n in match.groups())
        if keep <= of and of > 0:
            return Pattern(plain, "n:m", keep, of)
    if match := re.fullmatch(r"block:(\d{1,4})x(\d{1,4})", plain):
        rows, columns = (int(n) for n in match.groups())
        if rows and columns:
            return Pattern(plain, "block", rows=rows, columns=columns)
    raise UsageError(
        f"--pattern must be N:M with N of M that stay (2:4), unstructured, block:RxC, kernel or vector; got {text!r}."
    )
