"""How many residual branches go: as many as a ratio or a target asks for, or as trials beside the widths show.

Where branches and widths may go, both can meet a target, and what is lost isn't the sum of what each loses. So models
with fewer and fewer branches are cut to the target by their widths, fitted roughly, and compared with the original on
samples; the least distance decides. Numbers of branches are tried on a grid, and then around the best.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from onnxprune.calibration.agreement import Outputs, distance
from onnxprune.cut.put_back import Failed, Removed
from onnxprune.errors import NotFaster, NothingToPrune, OnnxPruneError, UsageError, VerificationError
from onnxprune.graph.analysis import Analysis, analyse
from onnxprune.journey.output import size_in_bytes
from onnxprune.journey.run import Run
from onnxprune.latency.clock import Race, race, session_of
from onnxprune.model import Model
from onnxprune.options.granularity import EXPERTS
from onnxprune.options.kinds import texts_of
from onnxprune.options.pruning import Options
from onnxprune.options.target import Target
from onnxprune.pruning.budgets import Budgets
from onnxprune.pruning.decision import Decision, decide, limit_of
from onnxprune.pruning.depth import Candidates, Shallowed, candidates, dropped, inexact, shallowed
from onnxprune.pruning.saliency import Candidate
from onnxprune.pruning.speed import Speed, speed_of
from onnxprune.pruning.targets import parse_target

__all__ = ["refitted", "shallower", "speed_of_source"]

#: Parts of the way from no branch to as many as meet the target alone that are tried, and how often it is halved then.
GRID, HALVED = 4, 2
#: Samples that a trial sees, and seconds that one is timed at a time.
ROUGH, QUICK = 512, 1.0

AnalysisOf = Callable[[Run[Options]], Analysis]


def shallower(run: Run[Options], analysis_of: AnalysisOf) -> Run[Options]:
    """Take residual branches out as the options ask, prove that, and return a run on the result.

    Parameters
    ----------
    run : Run
    analysis_of : callable
        Analyses the model of a run for its widths.

    Raises
    ------
    UsageError
        If experts are to go, too, and no ratio says how many.
    NothingToPrune
        If there is none that can go, or targets can't be met by them alone.
    VerificationError
        If law 1 doesn't hold.
    """
    run = dropped(run)
    options = run.options
    if isinstance(run, Shallowed) or not options.depth or options.ratio == 0:
        return _fitted(run) if isinstance(run, Shallowed) and not run.alone and options.fitted else run
    if EXPERTS in options.kinds and options.ratio is None:
        raise UsageError(
            "How many residual branches and how many experts meet a --target isn't tried together; give --ratio, or "
            "take one kind first and the other from the result."
        )
    found = candidates(run)
    most = len(found.worths)
    while True:
        chosen = _chosen(found, most, analysis_of)
        if not chosen.gone:
            return found.run
        try:
            proved = shallowed(chosen)
            return proved if proved.alone else _fitted(proved)
        except VerificationError as error:
            if not isinstance(error.__cause__, Failed):
                raise
            found = found.but(inexact(chosen))


def _chosen(found: Candidates, most: int, analysis_of: AnalysisOf) -> Shallowed:
    """Return the run without as many branches as are to go, of so many that there were at first.

    Raises
    ------
    NothingToPrune
        If there is none that can go, or targets can't be met by them alone.
    """
    options = found.run.options
    if not found.worths and not options.others:
        raise NothingToPrune("No residual branch can go: law 1 holds without none of them.")
    if options.ratio is not None or not found.worths:
        chosen = found.without(round((options.ratio or 0.0) * most))
    elif not options.others:
        share = _Share(found, analysis_of)
        chosen = share.without(share.fewest())
    else:
        chosen = _Share(found, analysis_of).best()
    if not chosen.gone and not options.others:
        raise NothingToPrune(
            f"No residual branch goes at --ratio {options.ratio:g}: there are {most}; ask for more."
        )
    return chosen


def refitted(run: Shallowed, analysis: Analysis) -> Candidate:
    """Return a run's model with its layers fitted to what the original gives, as a candidate that loses no widths."""
    decision = Decision([], {}, target="+".join(texts_of(run.options.target)), speed=speed_of(run, analysis))
    if not run.options.fitted:
        return Candidate(analysis, decision, analysis.restored)
    from onnxprune.pruning.on_samples import FromSamples  # loads gradients, which most runs go without

    layers = FromSamples.of_layers(run, analysis)
    with run.stage("fit"):
        fitted = layers.calibration.fit({})
    return layers.candidate(decision, fitted)


def speed_of_source(run: Run[Options], speed: Speed) -> Speed:
    """Return the clock that times against what was read."""
    if not isinstance(run, Shallowed):
        return speed
    return dataclasses.replace(speed, model=run.original, analysis=run.whole, _predictor=None)


def _fitted(run: Shallowed) -> Shallowed:
    """Return a run whose layers were fitted, each by itself, before widths are looked at."""
    options = dataclasses.replace(run.options, recover="lstsq", epochs=None, lr=None)
    if run.options.recover == "none" or not run.gone:
        return run
    plain = dataclasses.replace(run, options=options)
    with run.stage("analyse"):
        analysis = analyse(run.model, input_shapes=run.shapes)
    with run.stage("fit"):
        from onnxprune.pruning.on_samples import FromSamples

        model = FromSamples.of_layers(plain, analysis).calibration.fit({}).model
    return dataclasses.replace(run, model=model)


class _Quick(Speed):
    """A clock for trials: in this process, and for a short time."""

    def race(self, pruned: Model) -> Race:
        return race(self.original, session_of(pruned, self.bench), self.bench, seconds=QUICK)

    def confirm(self, removed: Removed) -> float | None:
        return None


@dataclass
class _Share:
    """How many branches go.

    Attributes
    ----------
    found : Candidates
    analysis_of : callable
    tried : dict
        Number of branches -> distance from the original; infinite where the target can't be met.
    runs : dict
        Number of branches -> the run without them.
    """

    found: Candidates
    analysis_of: AnalysisOf
    tried: dict[int, float] = field(default_factory=dict)
    runs: dict[int, Shallowed] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Read the targets, and what they are shares of."""
        run, whole = self.found.run, self.found.depth.analysis
        self.options, self.targets = run.options, parse_target("+".join(texts_of(run.options.target)))
        self.budgets = Budgets(whole, [], 1, size_in_bytes(run.model))
        self.speed = Speed(run.model, whole, run.options, run.say)

    def without(self, count: int) -> Shallowed:
        """Return the run without so many branches; where latency is asked for, it knows how fast it is."""
        if count not in self.runs:
            run = self.found.without(count)
            if count and any(t.kind == "latency" for t in self.targets):
                run.faster = self.speed.race(run.model).ratio
            self.runs[count] = run
        return self.runs[count]

    def meets(self, count: int) -> bool:
        """Whether the targets hold without so many branches, and all widths."""
        run = self.without(count)
        others = [t for t in self.targets if t.kind != "latency"]
        if others:
            left = Budgets(analyse(run.model, input_shapes=run.shapes), [], 1, size_in_bytes(run.model))
            if any(left.dense(t.kind) > self.budgets.amount(t) for t in others):
                return False
        return all(self._fast(run, t) for t in self.targets if t.kind == "latency")

    def _fast(self, run: Shallowed, target: Target) -> bool:
        if target.relative:
            return run.faster * target.value >= 1
        return self.speed.race(run.model).seconds <= target.value if run.gone else False

    def fewest(self) -> int:
        """Return how few branches must go for the targets to hold.

        Raises
        ------
        NothingToPrune
            If all of them don't, or the targets hold as it is.
        """
        low, high = 0, len(self.found.worths)
        asked = "+".join(texts_of(self.options.target))
        if self.meets(low):
            raise NothingToPrune(
                f"--target {asked} holds as it is: no residual branch has to go; ask for less."
            )
        if not self.meets(high):
            raise NothingToPrune(
                f"--target {asked} can't be met by residual branches alone: without all "
                f"{high} of them too much is left; ask for less, or add channels to --granularity."
            )
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self.meets(middle) else (middle, high)
        return high

    def best(self) -> Shallowed:
        """Return the run without as many branches as lose least with the widths that meet the targets then.

        Raises
        ------
        NothingToPrune
            If no number of them meets the targets.
        """
        try:
            most = self.fewest()
        except NothingToPrune:
            most = len(self.found.worths) - 1
        failure: OnnxPruneError | None = None
        step = max(most / GRID, 1.0)
        counts = sorted({min(round(step * n), most) for n in range(GRID + 1)})
        for halving in range(HALVED + 1):
            for count in counts:
                try:
                    self.distance(count)
                except (NothingToPrune, NotFaster) as error:
                    failure, self.tried[count] = error, float("inf")
            best = min(self.tried, key=lambda n: (self.tried[n], n))
            step /= 2
            counts = sorted({max(round(best + s * step), 0) for s in (-1, 1)} - set(self.tried))
            counts = [count for count in counts if count <= most and step >= 0.5 and halving < HALVED]
        if self.tried[best] == float("inf"):
            assert failure is not None
            raise failure
        tried = ", ".join(f"{count}: {error:.3g}" for count, error in sorted(self.tried.items()))
        self.found.run.notes.append(f"branches out, and what is lost then at this target, by trials: {tried}")
        return self.without(best)

    def _clock(self, run: Run[Options], analysis: Analysis) -> Speed | None:
        """Return what times a trial; None where nothing but a latency is to be timed, and none is asked for."""
        if not any(t.kind == "latency" for t in self.targets):
            return None
        return _Quick(run.model, analysis, run.options)

    def distance(self, count: int) -> float:
        """Return how far a model is from the original that meets the targets without so many branches."""
        if count in self.tried:
            return self.tried[count]
        run = self.found.run
        run.say(f"branches: {count} out")
        quiet: dict[str, Any] = {
            "recover": "lstsq",
            "epochs": None,
            "lr": None,
            "steps": 1,
            "check_speed": False,
            "samples": min(self.options.samples or ROUGH, ROUGH),
            "trials": 0,
        }
        rough = dataclasses.replace(self.options, **quiet) if self.options.recover != "none" else self.options
        less = self.without(count)
        trial: Run[Options] = _fitted(dataclasses.replace(less, options=rough, notes=[], progress=None))
        analysis = self.analysis_of(trial)
        limit = limit_of(trial, analysis, [])
        if limit.budgets.met(limit.targets):
            model = trial.model
        else:
            from onnxprune.pruning.on_samples import FromSamples

            saliency = FromSamples.open(trial, analysis)
            limit = limit_of(trial, saliency.analysis, saliency.groups, self._clock(trial, saliency.analysis))
            decision = decide(trial, saliency.groups, saliency.rankings(limit), limit)
            model = saliency.calibration.fit(
                decision.removed
            ).model  # of the old shape: nobody reads what goes
        samples = self.found.judges
        opened = self.found.depth.original.coupling.opened
        dense = Outputs(run.model, samples, opened)
        self.tried[count] = distance(dense, Outputs(model, samples, opened, room=0))
        return self.tried[count]
