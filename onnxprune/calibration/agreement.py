"""How far a pruned model is from the original, on samples that no fit has seen."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.calibration.labels import all_alike, check_labels
from onnxprune.calibration.replayed import ROOM, Replayed
from onnxprune.calibration.samples import Samples
from onnxprune.calibration.stream import stream_of
from onnxprune.errors import CalibrationError
from onnxprune.model import Model
from onnxprune.runtime.binding import declared, real_inputs

__all__ = ["Judge", "Outputs", "compare", "distance", "of_positions", "outputs", "paired", "wilson"]

Array = NDArray[Any]

#: Entries of outputs that are compared at a time.
ENTRIES = 1 << 23


def outputs(model: Model, samples: Samples, but: Collection[str] = ()) -> Array:
    """Return the first floating-point output over all samples, samples along axis 0; else the first of integers.

    It is computed as users have it: their sums of 8-bit integers may saturate.

    Parameters
    ----------
    model : Model
    samples : Samples
    but : collection of str
        Outputs that aren't looked at.

    Returns
    -------
    float array, of the model's type, or int64

    Raises
    ------
    CalibrationError
        If the model fails on them, or has no such output.
    """
    return Outputs(model, samples, but, served=True).whole()


def _rows(model: Model, samples: Samples, but: Collection[str], served: bool) -> Iterator[Array]:
    runs, along = stream_of(model, samples, served=served).each(), _along(model, samples)
    for values, count, valid in zip(runs, samples.counts, samples.valid, strict=True):
        arrays = {n: v for n, v in values.items() if n not in but and isinstance(v, np.ndarray)}
        array = _first([np.moveaxis(v, along.get(n, 0), 0) if v.ndim else v for n, v in arrays.items()])
        whole = array.ndim > 0 and array.shape[0] == count
        yield of_positions(array, valid) if whole else array[None]


def _along(model: Model, samples: Samples) -> dict[str, int]:
    """Return along which axis of each output samples lie, where that has the name of the axis of inputs."""
    graph = model.proto.graph
    axes = {v.name: own for v in real_inputs(graph) if (own := declared(v))}
    names = {axes[n][at] for n, at in (samples.along or {}).items() if n in axes}
    found = {}
    for value in graph.output:
        places = [n for n, own in enumerate(declared(value) or ()) if isinstance(own, str) and own in names]
        if len(places) == 1:
            found[value.name] = places[0]
    return found


def of_positions(array: Array, valid: Array | None) -> Array:
    """Return states of positions with those of padding set to zero, which nobody reads: they agree in all models."""
    if valid is None or array.ndim < 3 or array.dtype.kind != "f" or array.shape[: valid.ndim] != valid.shape:
        return array
    return np.where(valid.reshape(valid.shape + (1,) * (array.ndim - valid.ndim)), array, array.dtype.type(0))


class Outputs:
    """What `outputs` gives, batch after batch: held while there is room, else computed each time.

    Parameters
    ----------
    model : Model
    samples : Samples
    but : collection of str
    room : int
        Bytes.
    served : bool
        Compute as users have it: for what they are told, not for what is chosen by.
    """

    def __init__(
        self,
        model: Model,
        samples: Samples,
        but: Collection[str] = (),
        room: int = ROOM,
        *,
        served: bool = False,
    ) -> None:
        self._rows = Replayed(lambda: _rows(model, samples, but, served), lambda rows: rows.nbytes, room)

    def __iter__(self) -> Iterator[Array]:
        """Yield array [samples of the batch, ...]."""
        return iter(self._rows)

    def whole(self) -> Array:
        """Return array [samples, ...].

        Raises
        ------
        CalibrationError
            If their shapes differ from batch to batch, as those of positions do where texts are of several lengths.
        """
        if len(shapes := self.shapes()) > 1:
            raise CalibrationError(
                f"Outputs have several shapes, such as {shapes[0]} and {shapes[1]}; give samples of one size."
            )
        return np.concatenate(list(self))

    def shapes(self) -> list[tuple[int, ...]]:
        """Return the shapes that there are of one sample."""
        return list(dict.fromkeys(rows.shape[1:] for rows in self))

    def flat(self) -> Array:
        """Return array [entries]."""
        return np.concatenate([rows.reshape(-1) for rows in self])

    def doubts(self, labels: Array | None) -> list[str]:
        """Say what speaks against samples whose answers these are: all are the same, or not those of the labels."""
        alike = all_alike(self)
        if labels is None:
            return alike
        if len(shapes := self.shapes()) > 1:
            sizes = f"{list(shapes[0])} and {list(shapes[1])}"
            none = (
                f"the labels aren't one class for each sample (outputs are {sizes}): no accuracy was measured"
            )
            return [*alike, none]
        return [*alike, *check_labels(self.whole(), labels)]


@dataclass(frozen=True)
class Judge:
    """What the original gives on samples that no fit saw.

    Attributes
    ----------
    samples : Samples
    original : Outputs
    """

    samples: Samples
    original: Outputs

    @classmethod
    def of(cls, model: Model, samples: Samples | None, notes: list[str]) -> Judge | None:
        """Hold the samples' labels against the original, so that wrong ones are refused before the work.

        Parameters
        ----------
        model : Model
        samples : Samples or None
            None: there is nothing to judge by.
        notes : list of str
            Gets what there is to say of them.

        Raises
        ------
        CalibrationError
            If the labels aren't the model's.
        """
        if samples is None:
            return None
        original = Outputs(model, samples, served=True)
        notes += original.doubts(samples.labels)
        return cls(samples, original)

    def of_other(self, model: Model) -> dict[str, Any]:
        """Compare another model, see `compare`."""
        return compare(self.original, Outputs(model, self.samples, room=0, served=True), self.samples.labels)


def _first(values: Sequence[Array]) -> Array:
    for array in values:
        if array.dtype.kind == "f":
            return array
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


def compare(
    original: Array | Iterable[Array], pruned: Array | Iterable[Array], labels: Array | None = None
) -> dict[str, Any]:
    """Return figures of agreement.

    Parameters
    ----------
    original, pruned : float or int64 [samples, ...], or iterable of these
        Outputs, whole or batch after batch, so that they need not be in memory at once; they are classes where one
        axis behind the samples is longer than 1, no more. Integers are numbers of classes, as ArgMax gives them, each
        for one position: they count as one-hot rows. Where both give entries of their own number, such as boxes, what
        one gives and the other doesn't is different.
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
    both = zip(*([a] if isinstance(a, np.ndarray) else a for a in (original, pruned)), strict=True)
    pairs = (_filled(one, two) for one, two in both)
    parts: list[_Figures] = []
    classes = False
    for one, two in _in_pieces(pairs):
        if one.dtype.kind == "i":
            return _compare_numbers([(one, two), *pairs], labels)
        classes = (classes or not parts) and sum(size > 1 for size in one.shape[1:]) == 1
        parts.append(_Figures.of(one, two, classes))
    return _figures(parts, labels, classes)


def _filled(one: Array, two: Array) -> tuple[Array, Array]:
    """Return both in one shape, where they hold as many entries as models chose, such as boxes.

    What one gives and the other doesn't is different: nothing in place of floats, and of numbers none that is one.
    """
    if one.shape == two.shape or one.ndim != two.ndim:
        return one, two
    shape = np.maximum(one.shape, two.shape)
    ends = (0, 0) if one.dtype.kind == "f" else (np.iinfo(np.int64).min, np.iinfo(np.int64).max)
    filled = (
        np.pad(a, [(0, most - size) for size, most in zip(a.shape, shape, strict=True)], constant_values=end)
        for a, end in zip((one, two), ends, strict=True)
    )
    return next(filled), next(filled)


def _in_pieces(pairs: Iterable[tuple[Array, Array]]) -> Iterator[tuple[Array, Array]]:
    """Yield floats in pieces of about `ENTRIES`: small batches put together, large ones taken apart."""
    waiting: list[tuple[Array, Array]] = []
    for pair in pairs:
        size = prod(pair[0].shape[1:])
        if pair[0].dtype.kind == "i":
            yield pair
            continue
        if waiting and waiting[0][0].shape[1:] != pair[0].shape[1:]:
            yield _joined(waiting)
        waiting.append(pair)
        if size * sum(len(one) for one, _ in waiting) < ENTRIES:
            continue
        one, two = _joined(waiting)
        step = max(ENTRIES // max(size, 1), 1)
        for first in range(0, len(one), step):
            yield one[first : first + step], two[first : first + step]
    if waiting:
        yield _joined(waiting)


def _joined(waiting: list[tuple[Array, Array]]) -> tuple[Array, Array]:
    one, two = (
        arrays[0] if len(arrays) == 1 else np.concatenate(arrays) for arrays in zip(*waiting, strict=True)
    )
    waiting.clear()
    return one, two


@dataclass(frozen=True)
class _Figures:
    """What a few samples tell: norms of the difference and of the original; of each sample the rest."""

    gap: float
    size: float
    cosine: Array
    chosen: Array  # int64[2, samples], the classes that the original and the other give
    kl: Array

    @classmethod
    def of(cls, original: Array, pruned: Array, classes: bool) -> _Figures:
        one, two = (np.asarray(a, np.float64).reshape(len(a), -1) for a in (original, pruned))
        if np.isnan(one).any() or np.isposinf(one).any():
            raise CalibrationError(
                "The original gives NaN or infinity on the samples; look for broken samples, or for preprocessing that "
                "the model doesn't expect."
            )
        chosen, kl = np.zeros((2, 0), np.int64), np.zeros(0)
        if classes:
            chosen = np.stack([one.argmax(axis=1), two.argmax(axis=1)])
            p, q = _log_shares(one), _log_shares(two)
            apart = np.subtract(p, q, out=np.zeros_like(p), where=~np.isneginf(p))
            kl = (np.exp(p) * apart).sum(axis=1)
        ruled_out = np.isneginf(one) & np.isneginf(two)
        one, two = np.where(ruled_out, 0, one), np.where(ruled_out, 0, two)
        lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(two, axis=1)
        cosine = (one * two).sum(axis=1) / np.maximum(lengths, 1e-30)
        cosine[~one.any(axis=1) & ~two.any(axis=1)] = 1  # nothing in both is the same
        return cls(float(np.linalg.norm(two - one)), float(np.linalg.norm(one)), cosine, chosen, kl)


def _figures(parts: Sequence[_Figures], labels: Array | None, classes: bool) -> dict[str, Any]:
    cosine = np.concatenate([part.cosine for part in parts])
    n = len(cosine)
    gap, size = (float(np.linalg.norm(norms)) for norms in ([p.gap for p in parts], [p.size for p in parts]))
    figures: dict[str, Any] = {
        "samples": n,
        "relative_error": gap / max(size, 1e-30),
        "cosine": float(cosine.mean()),
    }
    if classes and n > 1:
        before, after = np.concatenate([part.chosen for part in parts], axis=1)
        same = float((before == after).mean())
        figures["agreement"] = same
        figures["agreement_interval"] = list(wilson(same, n))
        figures["kl"] = float(np.concatenate([part.kl for part in parts]).mean())
        if labels is not None and labels.size == n:
            truth = np.asarray(labels).reshape(n)
            figures["accuracy"] = _accuracy(before == truth, after == truth)
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


def _compare_numbers(pairs: Sequence[tuple[Array, Array]], labels: Array | None) -> dict[str, Any]:
    n = sum(len(one) for one, _ in pairs)
    original, pruned = (np.concatenate([pair[at].reshape(-1) for pair in pairs]) for at in (0, 1))
    same = float((original == pruned).mean())
    figures: dict[str, Any] = {
        "samples": n,
        "relative_error": float(np.sqrt(2 * (1 - same))),
        "cosine": same,
        "agreement": same,
        "agreement_interval": list(wilson(same, n)),
    }
    if labels is not None and labels.size == original.size:
        truth = np.asarray(labels).reshape(-1)
        figures["accuracy"] = _accuracy(original == truth, pruned == truth)
    return figures


def distance(original: Array | Iterable[Array], pruned: Array | Iterable[Array]) -> float:
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
