"""The inputs of a model as samples are held against them."""

from __future__ import annotations

from collections.abc import Mapping

import onnx

from onnxprune.graph.analysis import Analysis
from onnxprune.graph.feasible import states_of
from onnxprune.runtime.binding import Axes, declared

__all__ = ["BATCH", "interface"]

#: What axes without a name are called that count the same sequences.
BATCH = "batch"


def interface(analysis: Analysis) -> onnx.GraphProto:
    """Return a graph whose inputs say which batches the model takes.

    A batch that takes one size only is declared so. Axes without a name that take only the same size, such as the batch
    of an input and that of a recurrent state, ``[layers, batch, width]``, have the same name there.
    """
    graph = analysis.model.proto.graph
    axes = Axes.of(graph, analysis.inputs)
    if not axes.batch or _takes(analysis, axes, {a: a for a in axes.batch}):
        return graph
    tied = axes.batch | states_of(axes)
    together = len(tied) > len(axes.batch) and _takes(analysis, axes, dict.fromkeys(tied, BATCH))
    declaring = onnx.GraphProto()
    declaring.CopyFrom(graph)
    for value in declaring.input:
        for n, own in enumerate(axes.axes_of.get(value.name, ()) if declared(value) is not None else ()):
            if own in tied and (together or (n == 0 and own in axes.batch)):
                dim = value.type.tensor_type.shape.dim[n]
                if together:
                    dim.dim_param = BATCH
                else:
                    dim.dim_value = analysis.inputs[value.name][n]
    return declaring


def _takes(analysis: Analysis, axes: Axes, batch: Mapping[str, str]) -> bool:
    """Whether the model runs on other batches, where these axes are called so: those of one name have one size."""
    least = {name: max(axes.sizes[a] for a in batch if batch[a] == name) for name in batch.values()}
    for more in (1, 2):
        shapes = axes.shapes({**axes.sizes, **{a: more * least[name] + 1 for a, name in batch.items()}})
        runs = analysis.runs
        if shapes is None or (analysis.traced(shapes) and not (runs and runs(shapes))):
            return True
    return False
