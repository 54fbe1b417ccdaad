"""Gradual pruning: a cut is reached in steps, and units are ranked again by what each step has left.

Step ``k`` of ``n`` leaves ``left ** (k / n)`` of the model, so each takes the same share of what the one before left.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace

from onnxprune.errors import NothingToPrune
from onnxprune.journey.run import Run
from onnxprune.options.pruning import Options
from onnxprune.pruning.decision import Decision, Limit, decide
from onnxprune.pruning.saliency import Saliency

__all__ = ["decide_in_steps", "schedule"]


def decide_in_steps(run: Run[Options], saliency: Saliency, limit: Limit) -> Decision:
    """Decide what goes in the end, after ``--steps`` on the way.

    Raises
    ------
    NothingToPrune, NotFaster
        As `decide`; a step on the way that can't take anything is left out.
    """
    rankings = saliency.rankings(limit)
    steps = run.options.steps if run.options.calib is not None else 1
    for number, early in enumerate(schedule(limit, steps), 1):
        with contextlib.suppress(NothingToPrune), run.stage(f"step {number}"):
            saliency.remeasure(decide(run, saliency.groups, rankings, early))
            rankings = saliency.rankings(limit)
    return decide(run, saliency.groups, rankings, limit)


def schedule(limit: Limit, steps: int) -> Iterator[Limit]:
    """Yield the limits of the steps before the last; nothing is timed on the way."""
    shares = limit.budgets.shares(limit.targets) if steps > 1 else ()
    for step in range(1, steps):
        far = step / steps
        targets = tuple(replace(t, value=t.value**far) for t in shares)
        ratio = 1 - (1 - (limit.ratio or 0.0)) ** far
        yield replace(limit, ratio=ratio, targets=targets, timed=False)
