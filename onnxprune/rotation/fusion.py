"""Neighbours with nothing but sums between them become one layer: the journey of the pass ``fuse``.

A normalisation by given statistics is ``y -> a y + s`` for each channel, so behind a layer ``y = W'x + b`` it is

    W <- W diag(a),    b <- a b + s,    a = scale / sqrt(var + eps),    s = shift - a mean.

Two layers, one of which looks at single positions, are one with the product of their matrices:

    y = U'(W'x + b) + c = (W U)'x + U'b + c,

which pays only where it takes fewer multiply-accumulates and no more weights. Where the second one looks at windows, a
border of zeros isn't ``b``; so there it has none, or ``b`` is zero.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from onnxprune.cut.put_back import Failed, most
from onnxprune.errors import VerificationError
from onnxprune.graph.analysis import Analysis, analyse
from onnxprune.graph.inline import inline
from onnxprune.graph.live import needed, remove
from onnxprune.journey.given_shapes import bound
from onnxprune.journey.run import Run
from onnxprune.journey.save import Outcome, save
from onnxprune.model import Model
from onnxprune.options.pruning import Options
from onnxprune.proof.verify import verify
from onnxprune.reconstruction.layer import weights_of, write
from onnxprune.reconstruction.layers import Site, around, sites
from onnxprune.reconstruction.least_squares import Fit
from onnxprune.reconstruction.views import View, view_of
from onnxprune.report.lossless import LosslessReport
from onnxprune.runtime.inputs import Trial

__all__ = ["fuse"]

Array = NDArray[np.float64]

#: Rounds after which the search stops, done or not: a chain of n layers takes n - 1.
ROUNDS = 20
#: Types whose rounding a product of matrices may be written in.
WIDE = (TensorProto.FLOAT, TensorProto.DOUBLE)


@dataclass(frozen=True)
class Fusion:
    """One layer in the place of two nodes.

    Attributes
    ----------
    name : str
        Of what goes.
    site : Site
        The layer that stays, with the view of its new weight.
    weight, bias : float64[blocks, width, outputs], float64[blocks, outputs]
    x, y : str
        What the layer reads and gives from now on.
    kind : str
    """

    name: str
    site: Site
    weight: Array
    bias: Array
    x: str
    y: str
    kind: str


def fuse(run: Run[Options], *, norms: bool = True, layers: bool = True) -> Outcome[LosslessReport]:
    """Make one layer of a layer and the normalisation behind it, and of two layers where that pays.

    Parameters
    ----------
    run : Run
        Of its options, shapes of inputs count.
    norms, layers : bool
        Whether to look for normalisations, and for pairs of layers.

    Returns
    -------
    Outcome
        The model itself where nothing could be fused.
    """
    report = LosslessReport(change="fused", what="layer", notes=run.notes)
    model, put_back = inline(run.model), dict[str, str]()
    for _ in range(ROUNDS):
        with run.stage("analyse"):
            analysis = _analysed(run, model)
        finder = _FusionFinder(analysis, put_back)
        wanted = list(finder.norms()) if norms else []
        wanted = wanted or (list(finder.pairs()) if layers else [])
        report.refused = finder.refused | put_back
        if not wanted:
            break
        with run.stage("fuse"):
            (changed, error, done), failed = _tried(analysis, wanted)
        put_back |= failed
        report.groups += [{"group": one.name, "into": one.site.name, "kind": one.kind} for one in done]
        if done:
            model, report.error = changed, max(report.error or 0.0, error)
    outcome = Outcome(model.fold() if report.groups else run.model, report)
    save(run, outcome)
    return outcome


def _analysed(run: Run[Options], model: Model) -> Analysis:
    runs = Trial(model)
    return bound(run, lambda shapes: analyse(model, input_shapes=shapes, runs=runs))


Attempted = tuple[Model, float, list["Fusion"]]


def _tried(analysis: Analysis, wanted: Sequence[Fusion]) -> tuple[Attempted, dict[str, str]]:
    """Fuse as much as holds; return that, and why the rest doesn't."""
    try:
        return most([one.name for one in wanted], _FusionAttempt(analysis, wanted))
    except VerificationError as failure:  # nothing can be compared
        return (analysis.model, 0.0, []), {one.name: str(failure) for one in wanted}


class _FusionAttempt:
    """Fuses some of a list, and compares."""

    def __init__(self, analysis: Analysis, wanted: Sequence[Fusion]) -> None:
        self.analysis, self.wanted = analysis, {one.name: one for one in wanted}

    def __call__(self, names: Sequence[str]) -> Attempted:
        """Return the fused model, its greatest relative error, and what was fused.

        Raises
        ------
        Failed
            If it isn't what it was.
        """
        chosen = [self.wanted[name] for name in names]
        fused = carried(self.analysis, chosen)
        proof = verify(self.analysis, {}, fused)
        if not proof.passed:
            raise Failed("; ".join([*proof.failures, *proof.notes]) or proof.status)
        return fused, proof.max_relative_error, chosen


def carried(analysis: Analysis, fusions: Sequence[Fusion]) -> Model:
    """Return a model with layers in the place of pairs."""
    model = analysis.model.fork()
    before, nodes, order = needed(model), model.proto.graph.node, model.order
    for one in fusions:
        blocks, old = range(one.site.view.blocks), model.weight(one.site.weight)
        shape = one.site.view.pack(one.weight).shape
        if one.kind == "layer":  # plain floats, of other lengths
            model.put(one.site.weight, np.zeros(shape, old.dtype))
        write(model, one.site, [Fit(one.weight[b], one.bias[b]) for b in blocks])
    stale = set[str]()
    for one in fusions:
        first, last = (nodes[order[n]] for n in (one.site.number, one.site.end))
        first.input[0] = one.x
        stale |= set(first.output) - set(last.output)  # of another length, in front of a bias
        if one.y != one.site.y:
            (made,) = [n for n in nodes if one.y in n.output]
            made.output[0], last.output[0] = one.site.y, one.y  # nobody reads the old name any more
    values = model.proto.graph.value_info
    for number in reversed([i for i, value in enumerate(values) if value.name in stale]):
        del values[number]
    remove(model, before - needed(model))
    model.refresh()
    return model


def _stored(site: Site) -> list[str]:
    return [site.weight, *([site.bias.name] if site.bias is not None else [])]


class _FusionFinder:
    """Finds what can be fused, and says why the rest can't."""

    def __init__(self, analysis: Analysis, put_back: Collection[str] = ()) -> None:
        self.analysis, self.model, self.put_back = analysis, analysis.model, put_back
        graph = self.model.proto.graph
        self.inputs = {v.name for v in graph.input} if self.model.proto.ir_version >= 4 else set[str]()
        self.around = around(analysis)
        self.nodes = self.around.nodes
        self.sites = sites(analysis)
        self.refused: dict[str, str] = {}

    def title(self, number: int) -> str:
        """Return the name of a node, or of what it makes."""
        node = self.nodes[number]
        return node.proto.name or node.node.outputs[0]

    def norms(self) -> Iterator[Fusion]:
        """Return each layer with the normalisation that alone reads it."""
        by_output = {site.y: site for site in self.sites}
        for number, applied in enumerate(self.nodes):
            node = applied.node
            if node.op != "BatchNormalization" or applied.row is None or node.attr("training_mode", 0):
                continue
            site, name = by_output.get(node.inputs[0]), self.title(number)
            if name in self.put_back:
                continue
            why = self.unlike(site, number) if site else "no layer with weights of its own gives its input"
            if site is None or why:
                self.refused[name] = why
                continue
            values = [self.model.weight(n).astype(np.float64).reshape(-1) for n in node.inputs[1:5]]
            scale, shift, mean, var = values
            factor = scale / np.sqrt(var + float(node.attr("epsilon", 1e-5)))
            matrices, bias = weights_of(site, self.model)
            shape = site.view.blocks, site.view.outputs
            new = bias * factor.reshape(shape) + (shift - factor * mean).reshape(shape)
            if site.adder is None and new.any():
                self.refused[name] = "the layer takes no bias"
                continue
            weight = matrices * factor.reshape(shape)[:, None]
            yield Fusion(name, site, weight, new, site.x, node.outputs[0], "norm")

    def unlike(self, site: Site, number: int) -> str:
        """Return why a layer can't take a normalisation in; empty where it can."""
        node = self.nodes[number].node
        axis = site.view.out_axis
        if not all(n in self.model and self.around.constant(n, read_alone=False) for n in node.inputs[1:5]):
            return "its statistics are no constants"
        if self.inputs & {*node.inputs[1:5], *_stored(site)}:
            return "its statistics, or the layer's weights, are inputs of the graph"
        if any(self.model.info(n).elem_type not in WIDE for n in node.inputs[1:5]):
            return "halves would be rounded once more"
        if (axis if axis >= 0 else axis + node.rank()) != 1 or prod(
            node.shape(1)
        ) != site.view.blocks * site.view.outputs:
            return "it isn't about the layer's outputs"
        return self.owned(site, number)

    def owned(self, site: Site, number: int) -> str:
        """Return why the weight of a layer can't change, or its output go; empty where both can."""
        if self.around.sole(site.y) != number:
            return "the layer's output is read elsewhere, too"
        if site.more or site.given is not None or not self.around.alone(site.weight):
            return "the layer's weight is read elsewhere, too"
        if not site.exact or site.clipped or self.model.info(site.weight).elem_type not in WIDE:
            return "the layer's weight is quantised or stored as halves"
        return ""

    def pairs(self) -> Iterator[Fusion]:
        """Return pairs of layers, none of which is in two of them."""
        by_output, taken = {site.y: site for site in self.sites}, set[int]()
        for second in self.sites:
            first = by_output.get(second.x)
            if first is None or {first.number, second.number} & taken:
                continue
            name = self.title(second.number)
            if name in self.put_back:
                continue
            why = self.owned(first, second.number) or self.apart(first, second)
            merged = None if why else self.merged(first, second)
            if merged is None:
                self.refused[name] = (
                    why or "one layer would take more multiply-accumulates or weights than two"
                )
                continue
            taken |= {first.number, second.number}
            yield merged

    def apart(self, first: Site, second: Site) -> str:
        """Return why two layers can't be one; empty where they can."""
        if (
            second.more
            or second.given is not None
            or not self.around.alone(second.weight)
            or not second.exact
        ):
            return "the second layer's weight is read elsewhere, too, or quantised"
        if self.model.info(second.weight).elem_type not in WIDE or second.clipped:
            return "the second layer's weight is quantised or stored as halves"
        nodes = [self.nodes[s.number].node for s in (first, second)]
        if any(n.inputs[1] != s.weight for n, s in zip(nodes, (first, second), strict=True)):
            return "a weight is computed"
        if self.inputs & {*_stored(first), *_stored(second)}:
            return "a weight is an input of the graph"
        if first.view.blocks * second.view.blocks > 1:
            return "it is a grouped convolution"
        if first.view.out_axis != second.view.out_axis or any(n.attr("transA", 0) for n in nodes):
            return "the second layer reads another axis"
        return ""

    def merged(self, first: Site, second: Site) -> Fusion | None:
        """Return two layers as one; None where none of them looks at single positions, or where it doesn't pay."""
        (w, b), (u, c) = (weights_of(s, self.model) for s in (first, second))
        bias = b @ u.reshape(1, first.view.outputs, second.view.taps, -1).sum(2) + c
        if second.view.taps == 1 and self.pointwise(second):
            kept, shape = first, {1 - first.view.weight_axis: second.view.outputs}
            weight = w @ u
        elif first.view.taps == 1 and self.pointwise(first) and (not b.any() or self.bare(second)):
            kept, shape = second, {second.view.weight_axis: first.view.channels}
            spread = u.reshape(first.view.outputs, -1)
            weight = (w[0] @ spread).reshape(1, -1, second.view.outputs)
        else:
            return None
        if not self.pays(first, second, kept, weight) or (bias.any() and kept.adder is None):
            return None
        view = self.viewed(kept, shape)
        if view is None:
            return None
        site = replace(kept, view=view, bias=kept.bias if kept is second else None)
        return Fusion(self.title(second.number), site, weight, bias, first.x, second.y, "layer")

    def pays(self, first: Site, second: Site, kept: Site, weight: Array) -> bool:
        """Whether one layer takes fewer multiply-accumulates than two, and no more weights."""
        rows = [
            prod(self.nodes[s.number].node.out_shapes[0] or ()) // s.view.outputs for s in (first, second)
        ]
        old = [s.view.width * s.view.outputs for s in (first, second)]
        return rows[1] * weight.size < rows[0] * old[0] + rows[1] * old[1] and weight.size <= sum(old)

    def pointwise(self, site: Site) -> bool:
        """Whether each position of a layer's output is made from that position of its input alone."""
        node = self.nodes[site.number].node
        return (node.out_shapes[0] or ())[2:] == node.shape(0)[2:] if site.view.out_axis == 1 else True

    def bare(self, site: Site) -> bool:
        """Whether a convolution sees nothing but its input: no border."""
        node = self.nodes[site.number].node
        return (
            node.op == "Conv"
            and not any(node.attr("pads", ()))
            and str(node.attr("auto_pad", "NOTSET")) in ("NOTSET", "VALID")
        )

    def viewed(self, site: Site, lengths: dict[int, int]) -> View | None:
        """Return the view of a layer whose weight has other lengths."""
        node = self.nodes[site.number].node
        shape = tuple(lengths.get(axis, n) for axis, n in enumerate(node.shape(1)))
        return view_of(replace(node, shapes=(node.shapes[0], shape, *node.shapes[2:])))
