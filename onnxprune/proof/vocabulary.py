"""The right side of law 1 for ids: the original, in which lookups read another id for one that is gone."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from onnxprune.graph.vocabulary import Vocabulary
from onnxprune.model import Model

__all__ = ["cleaned"]


def cleaned(vocabulary: Vocabulary, keep: NDArray[np.int64], unk: int) -> Model:
    """Return the original in which lookups read ``unk`` for an id that isn't kept."""
    clean = np.full(vocabulary.size, unk, np.int64)
    clean[keep] = keep
    return vocabulary.mapped(vocabulary.analysis.model.fork(), "clean", clean)
