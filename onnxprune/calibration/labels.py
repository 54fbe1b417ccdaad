"""Whether samples and their labels can tell of a model: what is measured with others says nothing."""

from __future__ import annotations

import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxprune.errors import CalibrationError
from onnxprune.runtime.binding import declared

__all__ = ["all_alike", "check_labels", "classes_of", "numbers"]

#: Shares of samples on which the original is right, at most, and would be if the labels were moved by one, at least,
#: for them to be refused.
WRONG, SHIFTED = 0.25, 0.5
#: So many of few labels may be right after a move by chance, if that is likelier than this.
CHANCE = 0.01
#: A share of right samples that is less likely than this for an original that guesses is worth a word.
UNLIKELY = 1e-3
#: So are labels of which as many would be right in a random order, if that is likelier than this, where the original
#: is right on this share at most, of this many labels at least.
BY_CHANCE, POOR, ENOUGH = 0.05, 0.55, 30


def all_alike(answers: Iterable[NDArray[Any]]) -> list[str]:
    """Say if answers, arrays [samples of a batch, ...], are the same for all samples: then others agree too easily."""
    first, count = None, 0
    for rows in answers:
        first, count = rows[:1] if first is None else first, count + len(rows)
        if first.shape[1:] != rows.shape[1:] or not np.allclose(rows, first, rtol=1e-4, equal_nan=True):
            return []
    if count < 2:
        return []
    return [
        f"the model answers the same on all {count} samples, so what is measured on them says next to nothing"
    ]


def numbers(labels: Any, key: str) -> NDArray[Any]:
    """Return labels, if they are numbers of classes at all; whole ones as int64, as others overflow when moved.

    Raises
    ------
    CalibrationError
        If they are texts, have fractions, or hold NaN or infinity.
    """
    array = np.atleast_1d(np.asarray(labels))
    if array.dtype.kind not in "biuf":
        raise CalibrationError(
            f"The labels {key!r} are {array.dtype}, and not numbers; give the number of each sample's class, from 0 on."
        )
    odd = array[~np.isfinite(array) | (array != np.floor(array))]
    if odd.size:
        raise CalibrationError(
            f"The labels {key!r} hold {odd.flat[0]}, which is the number of no class; give whole numbers from 0 on."
        )
    return array if array.dtype.kind == "f" else array.astype(np.int64)


def classes_of(labels: NDArray[Any], key: str, outputs: Iterable[onnx.ValueInfoProto]) -> NDArray[Any]:
    """Return the numbers of classes where labels are one-hot rows of them: all 0 but for a 1, as long as an output."""
    if labels.ndim != 2 or labels.shape[1] < 2 or not np.isin(labels, (0, 1)).all():
        return labels
    scores = [[size for size in (declared(value) or ())[1:] if size != 1] for value in outputs]
    if [labels.shape[1]] not in scores or not (labels.sum(axis=1) == 1).all():
        return labels
    warnings.warn(
        f"the labels {key!r} are a row of 0 and a 1 for each sample, and are taken for the classes that the 1 is at",
        stacklevel=2,
    )
    return np.asarray(labels.argmax(axis=1))


def check_labels(original: NDArray[Any], labels: NDArray[Any]) -> list[str]:
    """Hold labels against the classes that the original gives.

    Parameters
    ----------
    original : float64 [samples, ..., classes, ...] or int64
        Its outputs on the samples of the labels: scores where one axis behind the samples is longer than 1, or numbers
        of classes; else nothing is said.
    labels : array [samples]

    Returns
    -------
    list of str
        What looks wrong, a sentence each.

    Raises
    ------
    CalibrationError
        If they aren't numbers of its classes, or most of them are off by one.
    """
    n = len(original)
    if original.dtype.kind != "f":
        if labels.size == original.size:
            chosen, truth = original.reshape(-1), labels.reshape(-1)
            _refuse_moved(chosen, truth, max(np.unique([chosen, truth]).size, 2), "as the model has them")
        return []
    if sum(size > 1 for size in original.shape[1:]) != 1 or labels.size != n:
        shapes = f"{list(labels.shape)}, the output {list(original.shape)}"
        return [f"the labels aren't one class for each sample (they are {shapes}): no accuracy was measured"]
    scores, truth = original.reshape(n, -1), labels.reshape(n)
    classes, chosen = scores.shape[1], scores.argmax(axis=1)
    right = float(np.mean(chosen == truth))
    _refuse_moved(chosen, truth, classes, f"from 0 to {classes - 1} in the model's order")
    if truth.min() < 0 or truth.max() >= classes:
        raise CalibrationError(
            f"The labels go from {truth.min()} to {truth.max()}, but the model gives {classes} classes, 0 to "
            f"{classes - 1}; give the numbers of its classes."
        )
    if _at_most(round(right * n), n, 1 / classes) < UNLIKELY:
        return [
            f"the original is right on {right:.1%} of {n} labels, less than a guess among {classes} classes would be: "
            "they seem to be the labels of something else, and no accuracy can be claimed with them"
        ]
    if n < ENOUGH or right > POOR:
        return []
    most = float(np.unique(truth, return_counts=True)[1].max()) / n
    if right <= WRONG and (renamed := _renamed(chosen, truth)) >= max(SHIFTED, most + WRONG):
        return [
            f"the original is right on {right:.1%} of {n} labels, and on {renamed:.1%} with classes in another order: "
            "they seem to count classes otherwise than the model, and no accuracy can be claimed with them"
        ]
    by_chance = _by_chance(chosen, truth)
    if by_chance and 1 - _at_most(round(right * n) - 1, n, by_chance) > BY_CHANCE:
        return [
            f"the original is right on {right:.1%} of {n} labels, no more than on the same labels in any order "
            f"({by_chance:.1%}): they seem to be those of other samples, and no accuracy can be claimed with them"
        ]
    return []


def _renamed(chosen: NDArray[Any], truth: NDArray[Any]) -> float:
    """Return the share of labels that are right once each class is called what most of every second label call it."""
    names: dict[int, Counter[int]] = defaultdict(Counter)
    for said, label in zip(chosen[::2].tolist(), truth[::2].tolist(), strict=True):
        names[said][label] += 1
    pairs = zip(chosen[1::2].tolist(), truth[1::2].tolist(), strict=True)
    return float(
        np.mean([said in names and names[said].most_common(1)[0][0] == label for said, label in pairs])
    )


def _by_chance(chosen: NDArray[Any], truth: NDArray[Any]) -> float:
    """Return the share of labels that would be right in any order; 0 where one class is all there is on a side."""
    classes, at = np.unique(np.concatenate([chosen, truth]), return_inverse=True)
    one, two = (np.bincount(part, minlength=len(classes)) / len(truth) for part in np.split(at, 2))
    return 0.0 if max(one.max(), two.max()) == 1 else float(one @ two)


def _refuse_moved(chosen: NDArray[Any], truth: NDArray[Any], classes: int, which: str) -> None:
    """Refuse labels of which most are right once they are moved by one, and few as they are."""
    n, right = len(chosen), float(np.mean(chosen == truth))
    for by, where in ((1, "below"), (-1, "above")):
        hits = int(np.sum(chosen == truth + by))
        moved, by_chance = hits / n, 1 - _at_most(hits - 1, n, 1 / classes)
        if right <= WRONG and moved >= SHIFTED and by_chance < CHANCE:
            raise CalibrationError(
                f"The labels are one {where} the model's classes: the original is right on {right:.1%} of them as they "
                f"are, and on {moved:.1%} with {by:+d}; give labels {which}."
            )


def _at_most(hits: int, n: int, share: float) -> float:
    """Return how likely so many hits or fewer are (binomial)."""
    k = np.arange(hits + 1)
    logs = np.cumsum([0.0, *np.log(np.arange(1, n + 1))])
    terms = logs[n] - logs[k] - logs[n - k] + k * np.log(share) + (n - k) * np.log1p(-share)
    return float(np.exp(terms).sum())
