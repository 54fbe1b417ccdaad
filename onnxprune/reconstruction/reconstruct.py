"""Reconstruction of segments: a few layers of a cut model together, one segment after the other.

Layer by layer a fit makes the best of inputs that have been cut; what it can't know is what the next layer can do with
its outputs. Here the layers of a segment move together, toward what the segment gave in the original: their weights W
go down (`onnxprune.reconstruction.descent`) on

    L(W) = 1/samples * sum over goals of |goal(x; W) - target|^2 / (goals * var(target)),

with x what the cut model gives the segment by now, targets what the original gives at the same places without the
channels that are cut, and var the mean squared distance of a sample's target from the mean one.

References
----------
Li et al., "BRECQ: Pushing the Limit of Post-Training Quantization by Block Reconstruction", ICLR 2021, section 3.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.calibration.samples import Samples
from onnxprune.calibration.stream import stream_of
from onnxprune.errors import CalibrationError
from onnxprune.files.bodies import DOMAIN, body_of
from onnxprune.gradient.loss import LossModel, Variation, loss_model, part_model, weighed
from onnxprune.graph.analysis import Analysis
from onnxprune.graph.kept import Masks
from onnxprune.graph.size import macs_of_run
from onnxprune.progress import Milestone
from onnxprune.reconstruction.beside import Beside, alike, covers, in_units, together
from onnxprune.reconstruction.descent import Basis, Data, descend
from onnxprune.reconstruction.evidence import HELD, WIDE, positions_of
from onnxprune.reconstruction.inner import is_inner, with_inner
from onnxprune.reconstruction.loose import loose
from onnxprune.reconstruction.pace import Pace
from onnxprune.reconstruction.room import TOGETHER, abreast
from onnxprune.reconstruction.segments import Segment, segments
from onnxprune.runtime.session import RunError

__all__ = ["SegmentReport", "reconstruct"]

Array = NDArray[Any]
Batch = dict[str, Array]

#: What is held of activations: of each stream, and of what one segment reads and shall give.
STREAM_BYTES, DATA_BYTES = 1 << 30, 1 << 29
#: Samples whose activations tell the coordinates to go down in.
LOOKED_AT = 256


@dataclass
class SegmentReport:
    """What descent did to one segment, on held-out samples.

    Attributes
    ----------
    layers : list of str
    samples : int
        That it saw, those held out among them.
    before, after : float
        Squared error relative to the variance of what the segment gives.
    why : str
        Why it kept its weights; empty where it didn't.
    stop : str
        Where gradients end inside, and why; empty where they don't. Layers in front of it follow nearer goals alone.
    """

    layers: list[str]
    samples: int = 0
    before: float = 0.0
    after: float = 0.0
    why: str = ""
    stop: str = ""


def reconstruct(
    fitted: Analysis, original: Analysis, dead: Masks, samples: Samples, *,
    pace: Pace | None = None, seed: int = 0, say: Callable[[str], None] | None = None,
) -> list[SegmentReport]:  # fmt: skip
    """Fit the layers of a model once more, segment by segment, as they are when its dead channels are cut.

    Parameters
    ----------
    fitted : Analysis
        Of a model of the original's shape, whose weights are changed in place: the analysis no longer knows them.
    original : Analysis
    dead : mapping
        Root dim -> which of its indices will be cut.
    samples : Samples
    pace : Pace, optional
    seed : int
        Of the mini-batches: the same seed gives the same bytes.
    say : callable, optional
        Told of progress.
    """
    beside = Beside.of(fitted, original, dead, in_units(samples))
    try:
        floats = beside.floats
    except CalibrationError as error:
        return [
            SegmentReport([site.name for site in part.sites], why=str(error))
            for part in _parts(beside.analysis)
        ]
    work = _Work(floats, pace or Pace(), seed, say)
    found = work.run()
    for name in sorted(work.changed):
        beside.take(floats, name)
    return found


@dataclass
class _Work:
    """The segments of a cut model, one after the other.

    Attributes
    ----------
    beside : Beside
        Its cut model is changed in place.
    pace : Pace
    seed : int
    say : callable, optional
    changed : set of str
        Weights that did change.
    """

    beside: Beside
    pace: Pace
    seed: int = 0
    say: Callable[[str], None] | None = None
    changed: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        """Name what is asked for most."""
        self.original, self.cut, self.samples = self.beside.original, self.beside.cut, self.beside.samples

    def run(self) -> list[SegmentReport]:
        """Fit all segments in order."""
        self.analysis = self.beside.analysis
        parts = _parts(self.analysis)
        each = macs_of_run(self.analysis.coupling) / max(self.samples.counts, default=1)
        pace = self.pace.within(self.samples.count, each)
        if pace is None:
            why = f"a sample takes {each / 1e9:.3g} G multiply-accumulates; each of its layers keeps its own fit"
            return [SegmentReport([site.name for site in part.sites], why=why) for part in parts]
        self.pace = pace
        made = {n: k for k, a in enumerate(self.original.coupling.nodes) for n in a.node.outputs}
        dense = stream_of(self.original.model, self.samples, self.original.types, STREAM_BYTES)
        small = stream_of(self.cut, self.beside.left, self.analysis.types, STREAM_BYTES)
        dense.keep |= {goal for part in parts for goal in part.goals}
        found = []
        for number, part in enumerate(parts):
            say = self._told(parts, number)
            report = SegmentReport([site.name for site in part.sites])
            found.append(report)
            report.why = self._refusal(part, made)
            if report.why:
                dense.keep -= set(part.goals)
                continue
            end = max(made[goal] for goal in part.goals) + 1
            try:
                pairs = self._pairs(
                    part, small.run(part.first, list(part.given)), dense.run(end, list(part.goals))
                )
                self._fit(part, pairs, report, self.seed + number, say)
            except (CalibrationError, RunError) as error:
                report.why = str(error)
            dense.keep -= set(part.goals)
        return found

    def _refusal(self, part: Segment, made: Mapping[str, int]) -> str:
        """Return why a segment keeps its layers' own fits; empty where it needn't.

        Parameters
        ----------
        part : Segment
        made : mapping
            What the original makes -> the node that does.
        """
        if not any(site.free for site in part.sites):
            return "its weights are quantised, and were fitted on their grid one by one"
        need = abreast(part.sites)
        if need > TOGETHER:
            return f"to move its layers together takes about {need / 1e9:.1f} GB; each keeps its own fit"
        nodes = self.analysis.coupling.nodes[part.first : part.end]
        if any(body_of(a.proto) or a.node.domain == DOMAIN for a in nodes):
            return "it holds bodies of If, Loop or Scan"
        if not part.goals:
            return "what it gives isn't of 32- or 64-bit floats"
        return "" if all(goal in made for goal in part.goals) else "what it gives isn't in the original"

    def _told(self, parts: Sequence[Segment], number: int) -> Callable[[str], None] | None:
        """Say that a segment begins; return what its steps are told to."""
        if self.say is None:
            return None
        say, costs = self.say, [float(len(part.sites)) for part in parts]
        begins = Milestone.of("reconstruct", parts[number].sites[0].name, number, costs)
        say(begins)

        def tell(step: str) -> None:
            text = Milestone(f"{begins}, {step}")
            text.done = begins.done + getattr(step, "done", 0.0) * costs[number] / sum(costs)
            say(text)

        return tell

    def _pairs(self, part: Segment, given: Any, goals: Any) -> list[tuple[Batch, Batch]]:
        """Return what the segment reads and shall give, batch by batch, as many as there is room for."""
        found: list[tuple[Batch, Batch]] = []
        size = 0
        for left, right in zip(given, goals, strict=True):
            if size <= DATA_BYTES:
                pair = (
                    {n: left[n] for n in part.given},
                    self.beside.kept.take({n: right[n] for n in part.goals}),
                )
                size += sum(a.nbytes for some in pair for a in some.values())
                found.append(pair)
        return found

    def _fit(
        self, part: Segment, pairs: list[tuple[Batch, Batch]], report: SegmentReport, seed: int,
        say: Callable[[str], None] | None,
    ) -> None:  # fmt: skip
        names = [n for s in part.sites if part.holds(s) for n in s.free]
        names += [n for n, number in loose(self.analysis).items() if part.first <= number < part.end]
        names = [n for n in names if n in self.beside.once]
        counts, valid = self.samples.counts[: len(pairs)], self.samples.valid[: len(pairs)]
        masked = [
            n for n in part.goals if all(covers(v, g[n]) for v, (_, g) in zip(valid, pairs, strict=True))
        ]
        factors = _factors([goals for _, goals in pairs], valid, part.goals, masked, sum(counts))
        found = self._loss_model(part, names, factors, masked)
        if found is None:
            report.why = "none of its weights may change" if not names else "what it gives never varies"
            return
        found = replace(found, settle=self.beside.settle)
        start = {n: np.array(self.cut.weight(n)) for n in found.gradients}
        given = [batch for batch, _ in pairs]
        bases = self._bases(part, given, valid, start, seed)
        for (batch, goals), mask in zip(pairs, valid, strict=True):
            batch |= {found.targets[n]: goals[n] for n in factors}
            if found.valid and mask is not None:
                batch[found.valid] = mask[..., None].astype(goals[masked[0]].dtype)
        data = Data(*together(given, counts, free=self.samples.free))
        if not len(data.held):
            report.why = f"fewer than {HELD} samples, or batches of the model's own size"
            return
        best, report.before, report.after = descend(
            found, start, data, bases, self.pace, seed, self.samples.provider, say
        )
        report.samples, report.stop = sum(counts), found.stop
        for name, weight in best.items():
            self.cut.put(name, weight)
        self.changed |= set(best) if report.after < report.before else set()

    def _loss_model(
        self, part: Segment, names: Sequence[str], factors: dict[str, float], masked: Sequence[str]
    ) -> LossModel | None:
        """Return the loss of the weights that reach a goal; None where there are none."""
        if not names or not factors:
            return None
        found = loss_model(self.analysis, part.given, names, factors, masked=masked)
        if len(found.gradients) < len(names):
            rest = self._loss_model(part, list(found.gradients), factors, masked)
            return rest and replace(rest, stop=found.stop)
        return found

    def _bases(
        self,
        part: Segment,
        given: Sequence[Batch],
        valid: Sequence[Array | None],
        start: dict[str, Array],
        seed: int,
    ) -> dict[str, Basis]:
        """Return the coordinates of the layers' weights, from what they read now on the first samples.

        Wide layers keep their own: their inputs' second moments would take tens of gigabytes.
        """
        layers = [s for s in part.sites if s.weight in start and s.view.width <= WIDE]
        counts = self.samples.counts
        few = int(np.searchsorted(np.cumsum(counts), LOOKED_AT)) + 1
        wanted = list(dict.fromkeys(n for s in layers for n in (s.x, s.y)))
        read = replace(self.samples, batches=list(given[:few]), counts=counts[: len(given[:few])])
        runs = stream_of(part_model(self.analysis, part.given, wanted), read, what="A segment").each()
        seen = [{**batch, **values} for batch, values in zip(given, runs, strict=False)]
        seen = [batch for batch in seen if all(alike([batch[n], seen[0][n]]) for n in wanted)]
        bases = {}
        for site in layers:
            total, rows = 0, []
            for batch, mask in zip(seen, valid, strict=False):
                positions = site.view.positions(batch[site.y])
                rows.append(total + positions_of(batch[site.x], positions, mask))
                total += positions
            x = np.concatenate([batch[site.x] for batch in seen])
            bases[site.weight] = Basis.of(site.view, start[site.weight].shape, x, np.concatenate(rows), seed)
        return bases


def _parts(analysis: Analysis) -> list[Segment]:
    """Return the segments of a model, whose ends layers inside of nodes don't tell, though they belong to them."""
    layers = [site for site in with_inner(analysis) if not site.chosen]
    parts = segments(analysis, [site for site in layers if not is_inner(site)])
    return [
        replace(part, sites=tuple(site for site in layers if part.first <= site.number < part.end))
        for part in parts
    ]


def _factors(
    goals: Sequence[Batch],
    valid: Sequence[Array | None],
    names: Sequence[str],
    masked: Sequence[str],
    samples: int,
) -> dict[str, float]:
    """Return what the squared distance of each goal is multiplied by, see `weighed`."""
    found = {}
    for name in names:
        arrays = [np.asarray(batch[name], np.float64) for batch in goals]
        if name in masked:
            arrays = [a[v] for a, v in zip(arrays, valid, strict=True)]
        mean = sum(a.sum(axis=0) for a in arrays) / sum(len(a) for a in arrays) if alike(arrays) else 0.0
        variance, square = (sum(float(np.square(a - at).sum()) for a in arrays) for at in (mean, 0.0))
        found[name] = Variation(variance / samples, square / samples, sum(a.size for a in arrays) / samples)
    return weighed(found)
