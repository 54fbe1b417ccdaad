"""Loss curves of products, such as queries and keys: what narrower heads do to the next layer that can be fitted.

No layer reads the units of a product, so there is no regression to take a curve from. It is measured: the last axes of
the basis (`onnxprune.rotation.basis`) are silenced, a few shares of them in turn, and the part of the model up to the
next layer runs once more. Between the shares the error follows the strength of the axes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.calibration.samples import Samples
from onnxprune.calibration.stream import Runs, stream_of
from onnxprune.graph.analysis import Analysis
from onnxprune.model import Model
from onnxprune.reconstruction.evidence import positions_of, typical
from onnxprune.reconstruction.layer import weights_of, write
from onnxprune.reconstruction.layers import Site
from onnxprune.reconstruction.least_squares import Curve, Fit
from onnxprune.reconstruction.products import Mixable, ProductCurve, silenced
from onnxprune.reconstruction.views import channels_last
from onnxprune.rotation.basis import Rotated

__all__ = [
    "products",
]

Matrix = NDArray[np.float64]
Ints = NDArray[np.int64]

#: Shares of the axes that are silenced in turn.
SHARES = (0.25, 0.5, 0.75, 1.0)
#: Samples that they are measured on, or so many that they have this many rows.
FEW, ROWS = 64, 16384


def products(
    rotated: Rotated,
    samples: Samples,
    layers: list[Site],
    floor: float,
    say: Callable[[str], None] | None = None,
) -> dict[str, ProductCurve]:
    """Measure the curves of products.

    Parameters
    ----------
    rotated : Rotated
        The model in its new basis.
    samples : Samples
        Of which a few are taken.
    layers : list of Site
        All layers that can be fitted, in order.
    floor : float
        Share of the units that always stay.
    say : callable, optional
        Told of progress.
    """
    analysis, samples = rotated.analysis, samples.few(FEW)
    stream = stream_of(analysis.model, samples, analysis.types)
    first = {m: min(s.site.number for s in m.makers) for m in rotated.mixed if m.product >= 0}
    result = {}
    for number, mixable in enumerate(sorted(first, key=lambda m: first[m])):
        if say:
            say(f"narrow {number + 1}/{len(first)}: {mixable.group}")
        strength = rotated.strength[mixable.group]
        site = _next(analysis, mixable.product, layers)
        if site is None:
            continue
        for _ in stream.run(first[mixable], []):
            pass
        units = len(strength)
        counts = [round(share * units) for share in SHARES]
        errors = _errors(stream, samples, mixable, site, [np.arange(units - n, units) for n in counts])
        least = max(1, int(np.ceil(floor * units)))
        result[mixable.group] = ProductCurve(mixable, site, _curve(strength, counts, errors, least))
    return result


def _next(analysis: Analysis, product: int, sites: list[Site]) -> Site | None:
    """Return the first layer that the products reach."""
    reached = set(analysis.coupling.nodes[product].node.outputs)
    by_number = {s.number: s for s in sites}
    for number in range(product + 1, len(analysis.coupling.nodes)):
        node = analysis.coupling.nodes[number].node
        if reached.intersection(node.inputs):
            if number in by_number:
                return by_number[number]
            reached |= {n for n in node.outputs if n}
    return None


def _errors(stream: Runs, samples: Samples, mixable: Mixable, site: Site, gone: list[Ints]) -> list[float]:
    """Return the error that silencing axes makes at a layer, in units of the `typical` variance of what it feeds."""
    total = site.total
    goal, end = (total.tensor, total.end + 1) if total else (site.y, site.end + 1)
    runs = [_rows(stream, stream.model, goal, end)]
    runs += [_rows(stream, _without(stream.model, mixable, units), goal, end) for units in gone]
    axis, errors, n = site.view.out_axis, np.zeros(len(gone)), 0
    mean, square = np.zeros(1), np.zeros(1)
    for valid, original, *others in zip(samples.valid, *runs, strict=True):
        rows = channels_last(original, axis)
        at = positions_of(original, len(rows), valid)
        rows = rows[at].astype(np.float64)
        n += len(rows)
        mean, square = mean + rows.sum(axis=0), square + np.square(rows).sum(axis=0)
        for i, other in enumerate(others):
            errors[i] += float(np.sum((channels_last(other, axis)[at] - rows) ** 2))
        if n >= ROWS:
            break
    return list(errors / n / max(typical(square / n - np.square(mean / n)), 1e-30))


def _rows(stream: Runs, model: Model, goal: str, end: int) -> Iterator[Any]:
    for batch in stream.fork(model).run(end, [goal]):
        yield batch[goal]


def _without(model: Model, mixable: Mixable, units: Ints) -> Model:
    fork = model.fork()
    for side in mixable.left:
        matrices, bias = weights_of(side.site, fork)
        write(fork, side.site, silenced(side.site, [Fit(matrices[0], bias[0])], side.at[:, units].ravel()))
    return fork


def _curve(strength: Matrix, counts: list[int], errors: list[float], least: int) -> Curve:
    """Return the error of each count of axes that go, the weakest first."""
    units = len(strength)
    tail = np.concatenate([[0.0], np.cumsum(strength[::-1])]) / max(float(strength.sum()), 1e-30)
    points = np.maximum.accumulate([0.0, *errors])
    error = np.interp(tail, tail[[0, *counts]], points)
    error[units - least + 1 :] = np.inf
    return Curve(np.arange(units)[::-1].astype(np.int64), error)
