"""What experts are worth: by their parts in what a layer gives, on samples.

References
----------
Lasby and others, "REAP the Experts: Why Pruning Prevails for One-Shot MoE Compression", arXiv 2510.13999: the mean,
over the tokens that an expert is chosen for, of its gate weight times the norm of its output.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.allocation.ranking import Ranking
from onnxprune.calibration.samples import Samples
from onnxprune.calibration.stream import stream_of
from onnxprune.errors import many
from onnxprune.graph.analysis import Analysis
from onnxprune.graph.contributions import Contribution, contributions
from onnxprune.graph.group_types import EXPERTS, Group

__all__ = ["ranked_experts"]

Floats = NDArray[np.float64]
#: Layers that are read in one run.
TOGETHER = 4


@dataclass
class Parts:
    """Sums over tokens, one of each expert.

    Attributes
    ----------
    total : float64[experts]
        Of gate weight times norm.
    energy : float64[experts]
        Of its square.
    tokens : float64[experts]
        For which it was chosen.
    """

    total: Floats
    energy: Floats
    tokens: Floats

    @classmethod
    def of(cls, experts: int) -> Parts:
        """Return empty sums."""
        return cls(*(np.zeros(experts) for _ in range(3)))

    def add(self, experts: NDArray[np.int64], sizes: Floats) -> None:
        """Add what some experts gave for some tokens: arrays of one shape."""
        count = self.total.size
        flat, values = experts.ravel(), np.asarray(sizes, np.float64).ravel()
        self.total += np.bincount(flat, values, count)
        self.energy += np.bincount(flat, values**2, count)
        self.tokens += np.bincount(flat, values > 0, count)

    @property
    def reap(self) -> Floats:
        """The mean of gate weight times norm over the tokens that chose an expert; 0 where none did."""
        return self.total / np.maximum(self.tokens, 1)


def ranked_experts(
    analysis: Analysis, groups: Sequence[Group], samples: Samples
) -> tuple[dict[str, Ranking], list[str]]:
    """Rank the experts of each layer by samples.

    Parameters
    ----------
    analysis : Analysis
        In which experts are units.
    groups : sequence of Group
    samples : Samples

    Returns
    -------
    dict
        Group -> ranking. The error of losing some is the share of the squared parts of all that is theirs.
    list of str
        What is to be said of it.
    """
    family, sizes = analysis.grouping.families[0], analysis.coupling.space.sizes
    read = contributions(analysis)
    unit_of = {root: family.solution.units_of(root, sizes[root]) for root in read}
    names = {g.name for g in groups if g.kind == EXPERTS}
    layers = [
        (root, one, name)
        for root, one in read.items()
        for name in names & family.numbers.keys()
        if np.isin(unit_of[root], family.numbers[name]).any()
    ]
    parts = {root: Parts.of(sizes[root]) for root, _, _ in layers}
    for first in range(0, len(layers), TOGETHER):
        some = {root: one for root, one, _ in layers[first : first + TOGETHER]}
        wanted = list(dict.fromkeys(n for one in some.values() for n in (*one.tensors, one.ids) if n))
        for given in stream_of(analysis.model, samples).each(wanted):
            for root, one in some.items():
                _read(parts[root], one, given)
    rankings = {
        name: _ranking(
            parts[root], np.searchsorted(family.numbers[name], unit_of[root]), len(family.numbers[name])
        )
        for root, _, name in layers
    }
    inside = sum(one.form in ("scores", "values") for _, one, _ in layers)
    notes = [
        f"experts of {many(len(layers) - inside, 'layer')} are ranked by gate weight times norm of output (REAP)"
    ]
    if inside:
        notes.append(
            f"experts of {many(inside, 'layer')} are ranked by their gate weights alone: what each gives can't be read"
        )
    return rankings, notes if inside < len(layers) else notes[1:]


def _read(parts: Parts, one: Contribution, given: Mapping[str, NDArray[Any]]) -> None:
    """Add what one run shows of a layer."""
    if one.form == "own":
        for name, expert in zip(one.tensors, one.experts, strict=True):
            sizes = np.linalg.norm(given[name].astype(np.float64), axis=-1)
            parts.add(np.full(sizes.shape, expert), sizes)
    elif one.form == "scores":
        experts, weights = _gates(given[one.tensors[0]].astype(np.float64), one)
        parts.add(experts, weights)
    elif one.form == "values":
        values = given[one.tensors[0]] if one.tensors else np.ones(given[one.ids].shape)
        parts.add(given[one.ids].astype(np.int64), np.abs(values))
    else:
        sizes = _norms(one, given)
        if one.form == "all":
            experts = np.broadcast_to(np.arange(sizes.shape[-1]), sizes.shape)
        else:
            experts = given[one.ids].astype(np.int64).reshape(sizes.shape)
        parts.add(experts, sizes)


def _norms(one: Contribution, given: Mapping[str, NDArray[Any]]) -> Floats:
    """Return float64[tokens, experts or chosen]: norms of what is summed over them."""
    summed = np.moveaxis(
        given[one.tensors[0]].astype(np.float64), one.axis, -2 if one.form == "chosen" else 0
    )
    sizes: Floats = np.linalg.norm(summed, axis=-1)
    sizes = sizes.reshape(-1, sizes.shape[-1]) if one.form == "chosen" else sizes.reshape(len(sizes), -1).T
    if len(one.tensors) > 1:  # a product, whose other factor is one number a part
        sizes = sizes * np.abs(given[one.tensors[1]]).reshape(sizes.shape)
    return sizes


def _gates(scores: Floats, one: Contribution) -> tuple[NDArray[np.int64], Floats]:
    """Return the experts that a fused mixture chooses of each token, and the weights that it gives them."""
    shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
    shares /= shares.sum(axis=-1, keepdims=True)
    experts = np.argsort(-scores, axis=-1, kind="stable")[..., : one.chosen].astype(np.int64)
    weights = np.take_along_axis(shares, experts, axis=-1)
    return experts, weights / weights.sum(axis=-1, keepdims=True) if one.shares else weights


def _ranking(parts: Parts, unit: NDArray[np.int64], units: int) -> Ranking:
    """Return the ranking of a group, each of whose units is so many experts."""
    total, energy, tokens = (
        np.asarray(np.bincount(unit, values, units), np.float64)
        for values in (parts.total, parts.energy, parts.tokens)
    )
    worth = Parts(total, energy, tokens).reap
    order = np.lexsort((np.arange(units), energy, worth)).astype(np.int64)
    share = np.concatenate([[0.0], np.cumsum(energy[order])]) / max(float(energy.sum()), 1e-30)
    share[-1] = np.inf
    return Ranking(order, share, worth / max(float(worth.mean()), 1e-30))
