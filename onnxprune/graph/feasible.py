"""Sizes of dynamic axes under which a graph's shapes agree: guesses, then a search by the model's own constants.

A graph may demand what no guess fits: a batch of one for its states, a number of tokens that a Reshape has baked, a
mask as long as past and present together. The first node that doesn't fit says which sizes ought to be equal, so the
search goes from a guess in steps, each along one axis (or several of one size), to sizes with which more nodes fit.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

import onnx
from onnx import NodeProto

from onnxprune.graph.agree import Agreement, walk
from onnxprune.graph.trace import TooLarge, Tracer, Unsound
from onnxprune.ops import Node
from onnxprune.runtime import binding
from onnxprune.runtime.binding import Axes, Shape

__all__ = ["Feasible"]

Sizes = dict[str, int]

#: The longest that an axis gets.
MOST = 4096
#: Nodes that a search may visit in all.
MOST_VISITS = 60_000
#: Guesses that come before the search; those behind them are large.
EARLY = 6
#: Sizes that are run, at most, to find some that the model takes.
MOST_TRIALS = 24
#: Elements of a tensor beyond which smaller sizes are looked for: a run at these may take many gigabytes.
LARGE = 1 << 24
#: The shortest that an axis becomes for that.
SHORTEST = 8
#: How many times longer axes get, by turns, where inner ones have one element under shorter ones only.
LONGER = (2, 4, 8)
#: Sizes of all axes but the batch that are tried at last.
_LAST = (
    1, 2, 4, 8, 16, 20, 24, 28, 32, 40, 48, 56, 80, 96, 100, 112, 128, 160, 240, 256, 299, 320, 384, 400, 480, 512,
    518, 600, 1000, 1024, 2000, 2048, 4000, 4096,
)  # fmt: skip

#: The same, where some inputs are states: before those.
_BESIDE_STATES = (512, 256, 1024, 128, 64, 32, 16)


def states_of(axes: Axes) -> frozenset[str]:
    """Return the axes without a name that count the sequences of a state, ``[layers, sequences, width]``, as far as one
    can tell: the only dynamic axis of its input, between fixed ones.
    """
    only = ([a for a in own if isinstance(a, str)] for own in axes.axes_of.values() if len(own) > 2)
    inner = {a for own in axes.axes_of.values() for a in own[1:-1] if isinstance(a, str)}
    alone = {found[0] for found in only if len(found) == 1}
    return frozenset((alone & inner & axes.sizes.keys()) - axes.batch)


@dataclass
class Feasible:
    """The sizes that fit a graph, the likeliest first.

    Parameters
    ----------
    graph : GraphProto
    nodes : sequence of NodeProto
        In topological order.
    tracer : callable
        Makes a tracer of the graph whose inputs have these shapes.
    given : mapping
        Shapes that the user says.

    Attributes
    ----------
    failure : Agreement or None
        Of the likeliest sizes, where they don't fit.
    unrun : str
        Why sizes that fit can't be run, where that was seen.
    """

    graph: onnx.GraphProto
    nodes: Sequence[NodeProto]
    tracer: Callable[[Mapping[str, Shape]], Tracer]
    given: Mapping[str, Shape]
    failure: Agreement | None = None
    walks: dict[tuple[tuple[str, Shape], ...], Agreement] = field(default_factory=dict, repr=False)
    ignored: set[int] = field(default_factory=set)
    visits: int = 0
    unrun: str = ""

    def taken(self, runs: Callable[[Mapping[str, Shape]], str] | None) -> Iterator[dict[str, Shape]]:
        """Yield shapes for all inputs that a model can be analysed at, the likeliest first.

        Parameters
        ----------
        runs : callable, optional
            Says why the model can't be run on inputs of these shapes, if so; asked where shapes alone don't tell.
        """
        guesses = binding.bindings(self.graph, self.given)
        if not binding.is_dynamic(self.graph, {}):
            yield from guesses
            return
        unrun: dict[str, Shape] | None = None
        for number, inputs in enumerate(self):
            asked = runs is not None and not self.at(inputs).sure and number < MOST_TRIALS
            why = runs(inputs) if asked and runs is not None else ""
            if why:
                unrun, self.unrun = unrun or inputs, self.unrun or why
                continue
            yield self._lighter(inputs, runs)
        if unrun is not None:
            yield unrun
        if self.failure is None or not self.failure.hard:
            yield from guesses

    def _lighter(
        self, inputs: dict[str, Shape], runs: Callable[[Mapping[str, Shape]], str] | None
    ) -> dict[str, Shape]:
        """Return smaller shapes that fit too, where a tensor would be large; those that the user gave stay."""
        if self._largest(inputs) <= LARGE:
            return inputs
        axes = Axes.of(self.graph, inputs)
        found, sizes = inputs, dict(axes.sizes)
        while self._largest(found) > LARGE:
            free = [a for a, size in sizes.items() if a not in axes.batch and size >= 2 * SHORTEST]
            for group in (free, *([a] for a in free)):
                smaller = sizes | {a: sizes[a] // 2 for a in group}
                shapes = axes.shapes(smaller) if group else None
                if shapes is None or any(shapes[name] != shape for name, shape in self.given.items()):
                    continue
                walked = self.at(shapes)
                if walked.whole and (walked.sure or runs is None or not runs(shapes)):
                    found, sizes = shapes, smaller
                    break
            else:
                break
        return found

    def longer(
        self,
        inputs: dict[str, Shape],
        flat: Collection[tuple[str, int]],
        runs: Callable[[Mapping[str, Shape]], str] | None,
    ) -> dict[str, Shape]:
        """Return larger shapes at which more of some inner axes have more than one element; else the same.

        Parameters
        ----------
        inputs : dict
            Shapes that fit.
        flat : collection of (str, int)
            Tensors, and the places of axes that have one element in them.
        runs : callable, optional
            As in `taken`. Shapes that the user gave stay.
        """
        axes = Axes.of(self.graph, inputs)
        free = [a for a in axes.sizes if a not in axes.batch]
        best, most = inputs, 0
        for times in LONGER if flat and free else ():
            shapes = axes.shapes(axes.sizes | {a: times * axes.sizes[a] for a in free})
            if shapes is None or any(shapes[name] != shape for name, shape in self.given.items()):
                break
            walked = self.at(shapes)
            if not walked.whole or walked.trace is None or self._largest(shapes) > LARGE:
                break
            types = walked.trace[0].types
            thick = sum((types.get(name, (0, None))[1] or ())[at : at + 1] > (1,) for name, at in flat)
            if thick > most and (walked.sure or runs is None or not runs(shapes)):
                best, most = shapes, thick
            if most == len(flat):
                break
        return best

    def _largest(self, inputs: Mapping[str, Shape]) -> int:
        """Return the elements of the largest tensor that follows from inputs of these shapes."""
        traced = self.at(inputs).trace
        known = traced[0].types.values() if traced else ()
        return max((prod(shape) for _, shape in known if shape is not None), default=0)

    def notes(self, inputs: Mapping[str, Shape]) -> list[str]:
        """Return what is to be said where these shapes were taken instead of those that the user gave."""
        if all(inputs[name] == shape for name, shape in self.given.items()):
            return []
        why = self.unrun or ("" if self.failure is None else self.failure.why)
        return [
            f"the model doesn't run with '{binding.option(self.given, self.graph)}' ({why}), but with "
            f"'{binding.option(inputs, self.graph)}', which was taken instead"
        ]

    def __iter__(self) -> Iterator[dict[str, Shape]]:
        guesses = list(binding.bindings(self.graph, self.given))
        self._ignore(guesses)
        if self.failure is not None and isinstance(self.failure.own, Unsound):
            smaller = self._shorter(guesses[0])
            if smaller is not None:
                yield smaller
            return
        done = []
        for number, inputs in enumerate([*guesses, None]):
            if number == EARLY or (inputs is None and number < EARLY):
                for start, said in [
                    (g, s) for s in ([self.given, {}] if self.given else [{}]) for g in guesses[:2]
                ]:
                    found = self._climb(start, said)
                    if found is not None and found not in done:
                        done.append(found)
                        yield found
            if inputs is not None and inputs not in done and self.at(inputs).whole:
                done.append(inputs)
                yield inputs
        for shapes in self._others(guesses[:2]):
            if shapes not in done and self.at(shapes).whole:
                done.append(shapes)
                yield shapes

    def _shorter(self, inputs: Mapping[str, Shape]) -> dict[str, Shape] | None:
        """Return smaller shapes, but those that the user gave, at which no tensor is too large, if any fit."""
        axes, shapes = Axes.of(self.graph, inputs), dict(inputs)
        sizes = dict(axes.sizes)
        while isinstance(self.at(shapes).own, TooLarge):
            free = [a for a, size in sizes.items() if a not in axes.batch and size >= 2 * SHORTEST]
            sizes |= {a: sizes[a] // 2 for a in free}
            smaller = axes.shapes(sizes) if free else None
            if smaller is None or any(smaller[name] != shape for name, shape in self.given.items()):
                return None
            shapes = smaller
        return shapes if self.at(shapes).whole else None

    def _others(self, starts: Sequence[Mapping[str, Shape]]) -> Iterator[dict[str, Shape]]:
        """Yield sizes that are tried at last, with each start's batch; first beside states of as many sequences."""
        for sizes, beside in ((_BESIDE_STATES, True), (_LAST, False)):
            for size in sizes:
                for axes in (Axes.of(self.graph, start) for start in starts):
                    states = states_of(axes) if beside else frozenset[str]()
                    batch = min((axes.sizes[a] for a in axes.batch), default=1)
                    shapes = axes.shapes(
                        {
                            a: s if a in axes.batch else batch if a in states else size
                            for a, s in axes.sizes.items()
                        }
                    )
                    if shapes is not None and (states or not beside):
                        yield shapes

    def _ignore(self, guesses: Sequence[Mapping[str, Shape]]) -> None:
        """Leave alone what fails its row in the same way whatever the sizes: the row is too strict there."""
        other = next(binding.bindings(self.graph, {}, other=True))
        while not (first := self.at(guesses[0])).whole:
            if self.failure is None:
                self.failure = first
            second = None if first.hard else self.at(other)
            if second is None or second.hard or (first.passed, first.pairs) != (second.passed, second.pairs):
                return
            self.ignored.add(first.passed)
            self.walks.clear()

    def at(self, inputs: Mapping[str, Shape]) -> Agreement:
        """Return how the graph fits inputs of these shapes."""
        key = tuple(sorted(inputs.items()))
        if key not in self.walks:
            self.walks[key] = found = walk(self.tracer(inputs), self.nodes, self.ignored)
            self.visits += found.passed + 1
        return self.walks[key]

    def trace(self, inputs: Mapping[str, Shape]) -> tuple[Tracer, Sequence[Node] | None]:
        """Return a tracer for inputs of these shapes; with what it has seen of the nodes, if they are known to fit."""
        walked = self.walks.get(tuple(sorted(inputs.items())))
        return (self.tracer(inputs), None) if walked is None or walked.trace is None else walked.trace

    def _climb(self, start: Mapping[str, Shape], said: Mapping[str, Shape]) -> dict[str, Shape] | None:
        """Go from one guess to sizes that fit, past none that are said; None where no step leads on."""
        axes = Axes.of(self.graph, start)
        self.visits = 0
        sizes = dict(axes.sizes)

        def look(sizes: Sizes) -> Agreement | None:
            shapes = axes.shapes(sizes)
            fits = shapes is not None and all(1 <= s <= MOST for s in sizes.values())
            fits &= shapes is not None and all(shapes[name] == shape for name, shape in said.items())
            return self.at(shapes) if shapes is not None and fits else None

        at = look(sizes)
        while at is not None and not at.whole:
            best: tuple[tuple[int, float, int], Sizes, Agreement] | None = None
            for step in self._steps(axes, sizes, at, look):
                seen = look(step)
                if self.visits > MOST_VISITS:
                    return None
                if seen is None or (seen.passed, -seen.gap) <= (at.passed, -at.gap):
                    continue
                key = (seen.passed, -round(seen.gap, 9), -prod(step.values()))
                if best is None or key > best[0]:
                    best = key, step, seen
                if seen.whole:
                    break
            if best is None:
                return None
            _, sizes, at = best
        return axes.shapes(sizes)

    def _steps(
        self, axes: Axes, sizes: Sizes, at: Agreement, look: Callable[[Sizes], Agreement | None]
    ) -> Iterator[Sizes]:
        """Yield sizes that the node which doesn't fit speaks for."""
        groups = [[a] for a in sizes]
        free = [a for a in sizes if a not in axes.batch]
        alike = [[b for b in free if sizes[b] == sizes[a]] for a in free]
        groups += [g for n, g in enumerate(alike) if len(g) > 1 and g not in alike[:n]]
        bare: list[Sizes] = []
        for group in groups:
            size, done = sizes[group[0]], set()
            for one, other in at.pairs[:4]:
                for have, want in ((one, other), (other, one)):
                    if have and size * want % have == 0:
                        done.add(size * want // have)
                    done.add(size + want - have)
                    bare.append({**sizes, **dict.fromkeys(group, want)})
            yield from ({**sizes, **dict.fromkeys(group, value)} for value in sorted(done - {size}))
        yield from _aligned(axes, sizes, at)
        for group in reversed(groups):  # those of several axes first
            value = _solved(sizes, group, at, look)
            if value:
                yield {**sizes, **dict.fromkeys(group, value)}
        yield from bare


def _aligned(axes: Axes, sizes: Sizes, at: Agreement) -> Iterator[Sizes]:
    """Yield sizes with which the last axes of an input are those of the shape that a node asks for."""
    wanted = [tuple(v for v in at.target if v > 0), *(at.shapes[1:] if at.hard else ())]
    for own in axes.axes_of.values():
        last = [a for a in own if isinstance(a, str) and a in sizes and a not in axes.batch]
        for target in wanted:
            if not last or len(target) < len(last):
                continue
            ends = target[len(target) - len(last) :]
            made = at.shapes[0][len(at.shapes[0]) - len(last) :] if at.shapes else ()
            for step in (
                dict(zip(last, ends, strict=True)),
                {a: sizes[a] + max(round(sizes[a] / m), 1) * (e - m)
                 for a, e, m in zip(last, ends, made, strict=len(made) == len(last)) if m > 0},
            ):  # fmt: skip
                for batch in (None, 1, target[0]):
                    first = dict.fromkeys((a for a in axes.batch if batch), batch or 1)
                    if all(v >= 1 for v in step.values()):
                        yield {**sizes, **step, **first}


def _solved(
    sizes: Sizes, group: Sequence[str], at: Agreement, look: Callable[[Sizes], Agreement | None]
) -> int:
    """Return the least size of a group with which the node fits, as far as its sizes grow with it; else 0."""

    def ratio(value: int) -> float | None:
        """More than one: too large; None: the node fits."""
        seen = look({**sizes, **dict.fromkeys(group, value)})
        if seen is None or seen.passed < at.passed or not seen.pairs:
            return 0.0 if seen is None or not seen.whole else None
        return None if seen.passed > at.passed else seen.pairs[0][0] / max(seen.pairs[0][1], 1)

    size = sizes[group[0]]
    here, there = ratio(size), ratio(2 * size)
    if here is None or there is None or here == there or not at.pairs:
        return 0 if there is not None else 2 * size
    grows = there > here
    low, high, found = 0, MOST, 0
    while high - low > 1:
        middle = (low + high) // 2
        value = ratio(middle)
        if value is None:
            found = high = middle
        elif found or value == 0.0 or (value < 1) == grows:
            low = middle
        else:
            high = middle
    return found
