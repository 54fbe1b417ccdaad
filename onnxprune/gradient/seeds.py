"""Losses without labels: what the gradient of the output is, for a sample.

Where the output is a distribution over classes, a class ``c`` is drawn from the model's own distribution and the loss
is ``-log p_c``. The expectation of the squared gradient of that loss is the Fisher information, and its Hessian's
expectation as well: the second order of ``KL(p || p')`` around the model. (The gradient of that KL itself is zero
there, which is why a class is drawn.) Where the output is values, the loss is squared error in units of the output's
standard
deviation: the gradient is drawn as a standard normal vector, so that its second moment is the Gauss-Newton matrix.

References
----------
Martens, Grosse, "Optimizing Neural Networks with Kronecker-factored Approximate Curvature", arXiv 1503.05671, 5.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["LOGITS", "Seeds", "kind_of", "probabilities"]

Array = NDArray[Any]

#: Kind and axis of an output that is known to be logits at each position.
LOGITS = "logits", -1


def kind_of(y: Array) -> tuple[str, int]:
    """Tell what an output is, and which axis holds the classes.

    Parameters
    ----------
    y : array [samples, ...]
        Of one batch.

    Returns
    -------
    kind : str
        ``"probabilities"`` or ``"log-probabilities"`` where the last axis, or axis 1, sums to one; ``"logits"`` for
        [samples, 2 or more]; otherwise ``"values"``.
    axis : int
    """
    y = np.asarray(y, np.float64)
    for axis in dict.fromkeys((y.ndim - 1, 1)) if y.ndim >= 2 else ():
        if y.shape[axis] < 2:
            continue
        if (y >= 0).all() and np.allclose(y.sum(axis=axis), 1, atol=1e-3):
            return "probabilities", axis
        if (y <= 1e-6).all() and np.allclose(np.exp(y).sum(axis=axis), 1, atol=1e-3):
            return "log-probabilities", axis
    return ("logits", 1) if y.ndim == 2 and y.shape[1] >= 2 else ("values", y.ndim - 1)


def probabilities(y: Array, kind: str, axis: int) -> NDArray[np.float64]:
    """Return the distribution over classes behind an output, float64 of its shape."""
    y = np.asarray(y, np.float64)
    if kind != "probabilities":
        y = np.exp(y - y.max(axis=axis, keepdims=True))
    return np.asarray(y / np.maximum(y.sum(axis=axis, keepdims=True), 1e-300))


@dataclass
class Seeds:
    """Draws the gradient of the output.

    Attributes
    ----------
    kind : str
    axis : int
        Of the classes.
    scale : float
        Standard deviation of an output of values.
    rng : numpy.random.Generator
    """

    kind: str
    axis: int
    scale: float
    rng: np.random.Generator

    @classmethod
    def of(cls, outputs: Sequence[Array], seed: int) -> Seeds:
        """Look at the outputs of all batches."""
        kind, axis = kind_of(outputs[0])
        spread = float(np.sqrt(np.mean([np.asarray(y, np.float64).var() for y in outputs])))
        return cls(kind, axis, spread or 1.0, np.random.default_rng(seed))

    def draw(self, y: Array) -> Array:
        """Return one draw of the gradient of the loss with respect to the output, of its shape and type.

        For classes ``-(e_c - p)`` on logits, ``-e_c / p_c`` on probabilities and ``-e_c`` on their logarithms, one
        class for each sample (and position, where there are several).
        """
        if self.kind == "values":
            size = max(y.size // max(len(y) if y.ndim else 1, 1), 1)
            drawn = self.rng.standard_normal(y.shape) / (np.sqrt(size) * self.scale)
            return np.asarray(drawn, y.dtype)
        p = probabilities(y, self.kind, self.axis)
        heights = np.cumsum(p, axis=self.axis)
        u = self.rng.random(np.take(p, [0], axis=self.axis).shape) * np.take(heights, [-1], axis=self.axis)
        chosen = (heights <= u).sum(axis=self.axis, keepdims=True)
        one_hot = np.zeros_like(p)
        np.put_along_axis(one_hot, np.minimum(chosen, p.shape[self.axis] - 1), 1.0, axis=self.axis)
        if self.kind == "logits":
            return np.asarray(p - one_hot, y.dtype)
        if self.kind == "log-probabilities":
            return np.asarray(-one_hot, y.dtype)
        return np.asarray(-one_hot / np.maximum(p, 1e-12), y.dtype)
