"""Take a fit over to another file of the same network: layers of the same weights get the same new ones."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.errors import VerificationError
from onnxprune.graph.analysis import Analysis
from onnxprune.model import Model
from onnxprune.reconstruction.layer import weights_of, write
from onnxprune.reconstruction.layers import sites
from onnxprune.reconstruction.least_squares import Fit

__all__ = ["Refitted", "refitted_layers", "taken_over"]

Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class Refitted:
    """A layer that a fit has changed.

    Attributes
    ----------
    name : str
    stored : array
        The weight as it is stored.
    matrices : float64[blocks, width, outputs]
    biases : float64[blocks, outputs]
    rebiased : bool
        Whether the bias is another than before.
    """

    name: str
    stored: NDArray[Any]
    matrices: Matrix
    biases: Matrix
    rebiased: bool


def refitted_layers(before: Analysis, after: Model, fitted: Analysis) -> dict[str, Refitted]:
    """Return weight -> layer, for the layers that a fit has changed.

    Parameters
    ----------
    before : Analysis
    after : Model
        The fitted one, of the same shape.
    fitted : Analysis
        Of that.

    Raises
    ------
    VerificationError
        If anything else has changed.
    """
    new = {site.weight: site for site in sites(fitted)}
    layers: dict[str, Refitted] = {}
    explained = set[str]()
    for site in sites(before):
        if site.weight not in new:
            continue
        explained |= {site.weight, *([site.bias.name] if site.bias is not None else [])}
        was, now = weights_of(site, before.model), weights_of(new[site.weight], after)
        rebiased = not np.array_equal(was[1], now[1])
        if rebiased or not np.array_equal(was[0], now[0]):
            layers[site.weight] = Refitted(site.name, after.weight(site.weight), *now, rebiased)
    for name in before.model.names():
        if name not in explained and (name not in after or not _same(before.model, after, name)):
            raise VerificationError(
                f"The fit has changed {name!r}, which is no layer, so other files of the network can't follow; leave "
                "out the samples of this one."
            )
    return layers


def _same(one: Model, other: Model, name: str) -> bool:
    return one.weight(name).tobytes() == other.weight(name).tobytes()


def taken_over(
    analysis: Analysis,
    layers: Mapping[str, Refitted],
    weights: Mapping[str, str],
    present: Collection[str],
    source: str,
) -> Model:
    """Return a fork of a model whose layers have what was fitted in another file.

    Parameters
    ----------
    analysis : Analysis
    layers : mapping
        Hash of the weight as it was -> layer.
    weights : mapping
        Weight -> its hash, for those that the model has once.
    present : collection of str
        Hashes of all its weights.
    source : str
        The other file, for people.

    Raises
    ------
    VerificationError
        If the model has such a weight, but not as the same layer.
    """
    model = analysis.model.fork()
    own = {weights[site.weight]: site for site in sites(analysis) if site.weight in weights}
    for mark in layers.keys() & set(present):
        layer, site = layers[mark], own.get(mark)
        reason = "isn't one that can be fitted" if site is None else ""
        if site is not None:
            old, biases = weights_of(site, model)
            if old.shape != layer.matrices.shape:
                reason = "is used otherwise"
            elif site.adder is None and not np.array_equal(biases, layer.biases):
                reason = "can't have its new bias"
            else:
                write(model, site, [Fit(w, b) for w, b in zip(layer.matrices, layer.biases, strict=True)])
                if model.weight(site.weight).tobytes() != layer.stored.tobytes():
                    reason = "is used otherwise"
        if reason:
            raise VerificationError(
                f"{layer.name!r} was fitted in {source}; here the layer with this weight {reason}, so the files would "
                f"no longer be one network; leave out the samples of {source}."
            )
    return model
