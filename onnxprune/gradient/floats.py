"""Models of half floats, and their samples, in 32 bits: gradients of half floats under- and overflow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import helper

from onnxprune.calibration.samples import Samples
from onnxprune.errors import CalibrationError, ModelError
from onnxprune.graph.analysis import Analysis, analyse
from onnxprune.graph.widen import HALF, has_halves, too_large, widen

__all__ = ["in_floats"]

Array = NDArray[Any]


def in_floats(analysis: Analysis, samples: Samples) -> tuple[Analysis, Samples]:
    """Return a model and its samples with all half floats in 32 bits; the same where there are none.

    Tensors keep their names, and nodes their positions.

    Raises
    ------
    CalibrationError
        If its weights are too large for that.
    """
    if not has_halves(analysis.types.values()):
        return analysis, samples
    return _widened(analysis), samples.taken(_wide)


def _widened(analysis: Analysis) -> Analysis:
    """Analyse a model of half floats as it is in 32 bits.

    Raises
    ------
    CalibrationError
        If its weights are too large for that, or its shapes don't agree then.
    """
    if too_large(analysis.model):
        raise CalibrationError(
            "gradients of half floats are taken in 32 bits, and the model has too many weights for that"
        )
    try:
        return analyse(widen(analysis.model), input_shapes=analysis.given)
    except ModelError as error:
        raise CalibrationError(f"gradients of half floats are taken in 32 bits; there {error}") from error


def _wide(batch: Mapping[str, Array]) -> dict[str, Array]:
    """Return arrays with half floats in 32 bits."""
    return {n: a.astype(np.float32) if _half(a) else a for n, a in batch.items()}


def _half(array: Array) -> bool:
    return array.dtype.kind in "fV" and helper.np_dtype_to_tensor_dtype(array.dtype) in HALF
