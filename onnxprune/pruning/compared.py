"""A cut model beside the original, on samples that no fit has seen: by the first output that the cut reaches."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import tee
from typing import Any

from numpy.typing import NDArray

from onnxprune import granularity
from onnxprune.calibration.agreement import Outputs, compare
from onnxprune.calibration.samples import Samples
from onnxprune.gradient.tape import float_type
from onnxprune.graph.analysis import Analysis
from onnxprune.graph.kept import Kept
from onnxprune.journey.run import Run
from onnxprune.model import Model
from onnxprune.options.pruning import Options
from onnxprune.pruning.harm import noted
from onnxprune.pruning.source import Reduced

__all__ = ["agreement", "given_by"]


def agreement(
    run: Run[Options], analysis: Analysis, removed: Mapping[str, NDArray[Any]], aside: Samples | None,
    dense: list[Outputs], each: list[NDArray[Any]] | None = None,
) -> dict[str, Any] | None:  # fmt: skip
    """Compare a model without some units with the original, on samples set aside; None where there are none.

    Parameters
    ----------
    run : Run
    analysis : Analysis
        Of the model that is cut.
    removed : mapping
        Group -> units that go.
    aside : Samples or None
    dense : list of Outputs
        The original's; where it is empty they are put into it.
    each : list, optional
        Gets the squared errors of samples, see `noted`.
    """
    if aside is None:
        return None
    with run.stage("compare"):
        cut, but = granularity.load().cut(analysis, removed), {*analysis.coupling.opened}
        kept = Kept(analysis.coupling, analysis.grouping.dead(removed))
        if not dense:
            dense.append(given_by(run, analysis, aside))
        original = dense[0]
        if aside.labels is None and (spared := _spared(analysis, kept)):
            but |= spared
            original = Outputs(_teacher(run), aside, but, served=True)
        small = Outputs(cut.model, aside.taken(kept.take), but, room=0, served=True)
        if each is None:
            return compare(original, small, aside.labels)
        one, two = tee(original)
        return compare(one, noted(two, small, each), aside.labels)


def given_by(run: Run[Options], analysis: Analysis, aside: Samples) -> Outputs:
    """Return what the original gives on samples set aside, against which their labels are held."""
    given = Outputs(_teacher(run), aside, analysis.coupling.opened, served=True)
    run.notes += given.doubts(aside.labels)
    return given


def _teacher(run: Run[Options]) -> Model:
    return run.teacher if isinstance(run, Reduced) else run.model


def _spared(analysis: Analysis, kept: Kept) -> set[str]:
    """Return the outputs that a cut doesn't reach, where the one to be compared is of them and others aren't."""
    types, reached = analysis.types, kept.reached()
    names = [v.name for v in analysis.model.proto.graph.output if v.name not in analysis.coupling.opened]
    floats = [n for n in names if float_type(types.get(n, 0))]
    spared = {n for n in floats if n not in reached}
    return spared if floats and floats[0] in spared and len(spared) < len(floats) else set()
