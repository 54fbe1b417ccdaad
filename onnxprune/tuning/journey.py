"""The journey of a search: read the samples, judge the input, try levers, write the best."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnxprune.calibration.samples import Samples, load_samples
from onnxprune.errors import CalibrationError, OnnxPruneError, UsageError
from onnxprune.files import cache
from onnxprune.files.holding import scratch
from onnxprune.graph.analysis import Analysis
from onnxprune.journey.output import refuse_overwrite, size_in_bytes
from onnxprune.journey.run import Run
from onnxprune.latency.clock import bench_of
from onnxprune.model import Model
from onnxprune.options.tuning import TuneOptions
from onnxprune.progress import Whole
from onnxprune.pruning.journey import analysis_of
from onnxprune.reconstruction.cache import program
from onnxprune.reconstruction.plausible import read_samples
from onnxprune.report.record import versions
from onnxprune.tuning.cuts import Cuts
from onnxprune.tuning.demand import Demand, Reached
from onnxprune.tuning.explore import Explorer, best_of, is_doubtful, most
from onnxprune.tuning.floor import Floor
from onnxprune.tuning.members import Deadline, Entry, Members, OutOfTime
from onnxprune.tuning.metric import Accuracy, Metric, Score, script_of
from onnxprune.tuning.missed import nothing, unmet
from onnxprune.tuning.report import TuneReport, on_frontier
from onnxprune.tuning.state import State

__all__ = ["find"]

#: How layers are fitted while the search looks around, and then for the best, each from where the last ended: the first
#: costs a quarter of the second, the second of the third.
QUICK, DEEPER = "lstsq", ("", "distill")
#: Members that are timed in several processes once the time is over.
LATE = 2
#: Options that members don't depend on.
APART = (
    "max_drop",
    "target",
    "minutes",
    "state",
    "calib",
    "held_out",
    "metric",
    "in_place",
    "external_data_threshold",
)


def find(run: Run[TuneOptions], output: Path) -> TuneReport:
    """Search, and write the best model that holds the floor.

    Parameters
    ----------
    run : Run
    output : Path

    Raises
    ------
    Missed
        If nothing that holds it is better than the input, or meets the target; members are kept.
    OnnxPruneError
        See `onnxprune.errors`.
    """
    options = run.options
    refuse_overwrite(run.model, output, None)
    demand = Demand.of(options.target)
    if run.model.path is None:
        raise UsageError("'tune' needs a model in a file; save it first.")
    deadline = Deadline(options.minutes)
    whole = Whole(run.progress, "tune", most(options.minimize), what="the input")
    run.progress = whole
    said = script_of(options.metric, deadline.minutes and 60 * deadline.minutes) if options.metric else None
    analysis = _analysed(run)
    samples, labelled = _samples(run, analysis)
    metric: Metric = said or Accuracy(_judged_on(run, samples))
    state = State.open(Path(options.state) if options.state else output.with_suffix(".tune"), _facts(run))
    if state.anew:
        run.notes.append(
            f"no member of the earlier search beside it is used, since these differ: {state.anew}"
        )
    floor = _floor(run, metric, state)
    writer = _Best(run, output, state)
    members = Members(
        run.model.path, Cuts(run, labelled), lambda: _seen(options, samples), metric, floor, demand,
        bench_of(run.model, analysis, "cpu", None, options.threads), state, deadline, whole,
    )  # fmt: skip
    members.better = lambda entry: _look(members, writer, options.minimize)
    explorer, complete = Explorer(members, options.minimize), True
    if options.recover == TuneOptions.recover:
        explorer.quick, explorer.deeper = QUICK, DEEPER
    run.progress = deadline.bound(whole)
    try:
        explorer.all()
    except OutOfTime:
        complete = False
    except Reached:
        pass
    best = _settled(members, options.minimize)
    report = _report(run, members, explorer, best, complete)
    report.name_files(run.model.path, None if best is None else output)
    if best is None:
        report.sha256 = {"input": run.sha256()}
        raise (unmet if members.demand else nothing)(report, members)
    writer.write(best)
    report.sha256 = {"input": run.sha256(), "output": Model.load(output).sha256}
    return report


def _analysed(run: Run[TuneOptions]) -> Analysis:
    """Trace the model as it is, for its shapes."""
    plain = Run(
        run.options.pruning("macs=0.5", "auto", run.options.labels is not None), run.model, run.progress
    )
    analysis = analysis_of(plain, fit=False)
    run.notes += plain.notes
    return analysis


def _samples(run: Run[TuneOptions], analysis: Analysis) -> tuple[Samples, bool]:
    """Read the samples, with their labels where they have some."""

    def read(labelled: bool) -> tuple[Samples, bool]:
        options = run.options.pruning("macs=0.5", "auto", labelled)
        return read_samples(analysis, options, run.progress), labelled

    if run.options.labels is None:
        return read(False)
    try:
        return read(True)
    except CalibrationError:
        if run.options.held_out is not None:  # those may have them alone
            with suppress(CalibrationError):
                return read(False)
        raise


def _seen(options: TuneOptions, samples: Samples) -> Samples:
    """Return the samples that levers may see: all, unless a part of them is what members are judged on."""
    judging = options.metric is None and options.held_out is None
    return samples.set_aside()[0] if judging else samples


def _judged_on(run: Run[TuneOptions], samples: Samples) -> Samples:
    """Return labelled samples that no fit sees.

    Raises
    ------
    UsageError, CalibrationError
        If there are none.
    """
    options = run.options
    if options.held_out is not None:
        if cache.digest_of(options.held_out) == cache.digest_of(options.calib) and isinstance(
            options.calib, str
        ):
            raise UsageError(
                "--eval is what --calib is, which fits see; give other samples, or leave --eval out."
            )
        return load_samples(run.model.proto.graph, options.held_out, labels=options.labels)
    aside = samples.set_aside()[1]
    if aside is None:
        raise CalibrationError(
            f"There are {samples.count} samples, too few to set any aside to judge on; give more, or "
            "others with --eval."
        )
    return aside


def _facts(run: Run[TuneOptions]) -> dict[str, Any]:
    """Return all that members depend on."""
    options = run.options
    plain = {name: value for name, value in options.to_json().items() if name not in APART}
    return {
        "model": run.sha256(),
        "calib": cache.digest_of(options.calib),
        "eval": cache.digest_of(options.held_out),
        "metric": None if options.metric is None else cache.digest_of(options.metric),
        "options": plain,
        "versions": versions(),
        "program": program(),
        "machine": cache.machine(),
    }


def _of_input(run: Run[TuneOptions], metric: Metric) -> Score:
    """Judge the input; a script, which may do what it likes with the file, gets a copy."""
    assert run.model.path is not None
    if run.options.metric is None:
        return metric.of(run.model.path)
    with scratch() as folder:
        copy = folder / run.model.path.name
        run.model.save(copy)
        return metric.of(copy)


def _floor(run: Run[TuneOptions], metric: Metric, state: State) -> Floor:
    """Judge the input, or remember what it was judged; where it is refused, nothing that is new here stays."""
    options, entry = run.options, state.read("input")
    fresh = entry is None
    try:
        if entry is None:
            run.say(f"{metric.name} of the input")
            score = _of_input(run, metric)
            entry = state.keep("input", {"metric": score.value, "items": score.items, "took": score.seconds})
        score = Score(entry["metric"], entry["items"], entry["took"])
        floor = Floor.of(score, options.max_drop, options.metric is not None, options.lower_is_better)
        floor.resolvable(
            "give more with --eval" if options.metric is None else "let the script judge more items"
        )
    except OnnxPruneError:
        if fresh:
            state.discard()
        raise
    if score.items is None:
        run.notes.append(
            f"{metric.name} gives one number for all items, so nobody knows how sure it is; let it return one number "
            "for each item to have intervals"
        )
    return floor


@dataclass
class _Best:
    """Keeps the output the best there is, whenever the search is stopped."""

    run: Run[TuneOptions]
    output: Path
    state: State
    name: str = ""

    def write(self, entry: Entry | None) -> None:
        """Write a member as the output, unless it is there."""
        if entry is not None and entry["name"] != self.name:
            self.name = entry["name"]
            Model.load(self.state.model(self.name)).save(self.output)


def _look(members: Members, writer: _Best, aim: str) -> None:
    """Write the best so far; end the search where it is all that was asked for, in several processes too.

    Raises
    ------
    Reached
    """
    best = _settled(members, aim) if members.demand else best_of(members, aim)
    writer.write(best)
    if members.demand and best is not None:
        raise Reached


def _settled(members: Members, aim: str) -> Entry | None:
    """Return the best member, timed in several processes until the best is one that was.

    Where none is faster beyond doubt, those are timed so that may be, the fastest first. Once the time is over `LATE`
    members are timed so, and then the best of those that were is taken.
    """
    late = 0
    for _ in range(len(members.entries)):
        best = best_of(members, aim) or (_perhaps(members) if aim == "latency" else None)
        if best is None or "apart" in best:
            return best
        late += members.deadline.done >= 1
        if late > LATE and (found := best_of(members, aim, settled=True)) is not None:
            return found
        members.settle(best)
    return best_of(members, aim)


def _perhaps(members: Members) -> Entry | None:
    """Return the fastest member that holds of those that may be faster than the input."""
    doubtful = [e for e in members.entries.values() if is_doubtful(e) and members.good(e)]
    return max(doubtful, key=lambda e: float(e["speedup"]), default=None)


def _report(
    run: Run[TuneOptions], members: Members, explorer: Explorer, best: Entry | None, complete: bool
) -> TuneReport:
    floor, options = members.floor, run.options
    lines, refused = [], dict(explorer.refused)
    for name, entry in members.entries.items():
        if "refused" in entry:
            refused.setdefault(name if entry["lever"] else f"widths by {entry['ladder']}", entry["refused"])
            continue
        between = floor.interval(members.score(entry))
        lines.append(
            {
                "name": name,
                "metric": entry["metric"],
                "lost": floor.lost(members.score(entry)) + 0.0,  # no -0
                "interval": None if between is None else list(between),
                "holds": members.holds(entry),
                "speedup": entry["speedup"],
                "speed_interval": entry["speed_interval"],
                "processes": len(entry.get("apart", ())) or 1,
                "bytes": entry["bytes"],
                "macs": entry.get("macs"),
                "memory": entry.get("memory"),
                "parameters": entry.get("parameters"),
                "path": str(members.state.model(name)),
            }
        )
    marks = on_frontier(lines, "speedup" if options.minimize == "latency" else options.minimize)
    lines = [line | {"frontier": mark} for line, mark in zip(lines, marks, strict=True)]
    lines.sort(key=lambda line: line["lost"])
    items = floor.original.items
    return TuneReport(
        aim=options.minimize,
        metric={
            "name": members.metric.name,
            "original": floor.original.value,
            "most": floor.most,
            "lower_is_better": floor.lower,
            "items": None if items is None else len(items),
        },
        original={"bytes": size_in_bytes(run.model)}
        | next((e["original"] for e in members.entries.values() if "macs" in e.get("original", ())), {}),
        members=lines,
        best=None if best is None else best["name"],
        refused=refused,
        complete=complete,
        notes=list(run.notes) + _notes(run, best, complete),
        options=options.to_json(),
        seconds=run.seconds | members.spent,
    )


def _notes(run: Run[TuneOptions], best: Entry | None, complete: bool) -> list[str]:
    notes = []
    if best is not None:
        notes.append("the best was chosen on the same items that it is judged on, which flatters it a little")
    if not complete:
        notes.append(
            f"--minutes {run.options.minutes:g} were over before all was tried; the same command goes on from here"
        )
    return notes
