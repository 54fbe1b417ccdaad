"""Depth: a unit is a residual branch, all of it: an attention or feed-forward part, or the block of a residual CNN.

With ``x`` the stream, ``f`` a branch and ``m`` 1 if it stays and 0 if it goes,

    x  =  x + m f(x),    m = 0.

`cut` computes the left side: nodes and weights that only the branch needs disappear, and what read the sum reads the
stream. `masked` computes the right side. Which terms of which sums are branches is `onnxprune.graph.depth`'s to say.
"""

from __future__ import annotations

from onnxprune.cut.depth import shallow
from onnxprune.cut.rewrite import Rewritten
from onnxprune.granularity import Removed
from onnxprune.graph.analysis import Analysis
from onnxprune.graph.depth import Depth
from onnxprune.graph.group_types import Group
from onnxprune.model import Model
from onnxprune.proof.depth import multiplied

__all__ = ["cut", "groups", "masked"]


def groups(analysis: Analysis) -> list[Group]:
    """Return the residual branches of a model, each a group of one unit."""
    return Depth.of(analysis).groups


def masked(analysis: Analysis, removed: Removed) -> Model:
    """Return the original in which what these branches add is multiplied by 0.

    Raises
    ------
    ValueError
        If the model has no such branch.
    """
    return multiplied(Depth.of(analysis), [name for name, units in removed.items() if len(units)])


def cut(analysis: Analysis, removed: Removed) -> Rewritten:
    """Return the model without these branches; all that stays is as it was.

    Raises
    ------
    ValueError
        As `masked`.
    """
    return shallow(Depth.of(analysis), [name for name, units in removed.items() if len(units)])
