"""Whether two models are the same function of inputs that each takes in its own form."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from onnxprune.model import Model
from onnxprune.proof.compare import compare
from onnxprune.proof.interior import Case
from onnxprune.proof.repeat import left_out, unrepeatable
from onnxprune.runtime.session import Feeds, open_session

__all__ = ["difference"]


def difference(one: tuple[Model, Feeds], other: tuple[Model, Feeds], tolerance: float) -> float:
    """Return the greatest relative difference of the outputs of two models, each run on its own inputs.

    What the first gives otherwise in each run is left out, if more than ``tolerance`` differs: kernels leave parts of a
    cache unwritten.

    Raises
    ------
    RunError
        If onnxruntime doesn't run one of them.
    """
    given, session = one[1], open_session(one[0])
    left, right = session.run(given), open_session(other[0]).run(other[1])
    error = _error(left, right)
    if error <= tolerance:
        return error
    (places,) = unrepeatable(session, [Case(given, left)], tolerance)
    return _error(left_out(left, places), left_out(right, places))


def _error(left: Mapping[str, Any], right: Mapping[str, Any]) -> float:
    return max((compare(left[name], right[name]).error for name in left), default=0.0)
