"""Fit one layer with zeros: masks by a method, refits on what stays, and the better variant by held-out samples.

Of several weights with the same mask the one with the least ``E |y - W^T x - b|^2`` on held-out positions is taken: the
old weights under the mask, the same with the best bias ``b = E y - W^T E x``, the method's own, and ridge regressions
on the mask (`onnxprune.sparsity.refit`) with a ridge, weaker or stronger as long as it gets better. Then it is computed
once more from all positions.

Shapes: ``W`` (d, O), ``b`` (O), see `onnxprune.sparsity.task`; a grouped layer has one of each per block.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxprune.model import Model
from onnxprune.reconstruction.evidence import Evidence, moments_of
from onnxprune.reconstruction.grouped import loss_of
from onnxprune.reconstruction.layer import Storable, tried, weights_of
from onnxprune.reconstruction.layers import Site
from onnxprune.reconstruction.least_squares import Fit, Problem
from onnxprune.reconstruction.recover import STRONG
from onnxprune.sparsity.refit import is_exact, masked_refit, work_of
from onnxprune.sparsity.task import Mask

__all__ = ["LayerFit", "fit_layer"]

Matrix = NDArray[np.float64]
#: The one ridge where a refit is costly.
ONE = (1e-2,)
COSTLY = 1e11  # multiplications


@dataclass(frozen=True)
class LayerFit:
    """What was done to one layer.

    Attributes
    ----------
    layer : str
    sparsity : float
    rows : int
        Positions that the fit saw.
    before, after : float
        Mean squared error on held-out samples, relative to the variance of the layer's target: with the old weights
        where they stay, and with the new ones.
    variant : str
        ``"kept"``, ``"bias"``, ``"method"`` or ``"lstsq 0.001"``.
    exact : bool
        Whether refits were solved exactly, rather than by conjugate gradients.
    """

    layer: str
    sparsity: float
    rows: int
    before: float
    after: float
    variant: str
    exact: bool


def fit_layer(
    site: Site,
    evidence: Evidence,
    chosen: Sequence[tuple[Mask, Matrix]],
    model: Model,
    ridges: Sequence[float],
) -> tuple[list[Fit], LayerFit]:
    """Choose among the old weights, a new bias, the method's weights and refits by held-out error.

    Parameters
    ----------
    site : Site
    evidence : Evidence
    chosen : sequence of (bool[d, O], float64[d, O])
        Masks and weights of the method, for each block.
    model : Model
        That holds the old weights; where they are quantised, what is chosen lies on their grid.
    ridges : sequence of float
        None: no refit.
    """
    centred = site.adder is not None
    old, storable = weights_of(site, model), Storable.of(site, model)
    train, unseen = (moments_of(of(centred=centred)) for of in (evidence.train, evidence.held_out))
    keep = [mask for mask, _ in chosen]
    prior = [np.where(mask, old[0][b], 0.0) for b, mask in enumerate(keep)]
    makers: dict[str, Callable[[int, Problem], Fit]] = {
        "kept": lambda b, _: Fit(prior[b], old[1][b]),
        "method": lambda b, p: _with_bias(p, chosen[b][1]),
    }
    if centred:
        makers["bias"] = lambda b, p: _with_bias(p, prior[b])
    rows, most = evidence.fitting.n, max(int(k.sum(axis=0).max()) for k in keep)
    if ridges and rows < 2 * most:
        ridges = STRONG
    for share in ridges if sum(map(work_of, keep)) < COSTLY or not ridges else ONE:
        makers[f"lstsq {share:g}"] = _refit(share, keep, prior)

    def made(name: str, problems: Sequence[Problem]) -> list[Fit]:
        return storable.put(problems, [makers[name](b, p) for b, p in enumerate(problems)])

    errors = tried(lambda name: loss_of(unseen, made(name, train)), list(makers))
    best = min(errors, key=lambda n: errors[n])
    whole = moments_of(evidence.whole(centred=centred))
    variance = max(sum(p.variance for p in unseen), 1e-30)
    report = LayerFit(
        site.name,
        1 - float(np.mean([k.mean() for k in keep])),
        sum(p.n for p in whole),
        errors["kept"] / variance,
        errors[best] / variance,
        best,
        all(map(is_exact, keep)),
    )
    return made(best, whole), report


def _with_bias(problem: Problem, w: Matrix) -> Fit:
    return Fit(w, problem.my - problem.mx @ w)


def _refit(share: float, keep: Sequence[Mask], prior: Sequence[Matrix]) -> Callable[[int, Problem], Fit]:
    return lambda b, p: masked_refit(p, keep[b], share, prior[b])
