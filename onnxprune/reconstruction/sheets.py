"""The matrix of a layer in sheets of a few outputs, so that a vocabulary of outputs is never in memory at once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.model import Model
from onnxprune.reconstruction.layers import Site
from onnxprune.reconstruction.stored import Floats

__all__ = ["gram_of", "is_plain", "sheets"]

Array = NDArray[Any]
Matrix = NDArray[np.float64]

#: Entries of a sheet.
ENTRIES = 1 << 22


def is_plain(site: Site, model: Model) -> bool:
    """Whether a layer's weight is one matrix of floats, as it stands in the file or on its side."""
    view = site.view
    if not isinstance(site.codec, Floats) or view.blocks * view.taps != 1 or view.factors:
        return False
    return len(site.codec.shape(model)) == 2


def sheets(site: Site, model: Model) -> Iterator[tuple[slice, Matrix]]:
    """Yield runs of outputs of a plain layer, each with its matrix float64[d, outputs of the run]."""
    view = site.view
    stored = np.asarray(model.weight(site.codec.name))
    step = max(ENTRIES // max(view.width, 1), 1)
    for first in range(0, view.outputs, step):
        some = slice(first, min(first + step, view.outputs))
        part = stored[some] if view.weight_axis == 1 else stored[:, some]
        yield some, np.asarray(view.unpack(np.asarray(part, np.float64))[0])


def gram_of(site: Site, model: Model) -> Matrix:
    """Return float64[d, d], products of a plain layer's regressors over its outputs: ``W W^T``."""
    total = np.zeros((site.view.width, site.view.width))
    for _, part in sheets(site, model):
        total += part @ part.T
    return total
