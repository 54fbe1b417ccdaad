"""Whether two models are the same function of inputs that each takes in its own form."""

from __future__ import annotations

from onnxprune.model import Model
from onnxprune.proof.compare import compare
from onnxprune.runtime.session import Feeds, open_session

__all__ = ["difference"]


def difference(one: tuple[Model, Feeds], other: tuple[Model, Feeds]) -> float:
    """Return the greatest relative difference of the outputs of two models, each run on its own inputs.

    Raises
    ------
    RunError
        If onnxruntime doesn't run one of them.
    """
    left, right = (open_session(model).run(given) for model, given in (one, other))
    return max((compare(left[name], right[name]).error for name in left), default=0.0)
