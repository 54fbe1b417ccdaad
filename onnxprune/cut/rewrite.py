"""Carry a decided cut into a model: slice weights, re-emit what encodes sizes, drop what died.

After the weights are sliced the graph is traced once more, node by node, beside the original trace. Wherever
a node would read a shape or a scalar that differs from what it must be (a Reshape target that names a channel
count, an attention scale computed from a Shape), that input is mended; everything else keeps its bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from onnxprune.cut.mend import Mender, RewriteError
from onnxprune.cut.shares import fold_shares
from onnxprune.cut.writer import WeightCut, Writer
from onnxprune.graph.coupling import Coupling
from onnxprune.graph.kept import Kept, Masks
from onnxprune.graph.trace import Tracer
from onnxprune.model import Model

__all__ = ["Kept", "Masks", "RewriteError", "WeightCut", "Rewritten", "rewrite"]


@dataclass
class Rewritten:
    """The pruned model, and what is gone.

    Attributes
    ----------
    model : Model
    cuts : list of WeightCut
        Which slices of which weights.
    dead : mapping
        Root dim -> which of its indices.
    """

    model: Model
    cuts: list[WeightCut]
    dead: Masks = field(default_factory=dict)


def rewrite(
    model: Model,
    coupling: Coupling,
    tracer: Tracer,
    dead: Masks,
    other: Mapping[str, NDArray[Any]] | None = None,
) -> Rewritten:
    """Return a pruned fork of a model; the model itself is not touched.

    Parameters
    ----------
    model : Model
    coupling, tracer
        Of that model, with ``coupling.nodes[i]`` the node ``model.order[i]``.
    dead : mapping
        Root dim -> which of its indices go.
    other : mapping, optional
        Values of small tensors under another binding of the dynamic axes, to tell fixed entries from those
        that follow the input; None where the model has no dynamic axes.

    Raises
    ------
    RewriteError
        If a tensor of the pruned graph would not get the shape that the cut implies.
    """
    kept = Kept(coupling, dead)
    writer = Writer(model, coupling, kept)
    cuts = writer.slice_weights()
    mender = Mender(writer, tracer, other)
    for number in range(len(coupling.nodes)):
        mender.visit(number)
    writer.pass_through(sorted({place for passage in kept.passages for place in passage.through}))
    fold_shares(writer)
    writer.drop_dead()
    writer.update_types()
    return Rewritten(writer.model, cuts, dead)
