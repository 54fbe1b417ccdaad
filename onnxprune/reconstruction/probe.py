"""What a criterion may measure on the model as a whole: how units behave where they are read, and how a loss follows.

For a layer that reads an activation ``a`` (samples, channels, positions): statistics, the mean over samples and
positions of ``f(a)`` (channels,); and the first-order change of the loss L of each sample when the layer no longer
reads a channel,

    -sum over positions of a * dL/da    (samples, channels).

A unit of a group is read by layers; ``units`` folds what was measured for the channels of their inputs into units.
Criteria know channels and units, never an op.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.calibration.samples import Samples
from onnxprune.calibration.stream import stream_of
from onnxprune.errors import CalibrationError
from onnxprune.gradient.build import SEED, Wanted, forward_model
from onnxprune.gradient.floats import in_floats
from onnxprune.gradient.reduced import reduced
from onnxprune.gradient.tape import Tape
from onnxprune.graph.analysis import Analysis
from onnxprune.reconstruction.layers import Readers, Site
from onnxprune.reconstruction.least_squares import Curve

__all__ = ["Probe", "curve_of"]

Floats = NDArray[np.float64]
Array = NDArray[Any]


@dataclass
class Probe:
    """A model, its samples, and which layers read each group.

    Attributes
    ----------
    analysis : Analysis
    samples : Samples
    readers : dict
        Group -> the layers that read it, with the regressors of each unit.
    seed : int
    say : callable, optional
        Told of progress.
    """

    analysis: Analysis
    samples: Samples
    readers: Readers
    seed: int = 0
    say: Callable[[str], None] | None = None

    def sites(self) -> dict[int, Site]:
        """The nodes that read a group, by their position."""
        return {use.number: use for reads in self.readers.values() for site, _ in reads for use in site.uses}

    def _axis(self, site: Site) -> int:
        """Return the channel axis of a layer's input."""
        axes = [a for slot, a in self.analysis.coupling.nodes[site.number].contracted if slot == 0]
        if len(axes) != 1:
            raise CalibrationError(f"The channels of what {site.name!r} reads can't be told apart.")
        return axes[0]

    def _refuse_rounding(self) -> None:
        """Refuse a model whose activations are rounded: no gradient passes, so what lies before seems worthless."""
        for applied in self.analysis.coupling.nodes:
            node = applied.node
            if node.op in ("QuantizeLinear", "DynamicQuantizeLinear") and not node.constant[0]:
                raise CalibrationError(
                    f"{node.op} {node.name!r} rounds what a layer reads, so no gradient passes it, and this criterion "
                    "asks for gradients; take another one, such as obs."
                )

    def activations(self, reduce: Callable[[Tape, str], str]) -> dict[int, Floats]:
        """Average over positions and samples for each channel that a layer reads.

        Parameters
        ----------
        reduce : callable
            (tape, activation) -> what is averaged, of the activation's shape.

        Returns
        -------
        dict
            Layer -> float64[channels].
        """
        sites = self.sites()
        axes = {site.x: self._axis(site) for site in sites.values()}

        def summed(t: Tape, name: str) -> str:
            rank = len(t.dims(name))
            others = [i for i in range(rank) if i != axes[name] % rank]
            return t.reduce("ReduceMean", reduce(t, name), others, keep=False)

        analysis, samples = in_floats(self.analysis, self.samples)
        model, outputs = forward_model(analysis, axes, summed)
        total: dict[int, Floats] = {}
        runs = stream_of(model, samples).each()
        for values, count in zip(runs, samples.counts, strict=True):
            for n, site in sites.items():
                mean = np.asarray(values[outputs[site.x]], np.float64)
                total[n] = total.get(n, 0.0) + mean * (count / self.samples.count)
        return total

    def first_order(self) -> Iterator[dict[int, Floats]]:
        """Yield, batch by batch, the first-order change of the loss when a layer no longer reads a channel.

        The loss is that of `onnxprune.gradient.seeds`, one draw for each sample. The gradient is what flows through
        that layer alone, so changes add up over the layers that read a unit.

        Yields
        ------
        dict
            Layer -> float64[samples, channels]: the sum over positions of ``-a * dL/da``.
        """
        self._refuse_rounding()
        sites = self.sites()
        edges: list[Wanted] = [(number, 0) for number in sites]

        def product(t: Tape, edge: Wanted, grad: str) -> str:
            site = sites[int(edge[0])]
            rank = len(t.dims(site.x))
            axis = self._axis(site) % rank
            moved = t.transpose(t.mul(grad, site.x), [*(i for i in range(rank) if i != axis), axis])
            count = t.slice(t.op("Shape", SEED), [0], [0], [1])  # rows of one sample lie together
            sizes = t.op("Concat", count, t.ints_const([-1, *t.static(site.x, [axis])]), axis=0)
            return t.op("Neg", t.reduce("ReduceSum", t.reshape(moved, sizes), [1], keep=False))

        for values in reduced(self.analysis, self.samples, edges, product, self.seed, self.say):
            yield {int(edge[0]): rows for edge, rows in values.items()}

    def units(self, group: str, measured: Mapping[int, Floats]) -> Floats:
        """Sum what was measured for channels (the last axis) into units, over all layers that read the group.

        Returns
        -------
        float64[..., units]
        """
        total: Floats = np.zeros(())
        for use, blocks in ((use, rows) for site, rows in self.readers[group] for use in site.uses):
            if use.number in measured:
                view, values = use.view, measured[use.number]
                for block, rows in enumerate(blocks):
                    at = [block * view.channels + np.unique(r // view.taps) for r in rows]
                    total = total + np.stack([values[..., c].sum(axis=-1) for c in at], axis=-1)
        units = len(self.readers[group][0][1][0])
        return total if total.ndim else np.zeros(units)

    def channels(self, group: str) -> Floats:
        """Count the channels of each unit over all layers that read the group, float64[units]."""
        ones = {n: np.ones(s.view.blocks * s.view.channels) for n, s in self.sites().items()}
        return self.units(group, ones)


def curve_of(scores: Floats, least: int) -> Curve:
    """Return the loss curve of scores, float64[units]: the smallest goes first, and losses add up.

    Parameters
    ----------
    scores : float64[units]
    least : int
        Units that stay.
    """
    order = np.argsort(scores, kind="stable")
    error = np.concatenate([[0.0], np.cumsum(scores[order])])
    error[max(len(scores) - max(least, 0), 0) + 1 :] = np.inf
    return Curve(order, error)
