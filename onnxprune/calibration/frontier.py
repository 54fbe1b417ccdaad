"""How much a stream through the samples will hold, and batches of which it finds room."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np
from onnx import helper

from onnxprune.calibration.samples import Samples
from onnxprune.files.protowalk import captured
from onnxprune.graph.analysis import Analysis

__all__ = ["in_batches", "largest", "mean_size", "sizes", "stream_bytes"]

#: Bytes of the activations of a batch that are there at once.
BATCH_BYTES = 1 << 27


def largest(analysis: Analysis, stops: Sequence[int]) -> float:
    """Return the bytes of the tensors that a `Stream` holds at the greediest of its stops, at the analysed shapes.

    Parameters
    ----------
    analysis : Analysis
    stops : sequence of int
        Positions in topological order.

    Returns
    -------
    float
        Infinite where the shape of a tensor isn't known.
    """
    nodes = analysis.coupling.nodes
    made = dict.fromkeys(analysis.inputs, 0)  # tensor -> first stop at which it exists
    last = dict.fromkeys((v.name for v in analysis.model.proto.graph.output), len(nodes))
    for number, applied in enumerate(nodes):
        made |= dict.fromkeys((n for n in applied.node.outputs if n), number + 1)
        inner = captured(applied.proto) if applied.proto.attribute else ()
        for name in (*applied.node.inputs, *inner):
            last[name] = max(last.get(name, 0), number)
    change = np.zeros(len(nodes) + 2)
    for name in made.keys() & last.keys():
        if name in analysis.model or last[name] < made[name]:
            continue
        size = _bytes(analysis, name)
        if np.isinf(size):
            return np.inf
        change[made[name]] += size
        change[last[name] + 1] -= size
    return float(np.cumsum(change)[list(stops)].max(initial=0.0))


def sizes(analysis: Analysis, samples: Samples) -> dict[str, float]:
    """Return the bytes of tensors for the largest batch; infinite where the shape isn't known."""
    once = _entries(analysis)
    batch = max(max((a.size for a in batch.values()), default=0) for batch in samples.batches)
    return {name: _bytes(analysis, name) * batch / once for name in analysis.tracer.types}


def stream_bytes(analysis: Analysis, samples: Samples, stops: Sequence[int]) -> float:
    """Return the bytes of `largest` over all samples.

    Parameters
    ----------
    analysis : Analysis
    samples : Samples
    stops : sequence of int
        Where the stream stops.
    """
    return largest(analysis, stops) * samples.count * mean_size(analysis, samples)


def mean_size(analysis: Analysis, samples: Samples) -> float:
    """Return how large one sample is beside the analysed inputs, whatever batch those are."""
    whole = sum(max((a.size for a in batch.values()), default=0) for batch in samples.batches)
    return whole / max(samples.count, 1) / _entries(analysis)


def _bytes(analysis: Analysis, name: str) -> float:
    """Return the bytes of a tensor at the analysed shapes."""
    elem, shape = analysis.tracer.types.get(name, (0, None))
    return np.inf if shape is None else float(helper.tensor_dtype_to_np_dtype(elem).itemsize * prod(shape))


def _entries(analysis: Analysis) -> int:
    """Return the size of the largest input at the analysed shapes."""
    return max((1, *(prod(shape) for shape in analysis.inputs.values())))


def in_batches(analysis: Analysis, samples: Samples, most: float = BATCH_BYTES) -> Samples:
    """Return the same samples in smaller batches where the activations of one would take too much memory.

    Parameters
    ----------
    analysis : Analysis
    samples : Samples
        Where the model fixes the size of a batch, or shapes aren't known, they stay as they are.
    most : float
        Bytes.
    """
    once = largest(analysis, range(len(analysis.coupling.nodes) + 1)) / _entries(analysis)
    if not np.isfinite(once):
        return samples
    pairs = zip(samples.batches, samples.counts, strict=True)
    each = max(once * max((a.size for a in batch.values()), default=0) / count for batch, count in pairs)
    fitting, count = max(int(most // max(each, 1)), 1), max(samples.counts)
    return samples if count <= fitting else samples.cut_into(-(-count // -(-count // fitting)))
