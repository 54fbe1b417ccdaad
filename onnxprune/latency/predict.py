"""Latency as a function of widths: a staircase for each layer, fitted to the model measured at a few widths.

The model is cut at several random widths on its steps and timed, layer by layer, inside itself
(`onnxprune.latency.profile`). The time of a node at lengths of its axes is ``a + b macs + c in + d out`` with numbers
not below 0, where ``macs``, ``in`` and ``out`` count multiply-accumulates and elements with the cut axes rounded up to
the step: kernels work in blocks, so time is a staircase whose steps are the blocks. The sum over nodes is brought to
the time of the whole model by a factor and a remainder, fitted on the same widths.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil, prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.cut.rewrite import rewrite
from onnxprune.files import cache
from onnxprune.graph.analysis import Analysis
from onnxprune.graph.coupling import Applied, Coupling
from onnxprune.graph.group_types import Group
from onnxprune.latency.clock import Bench
from onnxprune.latency.profile import Timed, blame, profile
from onnxprune.model import Model

__all__ = ["TimedNode", "Predictor", "measure", "nonnegative", "widths"]

Floats = NDArray[np.float64]
State = dict[str, int]

#: Widths at which a model is measured, the original's among them.
POINTS = 10
#: Changes where what is measured, or how, changes.
VERSION = 1


@dataclass(frozen=True)
class TimedNode:
    """What the time of one node depends on.

    Attributes
    ----------
    dims : tuple of int
        Root dims of its axes.
    features : tuple of tuples of positions
        For each of its counts (multiply-accumulates, elements read, elements written) products of lengths, each given
        by positions in ``dims``.
    """

    dims: tuple[int, ...]
    features: tuple[tuple[tuple[int, ...], ...], ...]

    def count(self, lengths: Sequence[float]) -> list[float]:
        """Return the counts at these lengths, and a one before them."""
        return [1.0, *(sum(prod(lengths[i] for i in p) for p in products) for products in self.features)]


@dataclass
class Predictor:
    """What predicts the latency of a model's cuts.

    Attributes
    ----------
    nodes : dict
        Number of a node -> (what its time depends on, coefficients of its counts).
    rest : tuple
        TimedNode and coefficients of what is no node's.
    factor, remainder : float
        ``latency = factor * sum + remainder``.
    step : int
        Of lengths that a cut changes, in channels.
    cut : frozenset of int
        Root dims that a cut changes.
    errors : list of float
        Of each measured width: predicted over measured, less one.
    """

    nodes: dict[int, tuple[TimedNode, Floats]]
    rest: tuple[TimedNode, Floats]
    factor: float
    remainder: float
    step: int
    cut: frozenset[int]
    errors: list[float] = field(default_factory=list)

    def products(self) -> tuple[dict[tuple[int, ...], float], float]:
        """Return products of root dims -> seconds for each unit of them, and the seconds that are always there."""
        slopes: dict[tuple[int, ...], float] = {}
        fixed = self.remainder
        for node, weights in (*self.nodes.values(), self.rest):
            fixed += self.factor * float(weights[0])
            for weight, products in zip(weights[1:], node.features, strict=True):
                for positions in products if weight else ():
                    key = tuple(sorted(node.dims[i] for i in positions))
                    slopes[key] = slopes.get(key, 0.0) + self.factor * float(weight)
        return slopes, fixed

    def product(self, dims: Sequence[int]) -> Callable[[Sequence[float]], float]:
        """Return lengths of these root dims -> their product, those that a cut changes rounded up to the step."""
        rounded = _rounding(dims, self.cut, self.step)
        return lambda lengths: prod(rounded(lengths))

    def latency(self, length: Callable[[int], float]) -> float:
        """Return the predicted latency in seconds, for root dim -> length."""
        products, fixed = self.products()
        return fixed + sum(w * self.product(dims)([length(d) for d in dims]) for dims, w in products.items())


def _rounding(
    dims: Sequence[int], cut: frozenset[int], step: int
) -> Callable[[Sequence[float]], list[float]]:
    blocks = [step if d in cut else 1 for d in dims]

    def rounded(lengths: Sequence[float]) -> list[float]:
        return [
            length if block == 1 else max(block * ceil(length / block - 1e-9), 0)
            for length, block in zip(lengths, blocks, strict=True)
        ]

    return rounded


def nodes_of(coupling: Coupling, weights: set[str]) -> dict[int, TimedNode]:
    """Return what the time of each node depends on."""
    return {n: _node(coupling, a, weights) for n, a in enumerate(coupling.nodes)}


def _node(coupling: Coupling, applied: Applied, weights: set[str]) -> TimedNode:
    find = coupling.space.find
    read = [
        dims
        for name, dims in zip(applied.node.inputs, applied.ins, strict=False)
        if dims is not None and name not in weights
    ]
    written = [dims for dims in applied.outs if dims is not None]
    products = [[tuple(find(d) for d in dims) for dims in part] for part in (applied.macs, read, written)]
    return _with_positions(products)


def _with_positions(products: Sequence[Sequence[tuple[int, ...]]]) -> TimedNode:
    roots = sorted({d for part in products for dims in part for d in dims})
    place = {d: i for i, d in enumerate(roots)}
    return TimedNode(
        tuple(roots), tuple(tuple(tuple(place[d] for d in dims) for dims in part) for part in products)
    )


def widths(groups: Sequence[Group], step: int, seed: int, points: int = POINTS) -> list[State]:
    """Return states to measure: the original, and random ones whose groups lose different shares.

    Parameters
    ----------
    groups : sequence of Group
    step : int
        Units go so that each group's own part of an axis stays on multiples of this many channels.
    seed, points : int
    """
    rng = np.random.default_rng(seed)
    states: list[State] = [{}]
    for n in range(1, points):
        share = 1 - 0.9 * (n - 0.5) / (points - 1)
        state = {}
        for group in groups:
            kept = share * rng.uniform(0.6, 1.4)
            count = _on_step(group, min(max(kept, 0.05), 1.0), step)
            if count:
                state[group.name] = count
        states.append(state)
    return states


def _on_step(group: Group, kept: float, step: int) -> int:
    """Return how many units go so that about this share is kept, on a step where there is one."""
    whole = np.arange(group.units - group.least + 1)
    allowed = np.ones(whole.size, bool)
    for extent in group.extents if group.stepped else ():
        width = int(extent.per_unit.sum())
        halved = step
        while halved > 4 and width < 2 * halved:
            halved //= 2
        left = width - np.concatenate([[0], np.cumsum(extent.per_unit)])[: whole.size]
        if width >= 2 * halved:
            allowed &= left % halved == 0
    counts = whole[allowed]
    return int(counts[np.argmin(np.abs(counts - (1 - kept) * group.units))]) if counts.size else 0


def measure(
    model: Model, analysis: Analysis, groups: Sequence[Group], step: int, bench: Bench, sha256: str
) -> Predictor:
    """Measure a model at several widths, or take what was measured of it on this machine before.

    Parameters
    ----------
    model : Model
    analysis : Analysis
    groups : sequence of Group
        That may be cut.
    step : int
        Of widths, in channels.
    bench : Bench
    sha256 : str
        Of the model.

    Raises
    ------
    RunError
        If onnxruntime doesn't take a cut model.
    """
    import onnxruntime as ort

    states = widths(groups, step, 0)
    facts = {
        "version": VERSION,
        "machine": cache.machine(),
        "onnxruntime": ort.__version__,
        "provider": bench.provider,
        "threads": bench.threads,
        "model": sha256,
        "shapes": {name: list(np.shape(a)) for name, a in bench.feeds.items()},
        "states": states,
    }
    known = nodes_of(analysis.coupling, set(analysis.tracer.weights))
    timed = _from_json(cache.read("latency", facts), len(states), known)
    if timed is None:
        models = [model, *(cut_by_state(analysis, state) for state in states[1:])]
        timed = profile(models, blame(analysis.coupling), bench)
        cache.write(
            "latency",
            facts,
            [{"whole": t.whole, "nodes": sorted(t.nodes.items()), "rest": t.rest} for t in timed],
        )
    return fitted(analysis, groups, states, timed, step)


def cut_by_state(analysis: Analysis, state: Mapping[str, int]) -> Model:
    """Return the model without the last units of each group; which units go doesn't matter to its latency."""
    units = {g.name: g.units for g in analysis.grouping.groups}
    removed = {name: np.arange(units[name] - count, units[name]) for name, count in state.items()}
    dead = analysis.grouping.dead(removed)
    return rewrite(analysis.model, analysis.coupling, analysis.tracer, dead, analysis.other_values()).model


def _from_json(entries: Any, count: int, known: Container[int]) -> list[Timed] | None:
    """Read what was kept; None unless all of it are times that a clock can give."""
    if not isinstance(entries, list) or len(entries) != count:
        return None
    try:
        timed = [
            Timed(_time(t["whole"]), {_number_of(n): _time(s) for n, s in t["nodes"]}, _time(t["rest"]))
            for t in entries
        ]
    except (TypeError, ValueError, KeyError):
        return None
    good = all(t.whole > 0 and all(n in known for n in t.nodes) for t in timed)
    return timed if good else None


def _time(value: Any) -> float:
    if type(value) is not float or not np.isfinite(value) or value < 0:
        raise ValueError(f"{value!r} is no time")
    return value


def _number_of(value: Any) -> int:
    if type(value) is not int:
        raise ValueError(f"{value!r} is no node")
    return value


def fitted(
    analysis: Analysis,
    groups: Sequence[Group],
    states: Sequence[State],
    timed: Sequence[Timed],
    step: int,
) -> Predictor:
    """Fit the staircases of all nodes, then the factor and the remainder."""
    coupling = analysis.coupling
    lengths = [_lengths(analysis, groups, state) for state in states]
    sizes = coupling.space.sizes
    cut = frozenset(d for state_lengths in lengths for d, size in state_lengths.items() if size != sizes[d])
    every = nodes_of(coupling, set(analysis.tracer.weights))

    def counts(node: TimedNode) -> Floats:
        rounded = _rounding(node.dims, cut, step)
        return np.array(
            [
                node.count(rounded([state_lengths.get(d, sizes[d]) for d in node.dims]))
                for state_lengths in lengths
            ]
        )

    nodes: dict[int, tuple[TimedNode, Floats]] = {}
    total = np.zeros(len(states))
    for number in sorted({n for t in timed for n in t.nodes}):
        node = every[number]
        seconds = np.array([t.nodes.get(number, 0.0) for t in timed])
        table = counts(node)
        weights = nonnegative(table, seconds)
        nodes[number] = (node, weights)
        total += table @ weights
    written = [
        [tuple(coupling.space.find(d) for d in dims) for dims in a.outs if dims] for a in coupling.nodes
    ]
    rest = _with_positions([[dims for node_dims in written for dims in node_dims]])
    table = counts(rest)
    over = nonnegative(table, np.array([t.rest for t in timed]))
    total += table @ over
    wholes = np.array([t.whole for t in timed])
    factor, remainder = _calibrated(total, wholes)
    errors = ((factor * total + remainder) / wholes - 1).tolist()
    return Predictor(nodes, (rest, over), factor, remainder, step, cut, errors)


def _calibrated(total: Floats, wholes: Floats) -> tuple[float, float]:
    """Return the factor and the remainder that bring sums of nodes to whole models.

    The remainder may be below 0: the profiler itself takes its time at each node.
    """
    table = np.stack([total, np.ones(len(total))], axis=1)
    factor, remainder = np.linalg.lstsq(table / wholes[:, None], np.ones(len(total)), rcond=None)[0]
    if factor <= 0 or remainder < -0.5 * float(wholes.min()):
        factor, remainder = nonnegative(table, wholes)
    return float(factor), float(remainder)


def _lengths(analysis: Analysis, groups: Sequence[Group], state: State) -> dict[int, int]:
    """Return the length of each root dim that a state changes."""
    units = {g.name: g.units for g in groups}
    removed = {name: np.arange(units[name] - count, units[name]) for name, count in state.items()}
    dead = analysis.grouping.dead(removed)
    return {root: int((~mask).sum()) for root, mask in dead.items()}


def nonnegative(table: Floats, seconds: Floats) -> Floats:
    """Return weights not below 0 with ``table @ weights`` near the times, relative errors squared.

    All sets of columns are tried: there are a handful.
    """
    weights = np.zeros(table.shape[1])
    if not (seconds > 0).any():
        return weights
    weight = 1 / np.maximum(seconds, 1e-2 * float(seconds.max()))
    scale = np.maximum(np.abs(table).max(axis=0), 1e-30)
    left, right = table / scale * weight[:, None], seconds * weight
    best = float(right @ right)
    for size in range(1, table.shape[1] + 1):
        for columns in itertools.combinations(range(table.shape[1]), size):
            chosen = left[:, columns]
            solved = np.linalg.lstsq(chosen, right, rcond=1e-9)[0]
            loss = float(((chosen @ solved - right) ** 2).sum())
            if (solved >= 0).all() and loss < best * (1 - 1e-3):
                best = loss
                weights = np.zeros(table.shape[1])
                weights[list(columns)] = solved / scale[list(columns)]
    return weights
