"""How far all that a model gives is from what another gave, as one figure that adds up over small causes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.calibration.agreement import of_positions
from onnxprune.calibration.samples import Samples
from onnxprune.calibration.stream import stream_of
from onnxprune.model import Model

__all__ = ["Ends"]

Array = NDArray[Any]
#: Outputs that are held, in bytes; larger ones are computed each time.
ROOM = 1 << 28


class Ends:
    """What a model gives on samples, all outputs of floats.

    Parameters
    ----------
    model : Model
    samples : Samples
    """

    def __init__(self, model: Model, samples: Samples) -> None:
        self._given = model, samples
        self._held: list[dict[str, Array]] = []

    def _rows(self) -> Iterator[dict[str, Array]]:
        if self._held:
            yield from self._held
            return
        held: list[dict[str, Array]] = []
        size = 0
        for made in _ends(*self._given):
            size += sum(a.nbytes for a in made.values())
            if size <= ROOM:
                held.append(made)
            yield made
        self._held = held if size <= ROOM else []

    def distance(self, model: Model) -> float:
        """Return the squared relative error of another model's outputs, the mean over outputs.

        To the second order errors of different causes, which know nothing of each other, add up in it. Unlike the
        divergence of classes it doesn't hang on the few samples of which a model is unsure.

        Returns
        -------
        float
            NaN where no output of floats has the same shape in both.
        """
        gaps: dict[str, float] = {}
        sizes: dict[str, float] = {}
        for one, two in zip(self._rows(), _ends(model, self._given[1]), strict=True):
            for name, array in one.items():
                if name in two and two[name].shape == array.shape:
                    gap = two[name].astype(np.float64) - array
                    gaps[name] = gaps.get(name, 0.0) + float(np.square(gap).sum())
                    sizes[name] = sizes.get(name, 0.0) + float(np.square(array.astype(np.float64)).sum())
                else:
                    sizes[name] = np.nan
        shares = [
            gaps[n] / size for n, size in sizes.items() if size > 0 and np.isfinite(gaps.get(n, np.nan))
        ]
        return float(np.mean(shares)) if shares else np.nan


def _ends(model: Model, samples: Samples) -> Iterator[dict[str, Array]]:
    runs = stream_of(model, samples).each()
    for values, valid in zip(runs, samples.valid, strict=True):
        arrays = {n: v for n, v in values.items() if isinstance(v, np.ndarray) and v.dtype.kind == "f"}
        yield {n: of_positions(a, valid) for n, a in arrays.items()}
