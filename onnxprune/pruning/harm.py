"""What is said of a fit beside its figures: that it did harm, that its labels are doubtful, that another does more."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.calibration.agreement import wilson
from onnxprune.reconstruction.reconstruct import SegmentReport
from onnxprune.reconstruction.recover import Recovery

__all__ = ["farther", "noted", "set_back", "told_of"]

#: Share of samples on which a model should answer as the original does, or there is more to be done.
ALIKE = 0.85
#: So many times farther from the original than no fit: what differs less is chance.
WORSE = 1.1
#: Share of the labels that the original may contradict before a fit toward them is worth a word.
CONTRADICTED = 0.25

Figures = dict[str, Any]
Array = NDArray[Any]


def told_of(
    original: Figures | None,
    bare: Figures | None,
    recovery: Recovery,
    segments: Sequence[SegmentReport] = (),
) -> list[str]:
    """Return what there is to say of a fit.

    Parameters
    ----------
    original : dict or None
        The fitted model against the original, see `onnxprune.calibration.agreement.compare`; None where there was
        nothing to compare on.
    bare : dict or None
        The same of the model without any fit; None where nothing was fitted.
    recovery : Recovery
    segments : sequence of SegmentReport
        What came of fitting blocks of layers.
    """
    if original is None:
        return []
    tried = not segments or any(segment.before for segment in segments)  # there are gradients of one at least
    more = _more(original, recovery) if tried else []
    return more + _contradicted(original, recovery) + _worse(original, bare, recovery)


def noted(original: Iterable[Array], other: Iterable[Array], each: list[Array]) -> Iterator[Array]:
    """Pass on what another model gives, batch after batch, and keep the squared error of each sample.

    Parameters
    ----------
    original, other : iterable of array [samples, ...]
        As `onnxprune.calibration.agreement.Outputs` gives them; of integers each that differs is an error of 1.
    each : list
        Gets float64[samples] for each batch; it is empty in the end where both give entries of their own number, such
        as boxes, which can't be compared one by one.
    """
    alike = True
    for one, two in zip(original, other, strict=True):
        alike = alike and one.shape == two.shape
        if not alike:
            each.clear()
            yield two
            continue
        left, right = (a.astype(np.float64) if a.dtype.kind == "f" else a for a in (one, two))
        off = left != right  # nothing in both, such as -inf, is the same
        if left.dtype.kind == "f":
            off = np.square(np.subtract(right, left, out=np.zeros_like(left), where=off))
        each.append(off.reshape(len(one), -1).sum(axis=1).astype(np.float64))
        yield two


def farther(one: Sequence[Array], two: Sequence[Array], z: float = 2.0) -> bool:
    """Whether the squared errors of one model are larger than another's on the same samples, beyond chance.

    The mean of the differences is held against its standard error; errors that aren't numbers are larger. Where there
    are none of one of both nobody can say.

    Parameters
    ----------
    one, two : sequence of float64[samples]
    z : float
        Standard errors.

    Examples
    --------
    >>> few = np.array([1.0, 2.0, 1.5, 1.2])
    >>> farther([9 * few], [few]), farther([few + [1, -1, 1, 0]], [few]), farther([few * np.nan], [few])
    (True, False, True)
    """
    if not (one and two):
        return False
    left, right = np.concatenate(one), np.concatenate(two)
    gaps = np.subtract(left, right, out=np.zeros_like(left), where=left != right)
    chance = z * float(gaps.std(ddof=1)) / np.sqrt(len(gaps)) if len(gaps) > 1 else np.inf
    return not float(gaps.mean()) <= chance


def set_back(what: str, start: Figures, end: Figures) -> str:
    """Say that layers keep what they had before they were fitted together, and how far both are from the original.

    Parameters
    ----------
    what : str
        The layers.
    start, end : dict
        See `told_of`.
    """
    before, after = start["relative_error"], end["relative_error"]
    return (
        f"{what} keep the weights that they had before they were fitted together: on the samples set aside outputs are "
        f"{before:.3g} of their size from the original's with these, and {after:.3g} with the others."
    )


def _more(original: Figures, recovery: Recovery) -> list[str]:
    """Say what else there is for a model that answers otherwise than the original all too often."""
    same = original.get("agreement", 1.0)
    if same >= ALIKE or not recovery.together or recovery.whole:
        return []
    return [
        f"{1 - same:.0%} of the samples set aside are answered otherwise than by the original: --recover distill, "
        "which fits all layers together, may win back some of that in a few times the time."
    ]


def _contradicted(original: Figures, recovery: Recovery) -> list[str]:
    """Say so if a model was fitted to labels that the original gives too rarely to be sure that they are its own."""
    wrong = 1 - original["accuracy"]["before"] / 100 if "accuracy" in original else 0.0
    if not recovery.labelled or wrong <= CONTRADICTED:
        return []
    return [
        f"the labels contradict the original's own classes on {wrong:.0%} of the samples set aside, and the model was "
        "fitted to such labels: check them if the original is known to be right more often; --recover distill reads "
        "none."
    ]


def _worse(original: Figures, bare: Figures | None, recovery: Recovery) -> list[str]:
    """Say so if the model is better without any fit, so that no fit does harm unseen.

    True labels, where there are some, say what is better. Without them it is what is nearer to the original, but for
    a fit toward labels, which leaves the original's outputs on purpose.
    """
    if bare is None:
        return []
    if "accuracy" in original:
        after, before = original["accuracy"]["after"], bare["accuracy"]["after"]
        harm = wilson(after / 100, original["samples"])[1] < before / 100
        seen = f"{after:.1f} % are right, and without a fit {before:.1f} %"
    else:
        after, before = original["relative_error"], bare["relative_error"]
        harm = not recovery.labelled and 0 < after >= before * WORSE
        seen = f"outputs are {after:.3g} of their size from the original's, and without a fit {before:.3g}"
    advice = (
        "check the labels, or take --recover distill, which reads none"
        if recovery.labelled
        else "--recover none leaves it out"
    )
    return [f"the fit did harm: on the samples set aside {seen}; {advice}."] if harm else []
