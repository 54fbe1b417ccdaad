"""Units that zeros have killed: counted after sparsifying, and removed, which is what the pass ``shrink`` does.

What is dead says `onnxprune.graph.dead`. Units go by whole dependency groups; what has gone may leave others dead, so
the search goes on until nothing is left to remove. The result is compared with the model on random inputs, at several
sizes of the dynamic axes; groups that differ by more than rounding are put back.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from onnx import TensorProto

from onnxprune import granularity
from onnxprune.cut.put_back import Failed, Removed, carry
from onnxprune.cut.rewrite import Rewritten
from onnxprune.errors import OnnxPruneError, many
from onnxprune.graph.analysis import Analysis, analyse
from onnxprune.graph.dead import DeadUnits
from onnxprune.graph.inline import inline
from onnxprune.graph.kept import Kept
from onnxprune.graph.widen import widen
from onnxprune.model import Model
from onnxprune.options.pruning import Shapes
from onnxprune.proof.elsewhere import apart
from onnxprune.runtime.binding import Shape
from onnxprune.runtime.inputs import Trial, random_inputs
from onnxprune.runtime.session import Feeds, RunError
from onnxprune.sparsity.weights import SparseWeight

__all__ = ["Shrunk", "has_dead", "note", "shrink"]

#: Greatest relative error against the model itself.
RTOL = 1e-4
#: Rounds after which the search stops, done or not.
ROUNDS = 20


@dataclass
class Shrunk:
    """What a shrink has done.

    Attributes
    ----------
    model : Model
    removed : dict
        Group -> number of units that went, over all rounds.
    refused : dict
        Reason -> number of units that are constant and had to stay.
    """

    model: Model
    removed: Counter[str] = field(default_factory=Counter)
    refused: dict[str, int] = field(default_factory=dict)


def shrink(model: Model, *, verify: bool = True, input_shapes: Shapes | None = None) -> Shrunk:
    """Remove dead channels, again and again until none is left, and say which.

    Parameters
    ----------
    model : Model
    verify : bool
        Compare with the model on random inputs.
    input_shapes : mapping, optional
        Input -> shape, for dynamic axes.

    Raises
    ------
    VerificationError
        If no removal passes the comparison.
    """
    shrunk = Shrunk(model)
    for _ in range(ROUNDS):
        if not _once(shrunk, verify, input_shapes):
            break
    return shrunk


def _once(shrunk: Shrunk, verify: bool, input_shapes: Shapes | None) -> bool:
    """Do one round; return whether anything went."""
    model = inline(shrunk.model)
    analysis = analyse(model, input_shapes=input_shapes or {}, runs=Trial(model) if verify else None)
    units = DeadUnits(analysis)
    removed = units.removable()
    shrunk.refused = dict(units.refused)

    def cut(removed: Removed) -> Rewritten:
        rewritten = granularity.load().cut(analysis, removed)
        units.compensate(rewritten.model, Kept(analysis.coupling, rewritten.dead))
        return rewritten

    def prove(rewritten: Rewritten, removed: Removed) -> None:
        if verify:
            _compare(analysis, rewritten.model)

    if not removed:
        return False
    carried = carry(removed, cut, prove)
    shrunk.model = carried.rewritten.model
    shrunk.removed.update({name: len(units) for name, units in carried.removed.items()})
    for name, why in carried.put_back.items():
        shrunk.refused[why] = shrunk.refused.get(why, 0) + len(removed[name])
    return bool(carried.removed) and not carried.put_back


def _compare(analysis: Analysis, pruned: Model) -> None:
    """Run both models on random inputs at several sizes; raise where they differ by more than rounding."""
    half = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
    models = [analysis.model, pruned]
    if any(elem in half for elem, _ in analysis.tracer.types.values()):
        models = [widen(m) for m in models]
    for seed in range(2):
        rng = np.random.default_rng(seed)

        def feeds(shapes: Mapping[str, Shape], rng: np.random.Generator = rng) -> Feeds:
            return random_inputs(models[0], shapes, rng, sizes=analysis.tracer.types)

        try:
            error, where = apart(analysis, models[0], models[1], feeds)
        except RunError as reason:
            raise Failed(str(reason)) from reason
        if not error <= RTOL:
            raise Failed(f"the outputs differ by {error:.1e} (relative){f' at {where}' if where else ''}")


def has_dead(model: Model, targets: Sequence[SparseWeight]) -> bool:
    """Whether a layer reads an input with zeros only, or has an output that is zeros only (but for its bias)."""
    for target in targets:
        alive = ~target.layout.view(target.zeros(np.asarray(model.weight(target.name))))
        if not alive.any((0, 1, 3)).all() or not alive.any((2, 3)).all():
            return True
    return False


def note(model: Model, targets: Sequence[SparseWeight]) -> str:
    """Say how many units ``shrink`` would remove; empty where there are none."""
    if not has_dead(model, targets):
        return ""
    try:
        shrunk = shrink(model, verify=False)
    except OnnxPruneError:  # it is only a hint
        return ""
    units = sum(shrunk.removed.values())
    if not units:
        return ""
    dead = f"{many(units, 'unit')} in {many(len(shrunk.removed), 'group')}"
    return f"dead by now: {dead}; 'onnxprune run OUT SMALL --passes shrink' removes what is dead."
