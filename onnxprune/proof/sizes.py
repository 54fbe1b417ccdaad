"""Sizes of dynamic axes to compare at: smaller and larger ones, each axis by itself and all of them together.

An analysis is made at one set of sizes, the bound ones. What it overlooks there shows at others: a table of positions
that is longer than the bound sequence, a batch that is more than a name. So a comparison goes on to

- a batch of one, and one of more;
- for every other axis a length of one, half of the bound one, and larger ones, as far as the model runs: its tables
  (what is looked up or sliced) say where that may end, else it is twice the bound size;
- all axes together, smaller and larger.

What the model can't run is found by trying. Sizes that would take more than `MOST_MACS` or a tensor of more than
`MOST_BYTES` are left out, and those that would take more memory than the wall allows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod

from onnxprune.graph.analysis import Analysis
from onnxprune.graph.trace import TraceError, Tracer, Unsound
from onnxprune.ops import Trait
from onnxprune.runtime.binding import Axes, Shape
from onnxprune.wall import board as wall

__all__ = ["Attempt", "SizeTrials"]

#: The longest that an axis gets.
MOST = 8192
#: Of one run, where it is more than four times the work of the bound sizes.
MOST_MACS, MOST_BYTES = 5e10, 1 << 28
#: What a run holds at once, in tensors of the largest one's size: input, output, and what kernels copy.
AT_ONCE = 3
#: Lengths of tables that are tried.
MOST_TABLES = 6

#: Runs a model on inputs of these shapes, given the sizes that they come from; returns why it doesn't run, or nothing.
Attempt = Callable[[Mapping[str, Shape], Mapping[str, int]], str]


class SizeTrials:
    """Tries a model at sizes of its dynamic axes.

    Parameters
    ----------
    analysis : Analysis
    attempt : callable
        Runs the model.

    Attributes
    ----------
    axes : Axes
    ran : list of dict
        Axis -> size, for each attempt that succeeded; the bound sizes are not among them.
    failed : list of (dict, str)
        Sizes that the model can't be run at, and why.
    """

    analysis: Analysis
    attempt: Attempt
    axes: Axes
    bound: dict[str, int]
    macs: int
    work: int
    largest: int

    def __init__(self, analysis: Analysis, attempt: Attempt) -> None:
        self.analysis, self.attempt = analysis, attempt
        self.axes = Axes.of(analysis.model.proto.graph, analysis.inputs)
        self.bound = dict(self.axes.sizes)
        self.ran: list[dict[str, int]] = []
        self.failed: list[tuple[dict[str, int], str]] = []
        self.tried: dict[tuple[tuple[str, Shape], ...], bool] = {_key(analysis.inputs): True}
        self.macs = sum(prod(analysis.coupling.space.sizes[d] for d in dims)
                        for applied in analysis.coupling.nodes for dims in applied.macs)  # fmt: skip
        self.work = _elements(analysis.inputs)
        self.largest = _largest(analysis.tracer)

    def run(self) -> None:
        """Try all there are to be tried."""
        if not self.bound:
            return
        base = dict(self.bound)
        batch = [a for a in self.bound if a in self.axes.batch]
        if batch and self.ok({**base, **dict.fromkeys(batch, 1)}):
            base |= dict.fromkeys(batch, 1)
        self._together()
        sizes = [{**self.bound, **one} for one in self.ran]
        more = [a for a in batch if all(s[a] <= self.bound[a] for s in sizes)]
        if more and not self.ok({**self.bound, **{a: self.bound[a] + 1 for a in more}}):
            for axis in more if len(more) > 1 else ():
                self.ok({**self.bound, axis: self.bound[axis] + 1})
        for axis in self.bound:
            if axis not in self.axes.batch:
                self._alone(base, axis)

    def _together(self) -> None:
        """Try all axes larger, and all smaller."""
        other = self.analysis.other_trace()
        shapes = {} if other is None else {n: other.types[n][1] or () for n in self.analysis.inputs}
        larger = Axes.of(self.analysis.model.proto.graph, shapes).sizes if shapes else {}
        all_larger = all(larger.get(a, 0) > s for a, s in self.bound.items())
        if not (all_larger and self.ok(larger)):
            self.ok({a: 2 * s for a, s in self.bound.items()})
        self.ok({a: max(s // 2, 1) for a, s in self.bound.items()})

    def _alone(self, base: dict[str, int], axis: str) -> None:
        """Try one axis by itself; with those that have its size too, where it can't change alone."""
        alike = {a for a, s in base.items() if s == base[axis] and a not in self.axes.batch}
        for group in ({axis}, alike):
            for size in (1, base[axis] // 2):
                if 0 < size < base[axis]:
                    self.ok({**base, **dict.fromkeys(group, size)})
            if self._larger(base, group, base[axis]):
                return

    def _larger(self, base: dict[str, int], group: set[str], bound: int) -> bool:
        """Try larger sizes, up to the largest that runs; return whether any does."""

        def fits(size: int) -> bool:
            return self.ok({**base, **dict.fromkeys(group, size)})

        lengths = [n for n in self.tables() if bound < n <= MOST]
        for length in sorted(lengths, reverse=True)[:MOST_TABLES]:
            for size in (length, length - 1, length - 2):  # tables may begin with an offset
                if size > bound and fits(size):
                    fits(size + 1)
                    return True
        last = 2 * bound
        if not fits(last):
            return self._between(fits, bound, last) > bound if lengths else fits(bound + 1)
        while lengths and 2 * last <= MOST:
            if not fits(2 * last):
                self._between(fits, last, 2 * last)
                break
            last *= 2
        return True

    def _between(self, fits: Callable[[int], bool], runs: int, fails: int) -> int:
        """Close in on the largest size that runs, in a few steps."""
        for _ in range(8):
            middle = (runs + fails) // 2
            if middle in (runs, fails):
                break
            runs, fails = (middle, fails) if fits(middle) else (runs, middle)
        return runs

    def tables(self) -> set[int]:
        """Return the lengths of weights that are looked up or sliced."""
        weights = self.analysis.tracer.weights
        lengths: set[int] = set()
        for applied in self.analysis.coupling.nodes:
            node = applied.node
            looked_up = Trait.LOOKUP in node.traits or node.op == "Slice"
            for name in node.inputs if looked_up else ():
                shape = weights[name].shape if name in weights else ()
                axis = node.attrs.get("axis", 0)
                if node.op != "Gather" or not shape:
                    lengths |= set(shape)
                elif -len(shape) <= axis < len(shape):  # indices may have fewer axes than what they pick from
                    lengths.add(shape[axis])
        return lengths

    def ok(self, sizes: dict[str, int]) -> bool:
        """Try these sizes, once."""
        shapes = self.axes.shapes(sizes)
        if shapes is None or any(s < 1 for s in sizes.values()):
            return False
        key = _key(shapes)
        if key not in self.tried:
            why = self.analysis.refusals.get(key, "")
            if not why:
                if not self._affordable(shapes):
                    self.tried[key] = False
                    return False
                why = self.attempt(shapes, sizes)
            self.tried[key] = not why
            if why:
                self.analysis.refusals[key] = why
                self.failed.append((sizes, why))
            else:
                self.ran.append(sizes)
        return self.tried[key]

    def _affordable(self, shapes: Mapping[str, Shape]) -> bool:
        """Whether a run at these sizes takes little time and memory."""
        factor = _elements(shapes) / max(self.work, 1)
        if factor > 1 and self.largest * factor * AT_ONCE > wall.allowed():
            return False
        if factor > 4 and self.macs * factor > MOST_MACS:
            return False
        # where all attend to all, tensors grow with the square
        if factor <= 4 and (factor <= 1 or self.largest * factor**2 * AT_ONCE <= wall.allowed()):
            return True
        try:
            traced = self.analysis.trace(dict(shapes))
        except Unsound:
            return False  # a tensor would be too large
        except TraceError:
            return True  # it will fail at once
        # memory grows by powers of two: it may be twice what is asked for
        return _largest(traced) <= min(MOST_BYTES, wall.allowed() / (2 * AT_ONCE))


def _largest(traced: Tracer) -> int:
    """Return the bytes of the largest tensor that a run makes, in fp32."""
    made = [prod(shape) * 4 for name, (_, shape) in traced.types.items()
            if shape is not None and name not in traced.weights]  # fmt: skip
    return max(made, default=0)


def _key(shapes: Mapping[str, Shape]) -> tuple[tuple[str, Shape], ...]:
    return tuple(sorted(shapes.items()))


def _elements(shapes: Mapping[str, Shape]) -> int:
    return sum(prod(shape) for shape in shapes.values())
