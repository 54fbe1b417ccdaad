"""Synthetic samples made plausible for a model: in the range that it was trained for, as the model itself tells.

Nothing in a file says whether pixels are meant from 0 to 1 or from 0 to 255. Where BatchNormalization is still in the
graph its statistics do: the range is taken under which what it reads has the mean and variance that it expects. Of each
channel, with mean m and variance v over the samples and mu, var expected, the distance is that of two normal
distributions,

    ((m - mu)^2 / var + v / var - 1 - log(v / var)) / 2,    averaged over channels (C,) and layers.

Where it has been folded away, or never was, the first layer's bias ``b`` (O,) does: the range is taken under which the
layer's sum ``y`` varies as much as its bias is large, with the least |log10(std(y) / rms(b))|, since a sum that drowns
the bias, or drowns in it, would have been trained otherwise. That is a rule of thumb; samples stay standardised where
it doesn't decide.

References
----------
Cai et al., "ZeroQ", arXiv 2001.00281: distance to the statistics of BatchNormalization.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.calibration.frontier import in_batches
from onnxprune.calibration.samples import Asked, Samples, is_synthetic, samples_for
from onnxprune.calibration.stream import stream_of
from onnxprune.errors import CalibrationError
from onnxprune.graph.analysis import Analysis
from onnxprune.graph.interface import interface
from onnxprune.reconstruction.layers import sites
from onnxprune.reconstruction.views import channels_last
from onnxprune.runtime.ids import Ids, id_bounds

__all__ = ["RANGES", "plausible", "read_samples"]

Array = NDArray[Any]


def _unit(x: Array) -> Array:
    return np.clip(0.25 * x + 0.5, 0, 1)


#: What pixels or values may be meant to be, from standardised ones.
RANGES: dict[str, Callable[[Array], Array]] = {
    "standardised": lambda x: x,
    "0 to 1": _unit,
    "-1 to 1": lambda x: 2 * _unit(x) - 1,
    "0 to 255": lambda x: 255 * _unit(x),
    "-128 to 127": lambda x: 255 * _unit(x) - 128,
    "of deviation 1/8": lambda x: x / 8,
    "of deviation 8": lambda x: x * 8,
}
#: Batches that ranges are judged by.
JUDGED = 2
#: No BatchNormalization counts for more than this.
MOST = 50.0


def read_samples(analysis: Analysis, asked: Asked, say: Callable[[str], None] | None = None) -> Samples:
    """Read the samples that options ask for, in batches that fit the memory; synthetic ones are made plausible.

    Raises
    ------
    CalibrationError
        If they can't be read, or don't fit the model.
    """
    samples = in_batches(analysis, samples_for(interface(analysis), asked, analysis.inputs))
    return plausible(analysis, samples, asked.seed, say) if is_synthetic(asked.calib) else samples


def plausible(
    analysis: Analysis, samples: Samples, seed: int, say: Callable[[str], None] | None = None
) -> Samples:
    """Return synthetic samples in the range that suits the model, with ids that its tables hold.

    Parameters
    ----------
    analysis : Analysis
    samples : Samples
        From ``"synthetic"``: floats are standardised.
    seed : int
        Of ids and lengths.
    say : callable, optional
        Told which range was taken, and why.
    """
    samples = _with(samples, _tokens(analysis, samples, seed))
    floats = [n for n, a in samples.batches[0].items() if a.dtype.kind == "f"]
    if not floats:
        return samples
    few = replace(samples, batches=samples.batches[:JUDGED], counts=samples.counts[:JUDGED])
    scores: dict[str, float] = {}
    why = ""
    for name, change in RANGES.items():
        why, score = _judge(analysis, _ranged(few, floats, change))
        if np.isfinite(score):
            scores[name] = score
    if not scores:
        return samples
    best = max(scores, key=lambda n: scores[n])  # the first of equals
    if say is not None and why:
        say(f"synthetic samples: values {best}, by {why}")
    return _ranged(samples, floats, RANGES[best])


def _with(samples: Samples, batches: list[dict[str, Array]]) -> Samples:
    return replace(samples, batches=batches)


def _ranged(samples: Samples, floats: list[str], change: Callable[[Array], Array]) -> Samples:
    batches = [
        {n: change(a).astype(a.dtype) if n in floats else a for n, a in b.items()} for b in samples.batches
    ]
    return _with(samples, batches)


def _judge(analysis: Analysis, samples: Samples) -> tuple[str, float]:
    """Return what a range was judged by, and how well it does; 0 for all where nothing can be said."""
    norms = _norms(analysis)
    try:
        if norms:
            return "the statistics of BatchNormalization", -_distance(analysis, samples, norms)
        return "the first layer's bias", -_imbalance(analysis, samples)
    except CalibrationError:
        return "", -np.inf


def _imbalance(analysis: Analysis, samples: Samples) -> float:
    """Powers of ten between the deviation of what the first layer sums and its bias; 0 where it has none."""
    first = next((s for s in sites(analysis) if s.bias is not None), None)
    if first is None or first.bias is None:
        return 0.0
    axis = first.view.out_axis
    runs = stream_of(analysis.model, samples).each([first.y])
    rows = np.concatenate([channels_last(values[first.y], axis) for values in runs])
    bias = first.bias.read(analysis.model)
    large, wide = float(np.sqrt((bias**2).mean())), float(rows.std(axis=0, dtype=np.float64).mean())
    if not np.isfinite(wide) or wide <= 0:
        return np.inf
    return round(abs(float(np.log10(wide / large))), 1) if large > 0 else 0.0


def _norms(analysis: Analysis) -> dict[str, tuple[Array, Array]]:
    """What each BatchNormalization reads, with the mean and variance that it expects."""
    norms = {}
    for applied in analysis.coupling.nodes:
        node = applied.node
        if node.op == "BatchNormalization" and all(n in analysis.model for n in node.inputs[3:5]):
            mean, var = (np.asarray(analysis.model.weight(n), np.float64) for n in node.inputs[3:5])
            norms[node.inputs[0]] = mean, var + 1e-5
    return norms


def _distance(analysis: Analysis, samples: Samples, norms: Mapping[str, tuple[Array, Array]]) -> float:
    """Mean divergence of normal distributions, observed from expected, over layers and channels."""
    seen: dict[str, list[Array]] = {n: [] for n in norms}
    for values in stream_of(analysis.model, samples).each(list(norms)):
        for name, value in values.items():
            seen[name].append(np.moveaxis(value, 1, 0).reshape(value.shape[1], -1))
    total = []
    for name, (mean, var) in norms.items():
        rows = np.concatenate(seen[name], axis=1).astype(np.float64)
        ratio = (rows.var(axis=1) + 1e-9) / var
        divergence = ((rows.mean(axis=1) - mean) ** 2 / var + ratio - 1 - np.log(ratio)) / 2
        total.append(min(float(divergence.mean()), MOST))
    return float(np.mean(total))


def _tokens(analysis: Analysis, samples: Samples, seed: int) -> list[dict[str, Array]]:
    """Draw ids that tables hold, and lengths: what lies behind a sample's end is masked and has the least id."""
    rng = np.random.default_rng(seed)
    ids = id_bounds(analysis.model, analysis.tracer.types)
    batches = []
    for batch, count in zip(samples.batches, samples.counts, strict=True):
        whole = {n: a for n, a in batch.items() if a.dtype.kind in "iu" and a.ndim >= 2 and len(a) == count}
        masks = [n for n in whole if "mask" in n.lower()]
        shares = rng.uniform(0.25, 1, count) if masks else np.ones(count)
        new = dict(batch)
        for name, array in whole.items():
            size = array.shape[-1]
            alive = np.arange(size) < np.maximum(np.ceil(shares * size), 1)[:, None]
            alive = alive.reshape(count, *[1] * (array.ndim - 2), size)
            if name in masks:
                new[name] = np.broadcast_to(alive, array.shape).astype(array.dtype)
            else:
                own = ids.get(name, Ids.below(256)).both(Ids.below(int(np.iinfo(array.dtype).max)))
                drawn = own.draw(array.shape, rng)
                new[name] = np.where(alive, drawn, own.fitting(array.shape).least).astype(array.dtype)
        batches.append(new)
    return batches
