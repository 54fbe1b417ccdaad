"""Turn the units of mixable groups so that the first hold most of what is read, and the last can go.

A stream, read by layers with weights ``W`` and inputs of covariance ``C``, gets an orthogonal basis: its first ``k``
axes span the ``k`` sums of inputs from which the layers' outputs follow with the least squared error, for each ``k``.
In a product ``q . k`` the bases are those of the singular vectors of ``Cq^1/2 Ck^1/2``: dropping axes changes the
products by the squares of their singular values, if ``q`` and ``k`` are independent. ``Ck`` is taken about the mean,
since what all keys share moves all products of a query alike and a Softmax doesn't see it.

Nothing is lost: the model computes what it did, which is checked in onnxruntime; what fails is left as it was. Integers
are rounded again, on scales that hold them, which loses as little as their grid allows.

References
----------
Eckart and Young, "The approximation of one matrix by another of lower rank", Psychometrika 1936. Streams: reduced-rank
regression, Izenman 1975; rotations of what lies between layers, Ashkboos et al., SliceGPT, arXiv 2401.15024.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.calibration.agreement import Outputs
from onnxprune.calibration.samples import Samples
from onnxprune.calibration.stream import stream_of
from onnxprune.cut.put_back import Failed, most
from onnxprune.errors import VerificationError
from onnxprune.graph.analysis import Analysis
from onnxprune.graph.group_types import Group
from onnxprune.model import Model
from onnxprune.proof.compare import Difference
from onnxprune.proof.elsewhere import apart, resized
from onnxprune.proof.interior import compare_any
from onnxprune.reconstruction.evidence import positions_of
from onnxprune.reconstruction.layer import stretch, stretchable, weights_of, write
from onnxprune.reconstruction.layers import readers, sites
from onnxprune.reconstruction.least_squares import Fit
from onnxprune.reconstruction.moments import Moments
from onnxprune.reconstruction.products import Mixable, Side
from onnxprune.reconstruction.stored import Quantised
from onnxprune.reconstruction.views import columns
from onnxprune.rotation.linear import find
from onnxprune.runtime.session import RunError

__all__ = ["Rotated", "rotate"]

Matrix = NDArray[np.float64]

#: Samples that the bases are found on, and that the model is compared on; positions of a sample that are looked at.
FEW, CHECKED, POSITIONS = 256, 16, 256
#: Added to covariances, as a share of their mean variance, before they are inverted.
RIDGE = 1e-4
#: Greatest difference of an output, relative to its greatest value, that rounding may make.
ROUNDING: dict[np.dtype[Any], float] = {
    np.dtype(np.float64): 1e-9,
    np.dtype(np.float32): 1e-3,
    np.dtype(np.float16): 2e-2,
}
#: So many times the difference that a grid's steps make by themselves may be made: turned, weights reach farther.
REGRIDDED = 2.0


@dataclass
class Rotated:
    """A model whose mixable groups stand in another basis.

    Attributes
    ----------
    analysis : Analysis
        Of a model that computes what the original does.
    mixed : list of Mixable
        What was turned.
    strength : dict
        Group that is a product -> float64[units], the squared singular values over all heads, falling.
    refused : dict
        Group -> why it was left as it was.
    """

    analysis: Analysis
    mixed: list[Mixable] = field(default_factory=list)
    strength: dict[str, Matrix] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)

    def notes(self) -> list[str]:
        """Say what was turned, and what wasn't, in sentences."""
        sentences = []
        if self.mixed:
            turned = len({m.group for m in self.mixed})
            sentences.append(
                f"{_groups(turned)} turned before the cut, so that few axes hold most of what is read."
            )
        if self.refused:
            name, why = next(iter(self.refused.items()))
            sentences.append(f"{_groups(len(self.refused))} not turned: {why} ({name} first).")
        return sentences


def _groups(count: int) -> str:
    return "1 group was" if count == 1 else f"{count} groups were"


def rotate(
    analysis: Analysis, groups: list[Group], samples: Samples, say: Callable[[str], None] | None = None, *,
    integers: bool = True,
) -> Rotated:  # fmt: skip
    """Turn the units of the groups that can be mixed.

    Parameters
    ----------
    analysis : Analysis
    groups : sequence of Group
    samples : Samples
        Of which a few hundred are taken.
    say : callable, optional
        Told of progress.
    integers : bool
        Whether to turn what lies on a grid, too, which is rounded again.

    Raises
    ------
    CalibrationError
        If onnxruntime fails on the samples.
    """
    result, layers = Rotated(analysis), [s for s in sites(analysis) if s.exact or integers]
    few = samples.few(FEW)
    hidden = set[str]().union(*stream_of(analysis.model, few).hidden())  # no run gives what is in there
    mixables = {
        m.name: m
        for m in find(analysis, groups, layers, readers(layers, groups))
        if hidden.isdisjoint(n for side in (*m.left, *m.right) for n in (side.site.x, side.site.y))
    }
    if not mixables:
        return result
    moments = _moments(analysis, few, mixables.values(), say)
    turns = {name: _turn(analysis.model, mixable, moments) for name, mixable in mixables.items()}
    same = _Same(analysis, samples.few(CHECKED), mixables.values())

    def attempt(names: Sequence[str]) -> Model:
        model = analysis.model.fork()
        for name in names:
            _apply(model, mixables[name], turns[name])
        if names:
            same.check(model)
        return model

    try:
        model, refused = most(list(mixables), attempt)
    except VerificationError as error:
        result.refused = {m.group: str(error) for m in mixables.values()}
        return result
    result.analysis = replace(analysis, model=model)
    result.mixed = [m for name, m in mixables.items() if name not in refused]
    result.refused = {mixables[name].group: why for name, why in refused.items()}
    result.strength = {m.group: turns[m.name].strength for m in result.mixed if m.product >= 0}
    return result


@dataclass
class _Turn:
    """Matrices for the left and the right of a group, [heads, units, units], and the strength of each axis."""

    left: Matrix
    right: Matrix
    strength: Matrix


class _Same:
    """Whether a model computes what it did, but for rounding.

    Where weights lie on a grid, no turned one is the same: there the difference may be a little more than what as many
    steps of the grid make, taken at random (`_shaken`), both over all of an output's elements.
    """

    def __init__(self, analysis: Analysis, samples: Samples, mixables: Iterable[Mixable]) -> None:
        self.analysis, self.samples = analysis, samples
        self.before = Outputs(analysis.model, samples).flat()
        sides = [s for m in mixables for s in (*m.left, *m.right)]
        types = {analysis.model.weight(s.site.weight).dtype for s in sides}
        plain = ROUNDING[np.dtype(np.float32)]
        self.most = max((ROUNDING.get(t, plain) for t in types), default=plain)
        codecs = {s.site.weight: s.site.codec for s in sides}
        stored = [codec for codec in codecs.values() if isinstance(codec, Quantised)]
        self.differ = _distance if stored else compare_any
        self.here = self.there = self.most
        if stored:
            shaken = _shaken(analysis.model, stored)
            self.here = max(self.most, REGRIDDED * self._gap(shaken).error)
            self.there = max(self.most, REGRIDDED * self._elsewhere(shaken)[0])

    def check(self, model: Model) -> None:
        """Raise `Failed` if it doesn't."""
        gap = self._gap(model)
        if gap.void:
            raise Failed(f"the output on the samples is {gap.void}, so nothing can be compared")
        if not gap.error <= self.here:
            raise Failed(f"in another basis the output differs by {gap.error:.1e}")
        try:
            error, where = self._elsewhere(model)
        except RunError as reason:
            raise Failed(f"in another basis the model doesn't run at other sizes: {reason}") from reason
        if not error <= self.there:
            raise Failed(
                f"in another basis the output differs by {error:.1e} at {where or 'the bound sizes'}"
            )

    def _gap(self, model: Model) -> Difference:
        return self.differ(self.before, Outputs(model, self.samples).flat(), 0.0)

    def _elsewhere(self, model: Model) -> tuple[float, str]:
        """Compare at other sizes of the dynamic axes, on samples that are cut or repeated."""
        given, inputs = self.samples.batches[0], self.analysis.inputs
        if any(given[name].ndim != len(shape) or not given[name].size for name, shape in inputs.items()):
            return 0.0, ""  # samples of another form than the inputs'
        return apart(
            self.analysis, self.analysis.model, model, lambda shapes: resized(given, shapes), self.differ
        )


def _distance(a: Any, b: Any, step: float) -> Difference:
    """Return |a - b| / |a| where both are floats of one shape."""
    plain = compare_any(a, b, step)
    if not np.isfinite(plain.error) or getattr(a, "dtype", np.dtype(bool)).kind != "f":
        return plain
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    whole = float(np.linalg.norm(a))
    return Difference(float(np.linalg.norm(a - b)) / max(whole, 1e-300), plain.void)


def _shaken(model: Model, codecs: Iterable[Quantised]) -> Model:
    """Return a model in which one of twelve integers has moved by a step: the variance of rounding is a twelfth."""
    shaken, rng = model.fork(), np.random.default_rng(0)
    for codec in codecs:
        integers = codec.integers(model)
        moves = rng.integers(0, 24, integers.shape)
        codec.put(shaken, np.clip(integers + (moves == 0) - (moves == 1), *codec.ends(model)))
    return shaken


def _moments(
    analysis: Analysis, samples: Samples, mixables: Iterable[Mixable], say: Callable[[str], None] | None
) -> dict[str, Moments]:
    """Return the moments of the channels of the tensors at both ends."""
    wanted: dict[str, tuple[int, int]] = {}  # how far the model runs for it, its channel axis
    for mixable in mixables:
        for side in mixable.makers:
            wanted[side.site.y] = side.site.end + 1, side.site.view.out_axis
        for side in () if mixable.product >= 0 else mixable.right:
            wanted[side.site.x] = side.site.number, _in_axis(analysis, side)
    stream = stream_of(analysis.model, samples, analysis.types)
    stream.keep = set(wanted)
    result: dict[str, Moments] = {}
    for number, (name, (end, axis)) in enumerate(sorted(wanted.items(), key=lambda item: item[1][0])):
        if say:
            say(f"turn {number + 1}/{len(wanted)}: {name}")
        for batch, count, valid in zip(stream.run(end, [name]), samples.counts, samples.valid, strict=True):
            array = batch[name]
            channels = array.shape[axis]
            at = positions_of(array, array.size // channels, valid)
            at = at[:: max(len(at) // (POSITIONS * max(count, 1)), 1)]
            result.setdefault(name, Moments.empty(channels)).add(columns(array, axis, at))
        stream.keep.discard(name)
    return result


def _in_axis(analysis: Analysis, side: Side) -> int:
    """Return the axis of what a layer reads that its weight reads, too."""
    applied, find = analysis.coupling.nodes[side.site.number], analysis.coupling.space.find
    own = {find(applied.ins[1][axis]) for slot, axis in applied.contracted if slot == 1 and applied.ins[1]}
    data = applied.ins[0] or ()
    (axis,) = [at for slot, at in applied.contracted if slot == 0 and find(data[at]) in own]
    return axis


def _turn(model: Model, mixable: Mixable, moments: Mapping[str, Moments]) -> _Turn:
    def of(side: Side, head: int, tensor: str) -> Moments:
        whole, at = moments[tensor], side.at[head]
        return Moments(len(at), whole.n, whole.mean[at], whole.gram[np.ix_(at, at)], whole.square)

    bases = []
    for head in range(mixable.heads):
        left = [(s, h) for s in mixable.left for h in _share(len(s.at), mixable.heads, head)]
        right = [(s, h) for s in mixable.right for h in _share(len(s.at), mixable.heads, head)]
        if mixable.product >= 0:
            first, second = ([of(s, h, s.site.y) for s, h in sides] for sides in (left, right))
            second_moment = np.sum([m.cov + np.outer(m.mean, m.mean) for m in first], axis=0)
            bases.append(_product(second_moment, np.sum([m.cov for m in second], axis=0)))
        else:
            bases.append(_stream([(of(s, h, s.site.x).cov, _read(model, s, h)) for s, h in right]))
    a, b, strength = zip(*bases, strict=True)
    return _Turn(np.stack(a), np.stack(b), np.sum(strength, axis=0))


def _share(side_heads: int, heads: int, head: int) -> range:
    """Return which of a side's heads take one matrix: neighbours, where it has more of them than there are."""
    each = side_heads // heads
    return range(head * each, (head + 1) * each)


def _read(model: Model, side: Side, head: int) -> Matrix:
    """Return float64[units, taps * outputs], what a layer does with the units of a head."""
    view = side.site.view
    matrix = weights_of(side.site, model)[0][0].reshape(view.channels, -1)
    return np.asarray(matrix[side.at[head]])


def _stream(readers: Sequence[tuple[Matrix, Matrix]]) -> tuple[Matrix, Matrix, Matrix]:
    """Return the basis of a stream, its inverse for the readers, and nothing to say of strength."""
    cov = np.mean([c for c, _ in readers], axis=0)
    gram = np.zeros_like(cov)
    for own_cov, weight in readers:  # each reader's error in units of its output
        one = weight @ weight.T
        gram += one / max(float(np.sum(one * own_cov)), 1e-30)
    root = _root(cov)
    strength, vectors = np.linalg.eigh(root @ gram @ root)
    basis = np.linalg.qr(gram @ root @ vectors[:, ::-1])[0]
    return basis, basis, np.maximum(strength[::-1], 0.0)


def _product(left: Matrix, right: Matrix) -> tuple[Matrix, Matrix, Matrix]:
    """Return the bases of both sides of a product, and the squares of what each axis adds to it."""
    one, two = _root(left), _root(right)
    _, s, vt = np.linalg.svd(one @ two)
    scale = 1 / np.sqrt(np.maximum(s, 1e-6 * max(float(s[0]), 1e-30)))
    basis = two @ vt.T * scale
    return basis, np.linalg.inv(basis).T, s**2


def _root(cov: Matrix) -> Matrix:
    """Return the square root of a covariance with a little ridge."""
    size = max(float(np.trace(cov)) / len(cov), 1e-30)
    values, vectors = np.linalg.eigh(cov + RIDGE * size * np.eye(len(cov)))
    return np.asarray((vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T)


def _apply(model: Model, mixable: Mixable, turn: _Turn) -> None:
    """Put the matrices into the layers of both ends."""
    for side in mixable.left:
        _make(model, side, turn.left)
    for side in mixable.right:
        if mixable.product >= 0:
            _make(model, side, turn.right)
        else:
            _take(model, side, turn.right)


def _make(model: Model, side: Side, turns: Matrix) -> None:
    matrix, bias = (np.array(a[0]) for a in weights_of(side.site, model))
    for turn, head in _by_head(side, turns):
        matrix[:, head] = matrix[:, head] @ turn
        bias[head] = bias[head] @ turn
    _write(model, side, matrix, bias)


def _take(model: Model, side: Side, turns: Matrix) -> None:
    matrix, bias = (np.array(a[0]) for a in weights_of(side.site, model))
    view = side.site.view
    split = matrix.reshape(view.channels, -1)
    for turn, head in _by_head(side, turns):
        split[head] = turn.T @ split[head]
    _write(model, side, split.reshape(matrix.shape), bias)


def _by_head(side: Side, turns: Matrix) -> Iterable[tuple[Matrix, NDArray[Any]]]:
    for number, turn in enumerate(turns):
        for head in _share(len(side.at), len(turns), number):
            yield turn, side.at[head]


def _write(model: Model, side: Side, matrix: Matrix, bias: Matrix) -> None:
    site = side.site if side.site.bias is not None else replace(side.site, adder=None)  # none is added
    if stretchable(site, model):
        stretch(model, site, matrix[None])
    write(model, site, [Fit(matrix, bias)])
