"""How far all that a model gives is from what another gave, as one figure that adds up over small causes."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.calibration.agreement import of_positions
from onnxprune.calibration.replayed import Replayed
from onnxprune.calibration.samples import Samples
from onnxprune.calibration.stream import stream_of
from onnxprune.files.bodies import DOMAIN
from onnxprune.graph.analysis import Analysis
from onnxprune.model import Model
from onnxprune.ops import FLOATS, Trait

__all__ = ["Ends", "ends_of"]

Array = NDArray[Any]


def ends_of(analysis: Analysis, layers: Collection[int]) -> list[str]:
    """Return the last tensors of a model that change little where its layers do.

    Those are its outputs, as far as they are floats and nothing was chosen (`Trait.CHOICE`) behind the last layer. Many
    models end in classes (ArgMax), boxes in the order of their scores (TopK) or those that are left of many
    (NonMaxSuppression): a small error changes nothing there, or which entries are compared. There it is what these are
    made of.

    Parameters
    ----------
    analysis : Analysis
    layers : collection of int
        Positions of the layers in topological order.

    Returns
    -------
    list of str
        Empty where there is none.
    """
    nodes, types = [applied.node for applied in analysis.coupling.nodes], analysis.types
    read: set[str] = set()  # by a layer, or by what leads to one
    for number in reversed(range(len(nodes))):
        if number in layers or read.intersection(nodes[number].outputs):
            read.update(nodes[number].inputs)
    made: set[str] = set()  # of what a layer gives
    chosen: set[str] = set()
    for number, node in enumerate(nodes):
        if number in layers or made.intersection(node.inputs):
            made.update(node.outputs)
            behind = number not in layers and not read.intersection(node.outputs)
            if behind and (Trait.CHOICE in node.traits or chosen.intersection(node.inputs)):
                chosen.update(node.outputs)
    makers = {name: node for node in nodes for name in node.outputs}
    todo, found = [v.name for v in analysis.model.proto.graph.output], dict[str, None]()
    seen = set(todo)
    while todo:
        name = todo.pop(0)
        if name not in makers:
            continue
        joint = makers[name].domain == DOMAIN  # what is in branches can't be asked for
        if joint or (name not in chosen and types.get(name, 0) in FLOATS):
            found[name] = None
            continue
        more = [n for n in makers[name].inputs if n and n not in seen]
        todo += more
        seen.update(more)
    return list(found)


class Ends:
    """What a model gives on samples.

    Parameters
    ----------
    model : Model
    samples : Samples
    names : sequence of str
        What is looked at; all outputs of floats without it.
    """

    def __init__(self, model: Model, samples: Samples, names: Sequence[str] = ()) -> None:
        self._samples, self._names = samples, names
        self._rows = Replayed(
            lambda: _ends(model, samples, names), lambda r: sum(a.nbytes for a in r.values())
        )

    def distance(self, model: Model) -> float:
        """Return the squared relative error of what another model gives, the mean over outputs.

        To the second order errors of different causes, which know nothing of each other, add up in it. Unlike the
        divergence of classes it doesn't hang on the few samples of which a model is unsure.

        Returns
        -------
        float
            NaN where no output of floats has the same shape in both.
        """
        gaps: dict[str, float] = {}
        sizes: dict[str, float] = {}
        for one, two in zip(self._rows, _ends(model, self._samples, self._names), strict=True):
            for name, array in one.items():
                if name in two and two[name].shape == array.shape:
                    gap = two[name].astype(np.float64) - array
                    gaps[name] = gaps.get(name, 0.0) + float(np.square(gap).sum())
                    sizes[name] = sizes.get(name, 0.0) + float(np.square(array.astype(np.float64)).sum())
                else:
                    sizes[name] = np.nan
        shares = [
            gaps[n] / size for n, size in sizes.items() if size > 0 and np.isfinite(gaps.get(n, np.nan))
        ]
        return float(np.mean(shares)) if shares else np.nan


def _ends(model: Model, samples: Samples, names: Sequence[str]) -> Iterator[dict[str, Array]]:
    runs = stream_of(model, samples).each(names or None)
    for values, valid in zip(runs, samples.valid, strict=True):
        arrays = {n: v for n, v in values.items() if isinstance(v, np.ndarray) and v.dtype.kind == "f"}
        yield {n: of_positions(a, valid) for n, a in arrays.items()}
