"""What is said of a fit beside its figures: that it did harm, that its labels are doubtful, that another does more."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from onnxprune.calibration.agreement import wilson
from onnxprune.reconstruction.reconstruct import SegmentReport
from onnxprune.reconstruction.recover import Recovery

__all__ = ["told_of"]

#: Share of samples on which a model should answer as the original does, or there is more to be done.
ALIKE = 0.85
#: So many times farther from the original than no fit: what differs less is chance.
WORSE = 1.1
#: Share of the labels that the original may contradict before a fit toward them is worth a word.
CONTRADICTED = 0.25

Figures = dict[str, Any]


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
        harm = not recovery.labelled and before * WORSE <= after
        seen = f"outputs are {after:.3g} of their size from the original's, and without a fit {before:.3g}"
    advice = (
        "check the labels, or take --recover distill, which reads none"
        if recovery.labelled
        else "--recover none leaves it out"
    )
    return [f"the fit did harm: on the samples set aside {seen}; {advice}."] if harm else []
