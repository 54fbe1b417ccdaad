"""Products of activations, such as queries and keys: groups that no layer reads, and their loss curves.

A group that only a product ``q k^T`` reads (q, k: heads, positions, units) has no regressors. Silencing its units I is
``W[:, I] = 0, b[I] = 0`` in the layers that make q and k, and the loss is what that changes at the next layer that can
be fitted, ``|y - y_I|^2 / var(y)``, which `onnxprune.rotation.products` measures.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxprune.reconstruction.layers import Site
from onnxprune.reconstruction.least_squares import Curve, Fit

__all__ = ["ProductCurve", "silenced", "Mixable", "Side"]

Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Side:
    """A layer at one end of a group.

    Attributes
    ----------
    site : Site
    at : int64[heads, units]
        Channel of each unit in each head: of the layer's output where it makes the group, else of its input.
    """

    site: Site
    at: Ints


@dataclass(frozen=True, eq=False)
class Mixable:
    """A group whose units can be mixed.

    Attributes
    ----------
    group : str
    left, right : tuple of Side
        A matrix goes to the output channels of the left; its inverse to the input channels of the right, or, in a
        product, the inverse's transpose to the output channels of the right.
    product : int
        Position of the node that multiplies left and right; -1 for a stream.
    """

    group: str
    left: tuple[Side, ...]
    right: tuple[Side, ...]
    product: int = -1

    @property
    def name(self) -> str:
        """The group, and which kind this is."""
        return f"{self.group} ({'product' if self.product >= 0 else 'stream'})"

    @property
    def makers(self) -> tuple[Side, ...]:
        """Layers whose output channels belong to the group."""
        return (*self.left, *self.right) if self.product >= 0 else self.left

    @property
    def heads(self) -> int:
        """Matrices that may differ."""
        return min(len(side.at) for side in (*self.left, *self.right))


@dataclass(frozen=True)
class ProductCurve:
    """A product, the layer that hears of it first, and its loss curve.

    Attributes
    ----------
    mixable : Mixable
    site : Site
    curve : Curve
    """

    mixable: Mixable
    site: Site
    curve: Curve

    def with_readers(self, read: Curve | None) -> Curve:
        """Return the curve of a group that layers read as well: errors add up, and the weakest axes go first."""
        return self.curve if read is None else Curve(self.curve.order, self.curve.error + read.error)

    def channels(self, number: int, units: Ints) -> Ints:
        """Return the output channels of the layer at a position that belong to units of the product."""
        channels = [s.at[:, units].ravel() for s in self.mixable.makers if s.site.number == number]
        return np.concatenate(channels) if channels else np.zeros(0, np.int64)


def silenced(site: Site, fits: list[Fit], channels: Ints) -> list[Fit]:
    """Return the fits of an ungrouped layer with some of its outputs zero."""
    if not channels.size:
        return fits
    (fit,) = fits
    w, b = fit.w.copy(), fit.b.copy()
    w[:, channels], b[channels] = 0.0, 0.0
    return [Fit(w, b)]
