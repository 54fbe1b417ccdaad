"""Layers with more outputs than inputs, fitted as if they had no more outputs than inputs.

The targets of a layer ``y = W0^T x0`` (``W0`` (d, O), ``x0`` what it read in the original) lie in the d dimensions that
the rows of W0 span. With ``R R^T = W0 W0^T`` (R (d, k), k <= d) and ``Q = R^+ W0``, whose rows are orthonormal, is

    W0 = R Q,    y = Q^T (R^T x0),

so a fit V (d, k) of the targets ``R^T x0`` is the fit ``W = V Q = V R^+ W0`` of the targets y, with the same error, and
a ridge that pulls to R pulls W to W0. A vocabulary of 32,000 outputs is a matrix of d x d to a fit; W0 is read and
written a few outputs at a time.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.files.bodies import is_joint
from onnxprune.model import Model
from onnxprune.reconstruction.layers import Site
from onnxprune.reconstruction.sheets import gram_of, is_plain, sheets

__all__ = ["Narrow", "hush", "lean", "narrowed"]

Array = NDArray[Any]
Ints = NDArray[np.int64]
Matrix = NDArray[np.float64]

#: Outputs for each input from which on it pays.
MORE = 2
#: Entries of the matrix below which it doesn't.
LEAST = 1 << 16
#: Variances of outputs, as shares of the largest, that count as none, and below which a root isn't taken by Cholesky.
NONE, UNSOUND = 1e-13, 1e-10


def lean(sites: list[Site], model: Model) -> list[Site]:
    """Return layers, those marked that can be fitted as if they had fewer outputs.

    Their target must be what they themselves give in the original, in every batch of samples.
    """
    if any(is_joint(node) for node in model.proto.graph.node):
        return sites
    return [replace(s, lean=s.lean or _fits(s, model)) for s in sites]


def _fits(site: Site, model: Model) -> bool:
    view = site.view
    many = view.outputs >= MORE * view.width and view.outputs * view.width >= LEAST
    alone = site.total is None and not site.more and not site.clipped
    return many and alone and is_plain(site, model)


@dataclass(frozen=True)
class Narrow:
    """The weight of a layer as it is fitted; a `onnxprune.reconstruction.stored.Codec`.

    Attributes
    ----------
    site : Site
        The layer.
    root : float64[d, k]
        R.
    back : float64[k, d]
        R^+.
    """

    site: Site
    root: Matrix
    back: Matrix
    exact: bool = True

    @property
    def name(self) -> str:
        """The tensor that holds the weight."""
        return self.site.codec.name

    @property
    def tensors(self) -> tuple[str, ...]:
        """The same."""
        return (self.name,)

    def shape(self, model: Model) -> tuple[int, ...]:
        """Return the shape that is fitted."""
        return self.root.shape

    def read(self, model: Model) -> Matrix:
        """Return R."""
        return self.root

    def grid(self, model: Model) -> None:
        """Return None: any value can be written."""

    def write(self, model: Model, values: Array) -> None:
        """Put ``V R^+ W0`` into a model that holds W0, in the type that it has."""
        turn = np.asarray(values, np.float64) @ self.back
        old, view = model.weight(self.name), self.site.view
        new = np.empty(old.shape, old.dtype)
        for some, part in sheets(self.site, model):
            packed = view.pack((turn @ part)[None])
            if view.weight_axis == 1:
                new[some] = packed
            else:
                new[:, some] = packed
        model.put(self.name, new)

    def widened(self, model: Model, bias: Matrix) -> Matrix:
        """Return float64[O], the bias that a fit's bias float64[k] adds to the old one; the model holds W0 still."""
        size = self.site.view.outputs
        result = np.zeros(size)
        if self.site.bias is not None:
            old = np.broadcast_to(self.site.bias.read(model).reshape(-1), size)
            result += old * self.site.view.bias_factor
        if bias.any():
            turn = bias @ self.back
            for some, part in sheets(self.site, model):
                result[some] += turn @ part
        return result


def narrowed(site: Site, model: Model) -> Site:
    """Return a marked layer of a model as it is fitted: its weight is R, its bias zero."""
    gram = gram_of(site, model)
    root, back = _root(gram)
    view = replace(
        site.view,
        outputs=root.shape[1],
        pack=lambda matrices: matrices[0],
        unpack=lambda m: np.asarray(m)[None],
    )
    return replace(site, view=view, codec=Narrow(site, root, back), bias=None, own=False)


def _root(gram: Matrix) -> tuple[Matrix, Matrix]:
    """Return R with ``R R^T`` = gram, and its inverse, or its pseudoinverse where there is none."""
    try:
        root = np.linalg.cholesky(gram)
        sizes = np.square(root.diagonal())
        if sizes.min() > UNSOUND * sizes.max():
            return np.asarray(root), np.asarray(np.linalg.inv(root))
    except np.linalg.LinAlgError:
        pass
    sizes, axes = np.linalg.eigh(gram)
    some = sizes > NONE * max(float(sizes.max(initial=0.0)), 1e-300)
    if not some.any():
        some[-1] = True
    lengths = np.sqrt(np.maximum(sizes[some], 1e-300))
    return np.asarray(axes[:, some] * lengths), np.asarray((axes[:, some] / lengths).T)


def hush(site: Site, model: Model, channels: Ints) -> None:
    """Have outputs of a plain layer be zero."""
    value = np.array(model.weight(site.codec.name))
    value[channels if site.view.weight_axis == 1 else (slice(None), channels)] = 0
    model.put(site.codec.name, value)
    if site.bias is not None and site.own:
        bias = np.array(site.bias.read(model)).reshape(-1)
        bias[channels] = 0
        site.bias.write(model, bias)
