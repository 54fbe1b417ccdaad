"""Layers that read a group, as a criterion sees them: one by one, or added up where they would take too much room."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.model import Model
from onnxprune.reconstruction.contributions import Outgoing, Summed, of_moments, of_products
from onnxprune.reconstruction.dual import DualProblem, contributions, merged
from onnxprune.reconstruction.evidence import Evidence
from onnxprune.reconstruction.few_rows import steadied
from onnxprune.reconstruction.layer import Settings, weights_of
from onnxprune.reconstruction.layers import Site
from onnxprune.reconstruction.least_squares import Consumer, Problem, Regression
from onnxprune.reconstruction.narrow import narrowed
from onnxprune.reconstruction.sheets import gram_of, is_plain

__all__ = ["Together", "consumers_of", "crowded"]

Array = NDArray[Any]
Ints = NDArray[np.int64]
Matrix = NDArray[np.float64]

#: Bytes of the moments of all layers that read a group, beyond which what units give is added up instead.
ROOM = 1 << 28


def crowded(reads: Sequence[tuple[Site, Sequence[Sequence[Ints]]]], settings: Settings) -> bool:
    """Whether the moments of all layers that read a group take too much room."""
    total = 0.0
    for site, rows in reads:
        d, outputs = site.view.width, site.view.outputs
        each = (len(rows[0]) + 1.0) ** 2 if d > settings.wide else float(d) * (d + outputs)
        total += 8 * site.view.blocks * each
    return len(reads) > 1 and total > ROOM


def consumers_of(
    site: Site, evidence: Evidence, rows: Sequence[Sequence[Ints]], model: Model, unit: float | None = None,
    *, texts: bool = False,
) -> list[Consumer]:  # fmt: skip
    """Return one consumer for each block of a layer, on all samples; steadied where they are few.

    Parameters
    ----------
    site : Site
    evidence : Evidence
    rows : sequence of sequence of int64
        Regressors of each unit, in each block.
    model : Model
        That holds the weights.
    unit : float, optional
        Errors are divided by it; by the spread of the evidence otherwise.
    texts : bool
        Whether rows are positions of texts, see `steadied`.
    """
    if site.lean:
        site = narrowed(site, model)
    matrices, _ = weights_of(site, model)
    consumers = []
    sets = _sets(site, evidence)
    if unit is None:
        unit = evidence.spread or _given([parts[-1] for parts in sets], matrices) or 1.0
    for units, w, parts in zip(rows, matrices, sets, strict=True):
        problems = [p for p in parts if isinstance(p, Problem)]
        if len(problems) < len(parts):  # wide
            wide = [p for p in parts if isinstance(p, DualProblem)]
            problems, units, w = _scaled(wide, units, w, exact=not evidence.linear)
        elif evidence.linear:
            problems = [p.through(w) for p in problems]
        problem, factor = steadied(problems, units, w, texts=texts)
        consumers.append(Consumer(problem, units, w, unit / factor))
    return consumers


def _sets(site: Site, evidence: Evidence) -> list[tuple[Regression, ...]]:
    """Return the regressions of each block on the rows for fitting, on those that are held out, and on all."""
    centred = site.adder is not None
    sets = (
        evidence.train(centred=centred),
        evidence.held_out(centred=centred),
        evidence.whole(centred=centred),
    )
    return list(zip(*sets, strict=True))


def _given(problems: Sequence[Regression], matrices: Matrix) -> float:
    """Return the variance of what weights give, summed over outputs."""
    return sum(float(p.spread(w).sum()) for p, w in zip(problems, matrices, strict=True))


def _scaled(
    problems: Sequence[DualProblem], units: Sequence[Ints], w: Matrix, *, exact: bool
) -> tuple[list[Problem], list[Ints], Matrix]:
    """Return the regressions of a wide layer on what its units give, each a regressor whose weight is one.

    Exact: targets were kept; else they are what the layer itself gives. Taps that are summed over are cheaper the one
    way, single regressors the other.
    """
    d, outputs = w.shape
    n, count = problems[-1].n, len(units) + 1
    if d * d * (n + outputs) < count * count * n * outputs:
        found = of_products(problems, units, Outgoing.of(w.astype(np.float32)))
    else:
        known = [p if exact else p.through(w) for p in problems[:2]]
        parts = [contributions(p, units, w) for p in known]
        found = [*(p for p, _ in parts), merged(parts, [p.my for p in known])]
    return found, *_plain(len(units))


def _plain(units: int) -> tuple[list[Ints], Matrix]:
    """Return one regressor for each unit, and their weights."""
    return [np.array([u]) for u in range(units)], np.ones((units + 1, 1))


class Together:
    """All layers that read a crowded group: what its units give, added up."""

    units: int
    sums: Summed

    def __init__(self, units: int) -> None:
        self.units, self.sums = units, Summed(units, 3)

    def add(self, site: Site, evidence: Evidence, rows: Sequence[Sequence[Ints]], model: Model) -> None:
        """Add a layer; its errors are divided by the spread of the evidence."""
        if site.lean and not evidence.linear:
            site = narrowed(site, model)
        matrices = None if evidence.linear and is_plain(site, model) else weights_of(site, model)[0]
        if matrices is None:
            grams = gram_of(site, model)[None]
        else:
            grams = np.matmul(matrices, matrices.transpose(0, 2, 1))
        for block, (units, parts) in enumerate(zip(rows, _sets(site, evidence), strict=True)):
            given = grams[block]

            def rows_of(some: Ints, block: int = block) -> Array:
                assert matrices is not None
                return np.asarray(matrices[block][some])

            outgoing = Outgoing(given.__getitem__, rows_of)
            wide = [p for p in parts if isinstance(p, DualProblem)]
            found = (
                of_products(wide, units, outgoing)
                if wide
                else [of_moments(p, units, outgoing) for p in parts if isinstance(p, Problem)]
            )
            self.sums.add(found, evidence.spread or found[-1].variance or 1.0)

    def consumer(self) -> Consumer:
        """Return them as one layer; nothing is left here."""
        units, w = _plain(self.units)
        problem, factor = steadied(self.sums.problems(), units, w)
        return Consumer(problem, units, w, 1 / factor)
