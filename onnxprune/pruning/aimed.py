"""What was asked holds in the end: where a fitted model has too much more goes, and what still misses is refused.

Costs say what weights that stay take, and a cut model is counted for the nodes and constants beside them (`Budgets`).
What fits add, such as biases, is known only after them; times differ from one run to the next.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune import granularity
from onnxprune.errors import NothingToPrune, many
from onnxprune.journey.run import Run
from onnxprune.model import Model
from onnxprune.options.pruning import Options
from onnxprune.pruning.budgets import Budgets
from onnxprune.pruning.decision import Decision, Limit, decide
from onnxprune.pruning.report import Report, judged
from onnxprune.pruning.saliency import Candidate, Saliency
from onnxprune.report.sentences import speed_lines

__all__ = ["Judge", "fitted", "met"]

#: From a report to the verdicts on its targets.
Judge = Callable[[Report], list[dict[str, Any]]]

#: Fits more than one until a fitted model is as large as asked; what the first adds is known for the second.
AGAIN = 2


def fitted(run: Run[Options], saliency: Saliency, limit: Limit, decision: Decision) -> Candidate:
    """Return a decision with its layers fitted; where fits add so much that targets are missed, one that goes further.

    Parameters
    ----------
    run : Run
    saliency : Saliency
    limit : Limit
        What the decision meets without them.
    decision : Decision

    Raises
    ------
    NothingToPrune, NotFaster
        As `decide`.
    """
    candidate = saliency.refit(decision)
    if candidate.fit is None:
        return candidate
    for _ in range(AGAIN):
        if not limit.budgets.fitted_over(limit.targets, candidate.decision.removed, partial(_cut, candidate)):
            break
        run.say("choose again, with what the fit has added")
        decision = decide(run, saliency.groups, saliency.rankings(limit), limit)
        candidate = saliency.refit(decision)
    return candidate


def _cut(candidate: Candidate) -> Model:
    cut = granularity.load().cut(candidate.analysis, candidate.decision.removed)
    return candidate.restored(cut.model)


def met(
    options: Options, budgets: Budgets, removed: Mapping[str, NDArray[np.int64]], report: Report
) -> list[dict[str, Any]]:
    """Return the verdicts on all targets, see `onnxprune.pruning.report.judged`.

    Raises
    ------
    NothingToPrune
        If one doesn't hold.
    """
    verdicts = judged(options, report, budgets, removed)
    missed = [line for line in verdicts if not line["holds"]]
    if missed:
        said = "; ".join(speed_lines(report.latency, missed)[-len(missed) :])
        back = [entry["group"] for entry in report.put_back]
        why, advice = "", "ask for less"
        if back:
            why = f" ({many(len(back), 'group')} put back, as the cut doesn't verify: {back[0]} first)"
            advice = "--ignore those, so that others lose more, or ask for less"
        raise NothingToPrune(f"The result is sound, but {said}{why}, so nothing was written; {advice}.")
    return verdicts
