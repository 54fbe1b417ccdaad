"""Two streams side by side through the samples, from layer to layer: the original, and models that are being fitted.

A layer is fitted to the inputs ``x`` of the fitted model by then, and to targets of the original. Where it is the last
to feed a residual sum ``t = other + gain * y + offset``, it also makes up for what the other branch has lost: its
target is

    y = (t_original - other_fitted - offset) / gain    (rows, outputs), else y_original.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.calibration.frontier import sizes
from onnxprune.calibration.samples import Samples
from onnxprune.calibration.stream import Runs, stream_of
from onnxprune.graph.analysis import Analysis
from onnxprune.model import Model
from onnxprune.reconstruction.aim import Aim
from onnxprune.reconstruction.enough import Enough
from onnxprune.reconstruction.evidence import Collector, Draw, Evidence, Rows, Spread
from onnxprune.reconstruction.layer import Settings
from onnxprune.reconstruction.layers import Site
from onnxprune.reconstruction.narrow import Narrow, narrowed
from onnxprune.reconstruction.room import kept, lasting
from onnxprune.reconstruction.taker import DenseOutput, Taker, factors_of, together, unit_of

__all__ = ["MOST_BYTES", "Targets", "Walk"]

Array = NDArray[Any]

#: Activations that are held of the original, and as many of all models that are fitted side by side.
MOST_BYTES = 1 << 30
#: One in so many of the positions of a fit is enough to rank units.
RANKING = 7
#: Targets of layers that are held ahead of their fits: the original, too, runs for several layers at once.
AHEAD_BYTES = 1 << 27
#: Layers of the original that are looked at in one run, and bytes of their moments and activations: a run of several
#: layers takes hardly longer than one of the plain model, while runs from layer to layer take twice as long.
ABREAST, ABREAST_BYTES = 8, 1 << 28


@dataclass
class Walk:
    """Streams through the same samples: one of the original, and one of each model that is being fitted."""

    dense: Runs
    fitted: Sequence[Runs]
    counts: Sequence[int]
    settings: Settings
    valid: Sequence[Array | None] = ()
    sizes: Mapping[str, float] = field(default_factory=dict)  # bytes of tensors, of one batch
    todo: list[Site] = field(default_factory=list)
    targets: Targets = field(default_factory=dict)
    lasting: float = 0.0  # bytes of targets that stay for other walks
    form: Site | None = None  # the last layer that was asked for, as it is fitted

    @classmethod
    def of(
        cls,
        analysis: Analysis,
        fitted: Sequence[Model],
        samples: Samples,
        settings: Settings,
        todo: Sequence[Site],
        targets: Targets | None = None,
        most_bytes: int | None = None,
        aim: Aim | None = None,
    ) -> Walk:
        """Begin at the samples.

        Parameters
        ----------
        analysis : Analysis
            Of the original.
        fitted : sequence of Model
            They share what may be held of activations.
        samples : Samples
        settings : Settings
        todo : sequence of Site
            The layers that will be asked for, in topological order; each is to be let go (`done`) afterwards.
        targets : dict, optional
            Of other walks through the same samples with the same settings; what this one adds stays in it.
        most_bytes : int, optional
            What streams hold of activations, instead of `MOST_BYTES`.
        aim : Aim, optional
            What layers are fitted to, instead of the original.
        """
        most_bytes = MOST_BYTES if most_bytes is None else most_bytes
        if aim is None:
            dense = stream_of(analysis.model, samples, analysis.types, most_bytes)
        else:
            dense = aim.runs(samples, most_bytes)
        most = most_bytes // max(len(fitted), 1)
        streams = [stream_of(model, samples, analysis.types, most) for model in fitted]
        walk = cls(
            dense, streams, samples.counts, settings, samples.valid, sizes(analysis, samples), list(todo)
        )
        if targets is not None:
            walk.targets, walk.lasting = targets, lasting(todo, settings)
        walk._keep()
        return walk

    def stretches(self, todo: Sequence[Site]) -> list[list[Site]]:
        """Return the layers in turn, as many at a time as `originals` should look at together."""
        stretches: list[list[Site]] = []
        total = 0.0
        for site in todo:
            more = kept(site, self.settings, RANKING) + sum(self.sizes.get(n, np.inf) for n in _tensors(site))
            if not stretches or len(stretches[-1]) == ABREAST or total + more > ABREAST_BYTES:
                stretches.append([])
                total = 0.0
            stretches[-1].append(site)
            total += more
        return stretches

    def originals(self, sites: Sequence[Site], *, linear: bool = False) -> list[Evidence]:
        """Return the moments of layers' inputs and outputs in the original, which runs once for all; they are let go.

        Parameters
        ----------
        sites : sequence of Site
            Next to be asked for, in topological order, see `stretches`.
        linear : bool
            Leave outputs out: they follow from the layers' weights. Of lean layers not even the spread is taken.
        """
        (takers,) = self.pieces(sites, {0: lambda site, use: self._draw(site, use, RANKING)}, linear=linear)
        return [together([taker.evidence() for taker in each]) for each in takers]

    def pieces(
        self, sites: Sequence[Site], draws: Mapping[int, Callable[[Site, Site], Draw]], *, linear: bool = True
    ) -> Iterator[list[list[Taker]]]:
        """Run the original once for some layers and yield, piece by piece, what has taken their inputs and outputs.

        Parameters
        ----------
        sites, linear
            As for `originals`.
        draws : mapping
            Batch with which a piece begins -> (layer, one of its uses) -> what draws the positions of that piece.

        Yields
        ------
        list of list of Taker
            For each layer, for each of its uses.
        """
        for site in sites:
            self.done(site)
        wide, model = self.settings.wide, self.dense.model
        takers: list[list[Taker]] = []
        end = max(DenseOutput(use, model).end for site in sites for use in site.uses)
        wanted = dict.fromkeys(name for site in sites for name in _tensors(site))
        batches, goals = self.dense.run(end, list(wanted)), self._for_fits(sites)
        for number, (batch, count, valid) in enumerate(zip(batches, self.counts, self._valid(), strict=True)):
            if number in draws:
                if takers:
                    yield takers
                draw = draws[number]
                takers = [
                    [
                        Taker(DenseOutput(use, model), draw(site, use), wide, linear=linear)
                        for use in site.uses
                    ]
                    for site in sites
                ]
            for taker in (taker for each in takers for taker in each):
                taker.add(batch, count, valid)
            for goal in (goal for each in goals.values() for goal in each):
                goal.add(batch, count, valid)
        self.targets |= goals
        yield takers

    def _for_fits(self, sites: Sequence[Site]) -> dict[int, list[_Goal]]:
        """Return what takes the targets of fits as the original runs anyway, as long as there is room for them."""
        goals: dict[int, list[_Goal]] = {}
        room = float(sum(goal.nbytes for each in self.targets.values() for goal in each))
        for site in sites if self.lasting else ():
            each = [self._goal(site, use, None) for use in site.uses]
            room += sum(goal.room for goal in each)
            if room > self.lasting:
                break
            goals[site.number] = each
        return goals

    def evidence(self, site: Site, *, spread: bool = False) -> list[Evidence]:
        """Return the moments of a layer's present inputs and of the targets that it should reach, for each model.

        A lean layer is fitted in another `form`. Where several nodes use its weight, inputs of the later ones are what
        layers that are yet to be fitted give.

        Parameters
        ----------
        site : Site
        spread : bool
            Take `Evidence.spread` as well.
        """
        ready = self.targets.get(site.number)
        if ready is None or (spread and any(goal.spread is None for goal in ready)):
            self._look_ahead(site, spread)
        wide, models = self.settings.wide, len(self.fitted)
        goals = self.targets[site.number]
        self.form = narrowed(site, self.dense.model) if site.lean else site
        uses = [
            _Use(goal, form, sum(self.counts), wide, models)
            for goal, form in zip(goals, self.form.uses, strict=True)
        ]
        wanted = list(dict.fromkeys(name for use in uses for name in use.wanted))
        last, ahead = max(use.number for use in site.uses), len(uses) > 1
        lefts = [stream.run(last, wanted, stay=ahead) for stream in self.fitted]
        for number, (count, *batches) in enumerate(zip(self.counts, *lefts, strict=True)):
            for use in uses:
                use.add(number, batches, count)
        return [together(list(parts)) for parts in zip(*(use.evidence() for use in uses), strict=True)]

    def _look_ahead(self, site: Site, spread: bool) -> None:
        """Run the original for the targets of a layer, and of those after it for which there is room."""
        first = next(n for n, other in enumerate(self.todo) if other is site)
        goals: dict[int, list[_Goal]] = {}
        room, size = 0.0, 0.0
        for other in self.todo[first : first + ABREAST]:
            uses = [self._goal(other, use, Spread() if spread else None) for use in other.uses]
            room += sum(use.room for use in uses)
            size += sum(self.sizes.get(name, np.inf) for use in uses for name in use.reached.wanted[:1])
            if goals and (room > AHEAD_BYTES or size > ABREAST_BYTES or other.number in self.targets):
                break
            goals[other.number] = uses
        every = [use for uses in goals.values() for use in uses]
        wanted = list(dict.fromkeys(name for use in every for name in use.wanted))
        self.targets |= goals
        self._keep()
        right = self.dense.run(max(use.reached.end for use in every), wanted)
        for batch, count, valid in zip(right, self.counts, self._valid(), strict=True):
            for use in every:
                use.add(batch, count, valid)

    def done(self, site: Site) -> None:
        """Let go of what only this layer needed."""
        self.todo = [other for other in self.todo if other is not site]
        held = sum(goal.nbytes for goals in self.targets.values() for goal in goals)
        if held > self.lasting or not self.lasting:
            self.targets.pop(site.number, None)
        self._keep()

    def _keep(self) -> None:
        """Have the streams hold what layers will ask for: of some inputs the node reads a rounded copy alone."""
        todo = [other for other in self.todo if not self.fitted or other.number not in self.targets]
        self.dense.keep = {name for other in todo for name in _tensors(other, bool(self.fitted))}
        for stream in self.fitted:
            stream.keep = {use.x for site in self.todo for use in site.uses}

    def _valid(self) -> Sequence[Array | None]:
        return self.valid or [None] * len(self.counts)

    def _goal(self, site: Site, use: Site, spread: Spread | None) -> _Goal:
        reached = DenseOutput(use, self.dense.model)
        every = self.sizes.get(reached.wanted[0], np.inf) * sum(self.counts) / max(self.counts, default=1)
        return _Goal(reached, self._draw(site, use), spread, every)

    def _draw(self, site: Site, use: Site, share: int = 1) -> Draw:
        most = self.settings.rows(site.view, share) // len(site.uses)
        return Draw(sum(self.counts), most, self.settings.seed + use.number)


class _Goal:
    """Takes, at one node that uses a layer's weight, what the original gives at the positions that are used.

    Parameters
    ----------
    reached : DenseOutput
    draw : Draw
    spread : Spread or None
        What takes the variance of the outputs as well.
    every : float
        Bytes of the outputs at all positions of all samples.
    """

    def __init__(self, reached: DenseOutput, draw: Draw, spread: Spread | None, every: float) -> None:
        self.site, self.reached, self.draw, self.spread = reached.site, reached, draw, spread
        self.every = every
        self.wanted = list(dict.fromkeys([*reached.wanted, self.site.x]))
        self.rows: list[Rows | None] = []  # None: the node is in a branch that the batch doesn't take
        self.y: list[Array] = []
        self.even: list[Array | None] = []  # factors of rows

    @property
    def room(self) -> float:
        """The most bytes that will be held."""
        view = self.site.view
        drawn = 4.0 * self.draw.most * (view.width if self.site.lean else view.blocks * view.outputs)
        return min(drawn, self.every)

    @property
    def nbytes(self) -> int:
        """Bytes that are held."""
        return sum(y.nbytes for y in self.y)

    def add(self, batch: Mapping[str, Array], count: int, valid: Array | None) -> None:
        site, view = self.site, self.site.view
        if not batch.keys() >= set(self.wanted):
            self.rows.append(None)
            self.y.append(np.zeros(0))
            self.even.append(None)
            return
        x = batch[site.x]
        rows = self.draw.take(x, self.reached.positions(batch, site.goal[0]), count, valid)
        self.rows.append(rows)
        self.y.append(np.array(self.reached.rows(batch, site.goal[0], rows)))
        self.even.append(factors_of(site, self.y[-1]))
        if self.spread is not None and not site.lean:
            whole, even = view.y(batch[site.goal[0]], rows.index), self.even[-1]
            self.spread.add(whole if even is None else whole * even, 1, x, None)


class _Use:
    """Takes, at one node that uses a layer's weight, what reaches it in models that are being fitted."""

    def __init__(self, goal: _Goal, form: Site, samples: int, wide: int, models: int) -> None:
        self.goal, self.site, self.form = goal, goal.site, form
        self.wanted = [goal.site.x, *([goal.site.total.other] if goal.site.total else [])]
        self.collectors = [Collector(form.view, wide) for _ in range(models)]
        self.tests = [Enough(samples) for _ in range(models)]

    def add(self, number: int, batches: Sequence[Mapping[str, Array]], count: int) -> None:
        """Add a batch, by its number."""
        site, view, total = self.site, self.site.view, self.site.total
        rows, y, even = self.goal.rows[number], self.goal.y[number], self.goal.even[number]
        if rows is None or not all(batch.keys() >= set(self.wanted) for batch in batches):
            return
        for collector, test, batch in zip(self.collectors, self.tests, batches, strict=True):
            own, at = test.thinned(rows)
            reach = y[at]
            if isinstance(self.form.codec, Narrow):
                reach = reach @ self.form.codec.root.astype(reach.dtype)
            if total:
                reach = (reach - view.y(batch[total.other], own.index) - total.offset) / total.gain
            own_bias = site.given is not None and not site.lean
            reach = reach - site.given if own_bias else reach
            collector.add(batch[site.x], reach, own, None if even is None else even[at])
            if not collector.tables:
                test.look(collector, count)

    def evidence(self) -> list[Evidence]:
        spread = self.goal.spread
        variance = spread.variance / unit_of(self.site) if spread else 0.0
        return [c.evidence(variance) for c in self.collectors]


def _tensors(site: Site, goals: bool = False) -> set[str]:
    """Return what is read of the original at a layer; goals: for its targets alone."""
    return {
        name
        for use in site.uses
        for name in ((use.x,) if use.lean else (use.x, use.goal[0]) if goals else (use.x, use.y, use.goal[0]))
    }


#: Node that uses a weight first -> what its uses should give.
Targets = dict[int, list[_Goal]]
