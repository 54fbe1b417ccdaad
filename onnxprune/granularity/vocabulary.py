"""Vocabulary: a unit is an id, which is a row of each table that ids are looked up in, and a column of the head.

A shorter table gives for an id's new number what the table gave for the id. So a map of ids stands in front of each
lookup, and nothing else of the graph sees another number. With ``keep`` the ids that stay, ``unk`` one of them, and
``place[i]`` the number of ``i`` among them,

    take(table, keep)[place[clean[i]]]  =  table[clean[i]],    clean[i] = i if i is kept, else unk.

`cut` computes the left side, `masked` the right side. The head (its weights, scales and biases)
loses the same ids where an axis of a graph output counts them, which then shrinks. Where an op looks at all of them
together (Softmax, ArgMax, TopK) a head with weights of its own stays whole; a head that is the table freezes it.
"""

from __future__ import annotations

from onnxprune.cut.rewrite import Rewritten
from onnxprune.cut.vocabulary import shortened
from onnxprune.granularity import Removed
from onnxprune.graph.analysis import Analysis
from onnxprune.graph.group_types import Group
from onnxprune.graph.vocabulary import Vocabulary
from onnxprune.model import Model
from onnxprune.proof.vocabulary import cleaned

__all__ = ["cut", "groups", "masked"]


def groups(analysis: Analysis) -> list[Group]:
    """Return the groups whose units are ids: one, unless parts of the head are tied otherwise; none without a table."""
    vocabulary = Vocabulary.of(analysis)
    return [] if vocabulary is None else vocabulary.groups


def masked(analysis: Analysis, removed: Removed) -> Model:
    """Return the original in which each lookup reads the least id that stays for one that goes.

    Raises
    ------
    ValueError
        If the ids can't go together, or all would.
    """
    vocabulary = _vocabulary(analysis)
    keep = vocabulary.kept(removed)
    return cleaned(vocabulary, keep, int(keep[0]))


def cut(analysis: Analysis, removed: Removed) -> Rewritten:
    """Return the model with shorter tables, which takes the same ids: those that are gone are the least that stays.

    Raises
    ------
    ValueError
        As `masked`, or if a tensor would not get the shape that the cut implies.
    """
    vocabulary = _vocabulary(analysis)
    keep = vocabulary.kept(removed)
    return shortened(vocabulary, keep, int(keep[0]))


def _vocabulary(analysis: Analysis) -> Vocabulary:
    vocabulary = Vocabulary.of(analysis)
    if vocabulary is None:
        raise ValueError("the model has no vocabulary")
    return vocabulary
