"""Open the width of the streams that LayerNorm reads: its norms become RMS norms, whose width is cut exactly."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from onnx import TensorProto

from onnxprune.graph.analysis import Analysis
from onnxprune.graph.group_types import Group
from onnxprune.graph.space import solve
from onnxprune.model import Model
from onnxprune.rotation.streams import NormStream, streams
from onnxprune.runtime.session import Feeds

__all__ = ["OpenWidths", "compared", "open_widths"]

#: What the outputs may differ by where weights that are stored as halves are written anew: four times their rounding.
HALVES = 4 * 2.0**-11


@dataclass
class OpenWidths:
    """An analysis with more groups, or the one that there was.

    Attributes
    ----------
    analysis : Analysis
        Of a model that computes what the original does; its `undo` puts back what nobody cut.
    notes : list of str
        What was rewritten, or why not.
    """

    analysis: Analysis
    notes: list[str] = field(default_factory=list)


def open_widths(
    analysis: Analysis,
    again: Callable[[Model], Analysis],
    picked: Callable[[Analysis], Iterable[Group]],
    *,
    inputs: Sequence[Feeds] = (),
    check: bool = True,
) -> OpenWidths:
    """Rewrite the norms whose width alone keeps a stream whole, where groups that may be cut come of it.

    Parameters
    ----------
    analysis : Analysis
    again : callable
        Analyses a model as that one was.
    picked : callable
        Returns the groups of an analysis that may be cut.
    inputs : sequence of dict
        To compare on, besides random ones.
    check : bool
        Compare the rewritten model with the original, at several sizes of the dynamic axes; where that doesn't show
        that they are equal, the original stays.
    """
    whole = _kept_whole(analysis)
    wanted = [s for s in streams(analysis) if any(n.root in whole for n in s.norms)] if whole else []
    if not wanted:
        return OpenWidths(analysis)
    from onnxprune.rotation.norms import (
        rewrite,
    )  # with all that fits layers, which most models don't need here

    rewritten = rewrite(analysis, wanted)
    opened = again(rewritten.model)
    before = {group.name for group in analysis.grouping.groups}
    if all(group.name in before for group in picked(opened)):
        return OpenWidths(analysis)
    error = ""
    if check:
        gap, why = compared(analysis, wanted, rewritten.model, inputs)
        if why:
            return OpenWidths(analysis, [f"the width that LayerNorm reads stays whole: as RMS norms, {why}"])
        error = f"; equal to the original within {gap:.1e}"
    opened.origins = rewritten.origins
    opened.undo = lambda result: analysis.restored(rewritten.restored(result))
    return OpenWidths(opened, [_note(wanted) + error])


def compared(
    analysis: Analysis, wanted: Sequence[NormStream], rewritten: Model, inputs: Sequence[Feeds] = ()
) -> tuple[float, str]:
    """Return how far the outputs of a rewritten model are from the original's, and why it can't be taken, if so."""
    from onnxprune.proof.verify import verify

    rtol = HALVES if _halves(analysis.model, wanted) else None
    proof = verify(analysis, {}, rewritten, inputs=inputs, rtol=rtol)
    why = "" if proof.passed else "; ".join([*proof.failures, *proof.notes]) or proof.status
    return proof.max_relative_error, why


def _kept_whole(analysis: Analysis) -> set[int]:
    """Return the dims that could be cut but for averages over them."""
    space = analysis.coupling.space
    soft = {space.find(dim) for dim, _, is_soft, _ in space.locks if is_soft}
    if not soft:
        return set()
    solution = solve(space, allow_inexact=True)
    return {
        root
        for root in soft
        if root in solution.start and bool((solution.units_of(root, space.sizes[root]) >= 0).any())
    }


def _halves(model: Model, wanted: Sequence[NormStream]) -> bool:
    """Whether a weight that is written without its mean, or looked up to have it taken off, is stored as halves."""
    names = {name for s in wanted if s.centred for name, _ in s.constants}
    names |= {site.weight for s in wanted if s.centred for site in s.layers}
    return any(model.info(name).elem_type == TensorProto.FLOAT16 for name in names)


def _note(wanted: Sequence[NormStream]) -> str:
    centred = sum(len(s.norms) for s in wanted if s.centred)
    others = sum(len(s.norms) for s in wanted) - centred
    parts = [f"{centred} whose mean the writers take off"] if centred else []
    parts += [f"{others} that take it off themselves"] if others else []
    return f"LayerNorms become RMS norms where the width that they read is cut ({', '.join(parts)})"
