"""Fine-tuning: all layers of a cut model together, toward true labels as well.

The loss is that of distillation over what layers give inside (`onnxprune.reconstruction.distill`), and beside it the
cross-entropy of the classes' distribution behind the logits ``z`` (classes,) of a sample of class ``c``,

    log sum exp(z) - z_c.

What the original gives inside keeps few labels from being learned by heart; what it gives at its end is left out, since
the labels say better.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.calibration.samples import Samples
from onnxprune.errors import CalibrationError
from onnxprune.graph.analysis import Analysis
from onnxprune.graph.kept import Masks
from onnxprune.reconstruction.distill import Truth, distill
from onnxprune.reconstruction.pace import Pace
from onnxprune.reconstruction.reconstruct import SegmentReport

__all__ = ["finetune"]

#: Odds of the true class, as a logarithm: its share is 1 in 32-bit floats.
SURE = 40.0


def finetune(
    fitted: Analysis, original: Analysis, dead: Masks, samples: Samples, *, pace: Pace,
    seed: int = 0, say: Callable[[str], None] | None = None,
) -> SegmentReport:  # fmt: skip
    """Fit all layers of a model together toward true labels; without them where held-out samples gain nothing by it.

    Parameters
    ----------
    fitted : Analysis
        Of a model of the original's shape, whose weights are changed in place: the analysis no longer knows them.
    original : Analysis
    dead : mapping
        Root dim -> which of its indices will be cut.
    samples : Samples
        With labels.
    pace : Pace
    seed : int
        Of the mini-batches: the same seed gives the same bytes.
    say : callable, optional
        Told of progress.

    Raises
    ------
    CalibrationError
        If the labels aren't classes of the model, one for each sample.
    """
    truth = _truth(original, samples)
    report = distill(fitted, original, dead, samples, pace=pace, seed=seed, say=say, truth=truth)
    if report.why or report.after < report.before:
        return report
    return distill(fitted, original, dead, samples, pace=pace, seed=seed, say=say)


def _truth(original: Analysis, samples: Samples) -> Truth:
    """Return the logits and what they should be, after checks."""
    logits, classes = _logits(original)
    labels = np.asarray(samples.labels)
    if labels.size != samples.count:
        raise CalibrationError(
            f"--recover finetune takes one number of a class for each of the {samples.count} samples, but the labels "
            f"have the shape {labels.shape}; give such labels, or use --recover distill."
        )
    labels = labels.reshape(-1)
    if labels.min() < 0 or labels.max() >= classes:
        raise CalibrationError(
            f"The labels run from {labels.min()} to {labels.max()}, but {logits!r} has {classes} classes, from 0 on; "
            "give numbers of these classes."
        )
    odds = np.zeros((samples.count, classes), np.float32)
    odds[np.arange(samples.count), labels.astype(np.int64)] = SURE
    return Truth(logits, odds)


def _logits(original: Analysis) -> tuple[str, int]:
    """Return the tensor of logits and the number of its classes: the first output, or what its Softmax reads."""
    output = original.model.proto.graph.output[0].name
    made: dict[str, Any] = {n: a.node for a in original.coupling.nodes for n in a.node.outputs}
    name, node = output, made.get(output)
    if node is not None and node.op in ("Softmax", "LogSoftmax"):
        name = node.inputs[0]
    shape: NDArray[Any] | tuple[int, ...] | None = original.tracer.types.get(name, (0, None))[1]
    if shape is None or len(shape) != 2 or shape[1] < 2:
        raise CalibrationError(
            f"--recover finetune needs a first output of classes, [samples, classes], but {output!r} is no such; use "
            "--recover distill, which needs no labels."
        )
    return name, int(shape[1])
