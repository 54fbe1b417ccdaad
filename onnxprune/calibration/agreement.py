"""How far a pruned model is from the original, on samples that no fit has seen."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.calibration.samples import Samples
from onnxprune.calibration.stream import stream_of
from onnxprune.errors import CalibrationError
from onnxprune.model import Model

__all__ = ["compare", "distance", "outputs", "paired", "wilson"]

Array = NDArray[Any]


def outputs(model: Model, samples: Samples, but: Collection[str] = ()) -> Array:
    """Return the first floating-point output over all samples, samples along axis 0; else the first of integers.

    Parameters
    ----------
    model : Model
    samples : Samples
    but : collection of str
        Outputs that aren't looked at.

    Raises
    ------
    CalibrationError
        If the model fails on them, or has no such output.
    """
    rows = []
    for values, count in zip(stream_of(model, samples).each(), samples.counts, strict=True):
        array = _first([v for n, v in values.items() if n not in but and isinstance(v, np.ndarray)])
        whole = array.ndim > 0 and array.shape[0] == count
        rows.append(array if whole else array[None])
    return np.concatenate(rows)


def _first(values: Sequence[Array]) -> Array:
    for array in values:
        if array.dtype.kind == "f":
            return array.astype(np.float64)
    for array in values:
        if array.dtype.kind in "iub":
            return array.astype(np.int64)
    raise CalibrationError("The model has no output of numbers to compare.")


def wilson(share: float, n: int, z: float = 1.96) -> tuple[float, float]:
    """Return the 95 % interval of a share seen in ``n`` trials (Wilson, JASA 1927)."""
    if n == 0:
        return 0.0, 1.0
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return float(max(centre - half, 0.0)), float(min(centre + half, 1.0))


def compare(original: Array, pruned: Array, labels: Array | None = None) -> dict[str, Any]:
    """Return figures of agreement.

    Parameters
    ----------
    original, pruned : float64 or int64 [samples, ...]
        Outputs; they are classes where one axis behind the samples is longer than 1, no more. Integers are numbers of
        classes, as ArgMax gives them, each for one position: they count as one-hot rows.
    labels : int array [samples], optional
        For true accuracy.

    Returns
    -------
    dict
        ``samples``, ``relative_error`` (root of the squared difference over that of the original), ``cosine`` (mean
        over samples); where they are classes ``agreement`` (same top-1) with
        ``agreement_interval`` (95 %) and ``kl`` (mean, nats); with labels ``accuracy`` (before,
        after, and the 95 % interval of the drop), in points.
    """
    if original.dtype.kind == "i":
        return _compare_numbers(original, pruned, labels)
    classes = sum(size > 1 for size in original.shape[1:]) == 1
    original, pruned = original.reshape(len(original), -1), pruned.reshape(len(pruned), -1)
    difference = float(np.linalg.norm(pruned - original))
    lengths = np.linalg.norm(original, axis=1) * np.linalg.norm(pruned, axis=1)
    cosine = (original * pruned).sum(axis=1) / np.maximum(lengths, 1e-30)
    n = len(original)
    figures: dict[str, Any] = {
        "samples": n,
        "relative_error": difference / max(float(np.linalg.norm(original)), 1e-30),
        "cosine": float(cosine.mean()),
    }
    if classes and n > 1:
        same = float((original.argmax(axis=1) == pruned.argmax(axis=1)).mean())
        p, q = _log_shares(original), _log_shares(pruned)
        figures["agreement"] = same
        figures["agreement_interval"] = list(wilson(same, n))
        figures["kl"] = float((np.exp(p) * (p - q)).sum(axis=1).mean())
        if labels is not None and len(labels) == n:
            truth = np.asarray(labels).reshape(n)
            figures["accuracy"] = _accuracy(original.argmax(axis=1) == truth, pruned.argmax(axis=1) == truth)
    return figures


def _accuracy(before: Array, after: Array) -> dict[str, Any]:
    """Return both accuracies, and the interval of what is lost, in points, from which items are right and wrong."""
    interval = paired(int((before & ~after).sum()), int((~before & after).sum()), before.size)
    points = 100 * float(before.mean()), 100 * float(after.mean())
    return {"before": points[0], "after": points[1], "drop_interval": [100 * end for end in interval]}


def paired(lost: int, won: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """Return the 95 % interval of the difference of two shares that are seen on the same ``n`` items.

    Parameters
    ----------
    lost, won : int
        Items that only the first, and only the second, gets right.
    n : int
    z : float

    References
    ----------
    Agresti and Min, "Simple improved confidence intervals for comparing matched proportions", Statistics in Medicine
    2005: half an item more in each of the four cells.
    """
    lost_, won_, n_ = lost + 0.5, won + 0.5, n + 2.0
    centre = (lost_ - won_) / n_
    half = z * float(np.sqrt(max(lost_ + won_ - (lost_ - won_) ** 2 / n_, 0.0))) / n_
    return centre - half, centre + half


def _compare_numbers(original: Array, pruned: Array, labels: Array | None) -> dict[str, Any]:
    n = len(original)
    original, pruned = original.reshape(n, -1), pruned.reshape(n, -1)
    same = float((original == pruned).mean())
    figures: dict[str, Any] = {
        "samples": n,
        "relative_error": float(np.sqrt(2 * (1 - same))),
        "cosine": same,
        "agreement": same,
        "agreement_interval": list(wilson(same, n)),
    }
    if labels is not None and labels.size == original.size:
        truth = np.asarray(labels).reshape(original.shape)
        figures["accuracy"] = _accuracy(original == truth, pruned == truth)
    return figures


def distance(original: Array, pruned: Array) -> float:
    """Return one figure of how far outputs are apart, to compare candidates by; less is nearer.

    The squared relative error, times the Kullback-Leibler divergence where the output is classes: the error alone
    doesn't see which class wins, and the divergence alone hangs on the few samples that the model is unsure of.
    """
    figures = compare(original, pruned)
    return float(figures["relative_error"] ** 2 * max(figures.get("kl", 1.0), 1e-12))


def _log_shares(rows: Array) -> Array:
    """Log-probabilities of rows that are probabilities already, or else logits."""
    if (rows >= 0).all() and np.allclose(rows.sum(axis=1), 1, atol=1e-3):
        return np.log(np.maximum(rows, 1e-12))
    top = rows - rows.max(axis=1, keepdims=True)
    return np.asarray(top - np.log(np.exp(top).sum(axis=1, keepdims=True)))
