"""Fit one layer: its weights out as matrices, the best of several fits, and back into the model.

The variants of a recovery (`onnxprune.reconstruction.recover`) are fitted on the samples for fitting; the one with the
least squared error on the held-out ones wins,

    argmin_variant  sum over blocks and outputs of e_held(W, b),    W (blocks, d, O), b (blocks, O),

and is fitted again on all samples.

A layer makes up for its own units that go, and for what those in front of it have lost. The second is noise to it for
the most part, and a regression on few rows learns that noise. So a refit to what the original gives (``lstsq``) is
pulled to what the layer alone needs (``local``, `onnxprune.reconstruction.local`), and not to its old weights.

The model keeps its shape: rows of a weight that read removed channels become zero,
everything else is refitted. Cutting those channels afterwards is exact, so the proof of the cut holds for the refitted
model just as for any other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxprune.model import Model
from onnxprune.reconstruction.evidence import WIDE, Evidence
from onnxprune.reconstruction.few_rows import ENOUGH
from onnxprune.reconstruction.grouped import loss_of
from onnxprune.reconstruction.layers import Site
from onnxprune.reconstruction.least_squares import Fit, Regression, bias_only
from onnxprune.reconstruction.local import Local
from onnxprune.reconstruction.narrow import Narrow
from onnxprune.reconstruction.recover import RECOVERIES, STRONG, Recovery
from onnxprune.reconstruction.rounding import rounded
from onnxprune.reconstruction.stored import Grid, Quantised
from onnxprune.reconstruction.views import View

__all__ = [
    "LayerReport", "Settings", "Storable", "fit_blocks", "stretch", "stretchable", "tried", "weights_of", "write",
]  # fmt: skip

#: Behind the name of a variant that is stored with other scales.
STRETCHED = ", new scales"
#: A squared error, as a share of the variance, that sums in 32 bits give by rounding: such a layer is as it should be.
ROUNDING = 1e-6
#: The ridge of rough fits.
PLAIN = 1e-2

Array = NDArray[Any]
Ints = NDArray[np.int64]
Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class Settings:
    """How layers are fitted.

    Attributes
    ----------
    recovery : Recovery
        What a layer may get; the held-out samples choose.
    most : int
        Output positions that are used of a layer, for each regressor; a third of them to rank units.
    least : int
        Output positions that are used of a layer in any case, where there are as many; of one of many blocks, such as a
        depthwise convolution, at least an eighth of them.
    seed : int
    wide : int
        Regressors from which rows are kept instead of moments.
    sheet : int
        Rows that are kept then, at most.
    careful : bool
        Whether what is put on a grid heeds the moments; else it goes to the nearest values.
    rough : bool
        Whether this is a fit on the way: one ridge, and units stay chosen as they are.
    """

    recovery: Recovery = RECOVERIES["lstsq"]
    most: int = 200
    least: int = 1 << 15
    seed: int = 0
    careful: bool = True
    wide: int = WIDE
    sheet: int = 1 << 12
    rough: bool = False

    def rows(self, view: View, share: int = 1) -> int:
        """Return how many positions of a layer are used, or a share of them: one in so many."""
        if view.width > self.wide:
            return self.sheet // share
        least = self.least // min(view.blocks, 8)  # every position is a row of each block
        return max(self.most // share * view.width, least // min(share, 2))


@dataclass
class LayerReport:
    """What a fit did to one layer, on held-out samples.

    Attributes
    ----------
    layer : str
    kept, of : int
        Channels that are still read, and all of them.
    rows : int
        Positions that the fit saw.
    before, after : float
        Mean squared error relative to the variance of the layer's target, with the old weights and with the new.
    variant : str
        ``"kept"``, ``"bias"``, ``"local"`` or ``"lstsq 0.001"``, the last with ``", new scales"`` where that holds.
    too_few : bool
        Whether there were fewer than two rows for each regressor, so that only strong ridges were tried.
    """

    layer: str
    kept: int
    of: int
    rows: int
    before: float
    after: float
    variant: str
    too_few: bool = False


def weights_of(site: Site, model: Model) -> tuple[Matrix, Matrix]:
    """Return a layer's weight as matrices [blocks, width, outputs], and its bias [blocks, outputs]."""
    view = site.view
    matrices = view.unpack(site.codec.read(model))
    size = view.blocks * view.outputs
    bias = np.zeros(size)
    if site.bias is not None:
        bias = np.broadcast_to(site.bias.read(model).reshape(-1), size) * view.bias_factor
    return matrices, bias.reshape(view.blocks, view.outputs)


@dataclass(frozen=True)
class Storable:
    """The weights and biases that a layer may have in its file.

    Attributes
    ----------
    weights : list of Grid
        For each block; empty where they are floats.
    bias : Grid or None
        Of shape [blocks, outputs]; None where it is of floats, or there is none.
    careful : bool
        See `Settings`.
    """

    weights: list[Grid]
    bias: Grid | None
    careful: bool = True

    @classmethod
    def of(cls, site: Site, model: Model, *, careful: bool = True) -> Storable:
        """Return what the file of a model can hold of a layer."""
        view, grid = site.view, site.codec.grid(model)
        own = site.bias.grid(model) if site.bias is not None else None
        weights = grid.through(view.unpack).each() if grid is not None else []

        def bias(array: Array) -> Array:
            return np.asarray(array.reshape(view.blocks, view.outputs) * view.bias_factor)

        return cls(weights, own.through(bias) if own is not None else None, careful)

    def put(self, problems: Sequence[Regression], fits: Sequence[Fit]) -> list[Fit]:
        """Return the fits as they can be stored, rounded by the moments of each block."""
        if self.weights:
            fits = [
                rounded(problem, fit, grid, careful=self.careful)
                for problem, fit, grid in zip(problems, fits, self.weights, strict=True)
            ]
        if self.bias is not None:
            fits = [Fit(fit.w, self.bias.rows(b).nearest(fit.b)) for b, fit in enumerate(fits)]
        return list(fits)


def fit_blocks(
    site: Site, evidence: Evidence, kept: Sequence[Ints], model: Model, settings: Settings
) -> tuple[list[Fit], LayerReport]:
    """Choose among the old weights, a new bias and refits by held-out error, then fit on all samples.

    Quantised weights are judged as they can be stored; of several refits only the best is rounded, to the scales that
    are there and, where they are the layer's own, to new ones. Those are put into the model where they are better.

    Parameters
    ----------
    site : Site
    evidence : Evidence
    kept : sequence of int64
        Regressors that stay, for each block.
    model : Model
        That holds the old weights.
    settings : Settings
    """
    recovery, old, centred = settings.recovery, weights_of(site, model), site.adder is not None
    storable = Storable.of(site, model, careful=settings.careful)
    if settings.rough and recovery.ridges:
        return _rough(site, evidence, kept, storable, old[0])
    train, held_out = evidence.train(centred=centred), evidence.held_out(centred=centred)
    prior = old[0].copy()
    for block, rows in enumerate(kept):
        prior[block][np.setdiff1d(np.arange(site.view.width), rows)] = 0.0
    plenty = settings.sheet // 2 if site.view.width > settings.wide else np.inf
    enough = evidence.fitting.n >= min(2 * max(len(k) for k in kept), plenty)
    local = Local(kept, old[0], prior)
    if recovery.ridges and evidence.fitting.n < ENOUGH * max(len(k) for k in kept):
        local.settle(train, held_out)
    ways = _ways(recovery, kept, (prior, old[1]), local, free=centred, enough=enough)

    def error(fits: Sequence[Fit]) -> float:
        return loss_of(held_out, fits)

    errors = tried(lambda name: error(ways[name](train)), list(ways))
    if storable.weights or storable.bias is not None:
        best = min(errors, key=lambda n: errors[n])
        errors = {
            name: error(storable.put(train, ways[name](train)))
            for name in dict.fromkeys(["kept", "bias", best])
            if name in ways
        }
        if stretchable(site, model):
            fork, fits = model.fork(), ways[best](train)
            stretch(fork, site, np.stack([fit.w for fit in fits]))
            given = Storable.of(site, fork, careful=settings.careful)
            errors[f"{best}{STRETCHED}"] = error(given.put(train, fits))
    variance = max(sum(p.variance for p in held_out), 1e-30)
    best = recovery.variants[0] if recovery.alone is not None else min(errors, key=lambda n: errors[n])
    if recovery.alone is None and errors["kept"] <= ROUNDING * variance:
        best = "kept"
    whole = evidence.whole(centred=centred)
    report = LayerReport(
        site.name,
        sum(len(k) for k in kept) // site.view.taps,
        site.view.channels * site.view.blocks,
        sum(p.n for p in whole),
        errors["kept"] / variance,
        errors[best] / variance,
        best,
        bool(recovery.ridges) and not enough,
    )
    fits = ways[best.removesuffix(STRETCHED)](whole)
    if best.endswith(STRETCHED):
        stretch(model, site, np.stack([fit.w for fit in fits]))
        storable = Storable.of(site, model, careful=settings.careful)
    return storable.put(whole, fits), report


def stretchable(site: Site, model: Model) -> bool:
    """Whether a layer's weight is of integers, on both sides of zero, whose scales can change."""
    codec = site.codec
    return site.scalable and isinstance(codec, Quantised) and min(codec.reach(model)) > 0


def stretch(model: Model, site: Site, matrices: Matrix) -> None:
    """Give a model scales that hold a layer's weight, which is `stretchable`.

    Those of a bias are products with what the layer reads, so they change by as much.

    Parameters
    ----------
    model : Model
    site : Site
    matrices : float64[blocks, width, outputs]
        See `weights_of`.
    """
    codec, bias = site.codec, site.bias
    assert isinstance(codec, Quantised)
    before = np.asarray(model.weight(codec.scale), np.float64)
    codec.stretch(model, site.view.pack(matrices))
    if isinstance(bias, Quantised):
        old = np.asarray(model.weight(bias.scale))
        new = np.divide(model.weight(codec.scale), before, out=np.ones(before.shape), where=before != 0)
        model.put(bias.scale, (old * new).astype(old.dtype))


Way = Callable[[Sequence[Regression]], list[Fit]]


def _rough(
    site: Site, evidence: Evidence, kept: Sequence[Ints], storable: Storable, old: Matrix
) -> tuple[list[Fit], LayerReport]:
    """Fit on all samples with one ridge, a strong one where rows are few; nothing is judged."""
    whole = evidence.whole(centred=site.adder is not None)
    share = PLAIN if whole[0].n >= ENOUGH * max(len(k) for k in kept) else STRONG[len(STRONG) // 2]
    fits = storable.put(whole, Local(kept, old, old).pulled(whole, share))
    size = sum(len(k) for k in kept) // site.view.taps, site.view.channels * site.view.blocks
    rows, nothing = sum(p.n for p in whole), float("nan")
    return fits, LayerReport(site.name, *size, rows, nothing, nothing, f"lstsq {share:g}")


def tried(error: Callable[[str], float], names: Sequence[str]) -> dict[str, float]:
    """Return the errors of variants; of the ridges, which are ascending, from the middle as long as it gets better."""
    ridges = [n for n in names if n.startswith("lstsq")]
    errors = {n: error(n) for n in names if n not in ridges}
    at = (len(ridges) - 1) // 2
    if ridges:
        errors[ridges[at]] = error(ridges[at])
    for way in (1, -1):
        start = at
        while ridges and 0 <= at + way < len(ridges):
            name = ridges[at + way]
            errors[name] = error(name)
            if errors[name] >= errors[ridges[at]]:
                break
            at += way
        if at != start:  # downhill on this side, so not on the other
            break
    return errors


def _ways(
    recovery: Recovery, kept: Sequence[Ints], prior: tuple[Matrix, Matrix], local: Local, *,
    free: bool, enough: bool,
) -> dict[str, Way]:  # fmt: skip
    """Return variant -> (problems of the blocks) -> fits; what is to be kept first, so that it wins among equals.

    Parameters
    ----------
    recovery : Recovery
    kept : sequence of int64
        Regressors that stay, for each block.
    prior : pair of float64
        Old matrices [blocks, width, outputs], zero outside ``kept``, and biases [blocks, outputs].
    local : Local
    free : bool
        Whether the layer can have a bias.
    enough : bool
        Whether there are rows enough for a weak ridge.
    """
    matrices, biases = prior
    ways: dict[str, Way] = {
        "kept": lambda problems: [Fit(matrices[b], biases[b]) for b in range(len(problems))]
    }
    if free and "bias" in recovery.variants:
        ways["bias"] = lambda problems: [bias_only(p, kept[b], matrices[b]) for b, p in enumerate(problems)]
    if recovery.ridges:
        ways["local"] = local.fits
    for share in recovery.ridges if enough else STRONG if recovery.ridges else ():
        ways[f"lstsq {share:g}"] = partial(local.pulled, share=share)
    alone = recovery.alone
    if alone is not None:
        ways[recovery.variants[0]] = lambda problems: [
            alone(p, kept[b], matrices[b]) for b, p in enumerate(problems)
        ]
    return ways


def write(model: Model, site: Site, fits: Sequence[Fit]) -> None:
    """Put fitted weights and biases into a model; a bias that others read too gets a copy."""
    whole, vector = site, np.concatenate([f.b for f in fits])
    if isinstance(site.codec, Narrow):
        whole, vector = site.codec.site, site.codec.widened(model, vector)
    site.codec.write(model, site.view.pack(np.stack([f.w for f in fits])))
    if site.adder is not None and (site.bias is not None or np.any(vector)):
        _write_bias(model, whole, vector / site.view.bias_factor)


def _write_bias(model: Model, site: Site, vector: Matrix) -> None:
    size = site.view.blocks * site.view.outputs
    whole = site.bias is not None and prod(site.bias.shape(model)) == size
    if site.bias is not None and whole and site.own:
        site.bias.write(model, vector)
        return
    like = model.weight((site.bias or site.codec).name)
    shape = site.bias.shape(model) if site.bias is not None and whole else (size,)
    value = vector.reshape(shape).astype(like.dtype)
    name = model.add(f"{site.weight}_bias", value)
    if model.proto.ir_version < 4:  # there every initializer is a graph input as well
        kind = onnx.helper.np_dtype_to_tensor_dtype(value.dtype)
        model.proto.graph.input.append(onnx.helper.make_tensor_value_info(name, kind, value.shape))
    for use in site.uses:
        assert use.adder is not None
        node, slot = model.proto.graph.node[model.order[use.adder[0]]], use.adder[1]
        while len(node.input) <= slot:
            node.input.append("")
        node.input[slot] = name
