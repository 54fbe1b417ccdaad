"""What the original gives for one layer, taken batch after batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.model import Model
from onnxprune.reconstruction.evidence import Collector, Draw, Evidence, Rows, Spread, evened
from onnxprune.reconstruction.layer import weights_of
from onnxprune.reconstruction.layers import Site
from onnxprune.reconstruction.moments import check_finite

__all__ = ["DenseOutput", "Taker", "factors_of", "together", "unit_of"]

Array = NDArray[Any]


class DenseOutput:
    """What a layer's output is in the original: the tensor, what that was before a clip, or what it follows from."""

    old: tuple[NDArray[np.float64], NDArray[np.float64]] | None

    def __init__(self, site: Site, model: Model) -> None:
        self.site = site
        self.old = weights_of(site, model) if site.clipped else None

    @property
    def wanted(self) -> tuple[str, ...]:
        """The tensors that it is read from."""
        if self.site.lean:
            return (self.site.x,)
        return (self.site.goal[0], *([self.site.x] if self.old is not None else []))

    @property
    def end(self) -> int:
        """How far the original runs for it."""
        return self.site.number if self.site.lean else self.site.goal[1] + 1

    def positions(self, batch: Mapping[str, Array], name: str) -> int:
        """Return how many positions an output has, its name given."""
        if self.site.lean:
            return int(batch[self.site.x].size // self.site.view.width)
        return self.site.view.positions(batch[name])

    def rows(self, batch: Mapping[str, Array], name: str, rows: Rows) -> Array:
        """Return array [rows, blocks * outputs] of an output, its name given, at the drawn positions.

        Of a lean layer it is array [rows, d], what the layer reads.
        """
        view = self.site.view
        if self.site.lean:
            return np.asarray(view.x(batch[self.site.x], rows.index)[0])
        if self.old is None:
            return view.y(batch[name], rows.index)
        matrices, bias = self.old
        made = view.x(batch[self.site.x], rows.index) @ matrices + bias[:, None]
        return np.asarray(made.transpose(1, 0, 2).reshape(len(rows.index), -1))


class Taker:
    """Takes what the original gives for one layer."""

    site: Site
    reached: DenseOutput
    draw: Draw
    linear: bool
    spread: Spread
    collector: Collector

    def __init__(self, reached: DenseOutput, draw: Draw, wide: int, *, linear: bool) -> None:
        self.site, self.reached, self.draw, self.linear = reached.site, reached, draw, linear
        self.spread, self.collector = Spread(), Collector(self.site.view, wide, linear=linear)

    def add(self, batch: Mapping[str, Array], count: int, valid: Array | None) -> None:
        """Add a batch."""
        site, view = self.site, self.site.view
        if not site.lean and site.y not in batch:  # it is in a branch that these samples don't take
            return
        x = batch[site.x]
        rows = self.draw.take(x, self.reached.positions(batch, site.y), count, valid)
        even = None
        if not site.lean:
            whole = view.y(batch[site.goal[0]], rows.index)
            even = factors_of(site, whole)
            self.spread.add(whole if even is None else whole * even, 1, x, None)
        if self.linear:
            self.collector.add(x, np.zeros((len(rows.index), 0), np.float32), rows, even)
            return
        y = self.reached.rows(batch, site.y, rows)
        self.collector.add(x, y if site.given is None else y - site.given, rows, even)

    def evidence(self) -> Evidence:
        """Return what was added."""
        spread = self.spread.variance / unit_of(self.site)
        check_finite(np.array(spread))
        return self.collector.evidence(spread)


def factors_of(site: Site, whole: Array) -> Array | None:
    """Return the factors of rows of a layer that feeds a residual sum, and may have no bias; see `evened`.

    Parameters
    ----------
    site : Site
    whole : float[rows, channels]
        Of the sum, in the original.
    """
    return evened(whole) if site.total is not None and site.adder is None else None


def together(parts: Sequence[Evidence]) -> Evidence:
    """Put together what several nodes that use one weight tell."""
    whole = parts[0]
    for part in parts[1:]:
        whole.merge(part)
        whole.spread += part.spread
    whole.spread /= len(parts)
    return whole


def unit_of(site: Site) -> float:
    """Return how many times a layer's squared error is in that of what its output becomes part of."""
    return float(np.mean(site.total.gain**2)) if site.total else 1.0
