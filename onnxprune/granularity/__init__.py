"""Granularities: what one unit of pruning is. One file is one kind of unit, found by its name.

A granularity says which units there are, what the model computes without some of them, and how they are cut out. The
criterion that ranks units, the budget that says how many go, the plan, the proof and the report are the same for all.

To add one, write ``onnxprune/granularity/NAME.py`` with the three functions of `Granularity`, and an option that asks
for it. ``channels.py`` is the example.

``experts.py`` is another kind: a unit is an index of the axis that a router chooses from. Its groups are those of
channels in an analysis in which such axes are opened, so both go in one decision.

``vocabulary.py`` is one, too: a unit is an id, and which of them stay is the user's word, not a decision. So it is
cut first, and what comes after works on the model that is left (`onnxprune.pruning.vocabulary`). So are residual
branches, each a unit of its own: ``depth.py``, and `onnxprune.pruning.depth`.

``tests/granularity/test_granularity.py`` runs each file of the folder through the same laws. The two sides of law 1
must not share code that could be wrong in both: `masked` never calls the writer (`onnxprune.cut`), and `cut` never
reads the twin.
"""

from __future__ import annotations

from typing import Protocol, cast

from onnxprune import registry
from onnxprune.cut.put_back import Removed
from onnxprune.cut.rewrite import Rewritten
from onnxprune.graph.analysis import Analysis
from onnxprune.graph.group_types import Group
from onnxprune.model import Model

__all__ = ["Granularity", "Removed", "load"]


class Granularity(Protocol):
    """What a module of this folder has: the units of a model, and both sides of law 1."""

    def groups(self, analysis: Analysis) -> list[Group]:
        """Return what may go, unit by unit.

        Parameters
        ----------
        analysis : Analysis
            Of the original.

        Returns
        -------
        list of Group
            Each with a unique, stable name, the slices of weights that go with each unit (``members``), and the axes
            that shrink (``extents``), from which every budget derives what a unit costs. Those that are marked as an
            ``alternative`` are not cut by default.
        """

    def masked(self, analysis: Analysis, removed: Removed) -> Model:
        """Return the original with these units silenced where they are read: the right side of law 1.

        Parameters
        ----------
        analysis : Analysis
            Of the original.
        removed : mapping
            Group -> the numbers of its units that go, int64.

        Raises
        ------
        ValueError
            If these units can't go together, or an axis would lose all of its elements.
        """

    def cut(self, analysis: Analysis, removed: Removed) -> Rewritten:
        """Return the model without these units: the left side of law 1.

        Parameters
        ----------
        analysis : Analysis
            Of the original, which is not touched.
        removed : mapping
            As `masked`.

        Raises
        ------
        ValueError
            If these units can't go together, or the cut can't be carried out (`onnxprune.cut.rewrite.RewriteError`).
        """


def load(name: str = "channels") -> Granularity:
    """Return a granularity by its name.

    Parameters
    ----------
    name : str
        A file of this folder.

    Raises
    ------
    UsageError
        If there is none of that name; the sentence lists those that there are.
    """
    return cast(Granularity, registry.load("onnxprune.granularity", name))
