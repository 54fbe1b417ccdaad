"""One calibration, many answers: several budgets from one set of loss curves, and the curves themselves."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray

from onnxprune.errors import OnnxPruneError, UsageError
from onnxprune.files.commit import together
from onnxprune.journey.output import refuse_overwrite
from onnxprune.journey.run import Run
from onnxprune.options.kinds import texts_of
from onnxprune.options.pruning import Options
from onnxprune.options.target import family_of
from onnxprune.progress import Whole
from onnxprune.pruning.aimed import fitted
from onnxprune.pruning.decision import Decision, Limit, limit_of
from onnxprune.pruning.journey import Result, analysis_of, carry_out, planned
from onnxprune.pruning.journey import prune as prune_one
from onnxprune.pruning.on_samples import FromSamples, admitted
from onnxprune.pruning.outline import thinned
from onnxprune.pruning.schedule import decide_in_steps
from onnxprune.pruning.speed import Speed
from onnxprune.pruning.vocabulary import narrowed
from onnxprune.report import page
from onnxprune.report.record import Facts
from onnxprune.report.table import amount, share, show

Removed = Mapping[str, NDArray[np.int64]]

__all__ = ["Sensitivity", "member_path", "pareto", "prune", "sensitivity", "show_pareto"]


def member_path(path: str | Path, target: str) -> Path:
    """Return where one member's file goes: its target takes the place of ``{target}``, or ends the name.

    Examples
    --------
    >>> str(member_path("small.onnx", "macs=0.5+bytes=2MB"))
    'small-macs0.5-bytes2MB.onnx'
    >>> str(member_path("{target}.onnx", "macs=0.5"))
    'macs0.5.onnx'
    """
    mark, path = target.replace("=", "").replace("+", "-").replace("%", "pct"), Path(path)
    if "{target}" in path.name:
        return path.with_name(path.name.replace("{target}", mark))
    return path.with_name(f"{path.stem}-{mark}{path.suffix}")


#: Is told of each member while its files are written; what it writes goes with them.
Each = Callable[[str, Result], None]


def prune(
    run: Run[Options], output: Path | None, each: Each = lambda target, result: None
) -> dict[str, Result]:
    """Make one model for each value of the target; with samples all of them share the curves.

    Parameters
    ----------
    run : Run
    output : Path or None
        See `member_path`.
    each : callable, optional

    Returns
    -------
    dict
        Target -> result, in the order that was asked for.

    Raises
    ------
    OnnxPruneError
        As for one model; members that came before are written then.
    """
    options, results = run.options, {}
    if options.min_agreement is not None or options.max_drop is not None:
        raise UsageError("--min-agreement and --max-drop are judged on one model; give --target one value.")
    targets = family_of(options.target)
    paths = {t: None if output is None else member_path(output, t) for t in targets}
    for path in paths.values():
        refuse_overwrite(run.model, path, False, options.external_data_threshold)
    run = narrowed(run, next(iter(paths.values())))
    if not options.fitted:
        for target in targets:
            with together():
                results[target] = prune_one(_member(run, target), paths[target])
                each(target, results[target])
        return results
    whole = Whole(run.progress, "family", 2 * len(targets))
    run = dataclasses.replace(run, progress=whole)
    members, failure = _decided(run, targets, whole)
    for number, (saliency, limit, decision) in enumerate(
        members, 1
    ):  # one by one, so that each is there when it is done
        member, (target,) = saliency.run, texts_of(saliency.run.options.target)
        whole.at(len(targets) + number, target)
        with together():
            candidate = fitted(member, saliency, limit, decision)
            plan = planned(member, saliency.analysis, candidate.decision)
            results[target] = carry_out(member, candidate, plan, paths[target])
            each(target, results[target])
    if failure is not None:
        raise failure
    return results


def _member(run: Run[Options], target: str) -> Run[Options]:
    options = dataclasses.replace(run.options, target=(target,))
    return dataclasses.replace(run, options=options, notes=list(run.notes), seconds=dict(run.seconds))


def _decided(
    run: Run[Options], targets: Sequence[str], whole: Whole
) -> tuple[list[tuple[FromSamples, Limit, Decision]], OnnxPruneError | None]:
    """Return what each member loses, up to the first that can't be had, and why that one can't."""
    members: list[tuple[FromSamples, Limit, Decision]] = []
    saliency: FromSamples | None = None
    speed: Speed | None = None
    for number, target in enumerate(targets, 1):
        whole.at(number, target)
        member = _member(run, target)
        try:
            if saliency is None:
                saliency = FromSamples.open(member, analysis_of(member))
            else:
                saliency = saliency.again(member)
            limit = limit_of(member, saliency.analysis, saliency.groups, speed and speed.again())
            members.append((saliency, limit, admitted(decide_in_steps(member, saliency, limit))))
        except OnnxPruneError as error:
            return members, error
        speed = limit.budgets.speed
    return members, None


def pareto(results: dict[str, Result]) -> list[dict[str, Any]]:
    """Return a line for each model: what is left of it, how near to the original it is, how fast."""
    lines = []
    for target, result in results.items():
        report = result.report
        original = (report.calibration or {}).get("original") or {}
        lines.append(
            {
                "target": target,
                "macs": report.after.macs,
                "params": report.after.parameters,
                "bytes": report.after.bytes,
                "macs_left": (report.after.macs or 0) / (report.before.macs or 1),
                "agreement": original.get("agreement"),
                "relative_error": original.get("relative_error"),
                "speedup": None if report.latency is None else report.latency["ratio"],
                "path": None if result.path is None else str(result.path),
            }
        )
    return lines


def page_of(results: dict[str, Result], path: str, source: str, command: str) -> str:
    """Return one page of all models, which leads to the page of each.

    Parameters
    ----------
    results : dict
        Target -> result.
    path : str
        Of the page; the others are beside it, see `member_path`.
    source, command : str
        The model's file, and the command line.
    """
    members = [{**line, "page": member_path(path, line["target"]).name} for line in pareto(results)]
    return page.render_family({"files": {"input": Path(source).name}, "command": command, "members": members})


def show_pareto(lines: Sequence[dict[str, Any]], stream: TextIO | None = None) -> None:
    """Print the lines of `pareto` as a table."""

    def shown(value: float | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    rows = [
        [
            line["target"],
            amount(line["macs"]),
            share(line["macs_left"], 1.0),
            amount(line["params"]),
            amount(line["bytes"]),
            shown(line["agreement"], ".1%"),
            shown(line["relative_error"], ".3f"),
            shown(line["speedup"], ".2f"),
        ]
        for line in lines
    ]
    head = ["target", "MACs", "left", "parameters", "bytes", "agreement", "error", "speed-up"]
    show(head, rows, title="Family", stream=stream)


@dataclasses.dataclass(frozen=True, repr=False)
class Sensitivity(Facts):
    """Loss curves of groups, the most sensitive first.

    Attributes
    ----------
    criterion : str
    samples : int
    groups : list of dict
        ``name``, ``units``, ``macs``, ``half`` (the error when half of the units are gone, as a share of the variance
        of what reads them; None where so many can't go), ``curve``: pairs of the units that are gone and the error,
        and ``measured``: false where samples say nothing of what reads the group, and norms stand in for errors.
    """

    criterion: str
    samples: int
    groups: list[dict[str, Any]]

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {"format": 1, "criterion": self.criterion, "samples": self.samples, "groups": self.groups}

    def brief(self) -> str:
        """Return how many groups were measured, and on what."""
        return f"curves of {len(self.groups)} groups by {self.criterion}, on {self.samples:,} samples"

    def show(self, stream: TextIO | None = None) -> None:
        """Print a table: the error when a quarter, a half, three quarters of a group are gone."""
        rows = []
        for group in self.groups:
            at = dict(group["curve"])
            cells = []
            for part in (0.25, 0.5, 0.75):
                near = max((n for n in at if n <= part * group["units"]), default=0)
                cells.append(f"{at[near]:.3g}" if near in at else "-")
            name = group["name"] if group["measured"] else f"{group['name']} (by norms)"
            rows.append([name, f"{group['units']:,}", amount(group["macs"]), *cells])
        head = ["group", "units", "MACs", "1/4 gone", "1/2 gone", "3/4 gone"]
        show(head, rows, title=f"Error by {self.criterion} on {self.samples:,} samples", stream=stream)


def sensitivity(run: Run[Options]) -> Sensitivity:
    """Return the loss curve of each group; later runs with the same samples reuse them.

    Raises
    ------
    UsageError
        If the criterion looks at weights only.
    """
    work = FromSamples.open(run, analysis_of(run))
    if not work.calibration.curves:
        raise UsageError(f"--criterion {run.options.criterion} takes no samples; give obs, for example.")
    groups = {g.name: g for g in work.groups}
    lines: list[dict[str, Any]] = []
    for name, curve in work.calibration.curves.items():
        group = groups[name]
        half = float(curve.error[group.units // 2])
        lines.append(
            {
                "name": name,
                "units": group.units,
                "macs": group.all_macs,
                "half": half if half < float("inf") else None,
                "curve": [[int(n), float(e)] for n, e in thinned(curve.error, 64)],
                "measured": name not in work.calibration.by_norm,
            }
        )
    lines.sort(key=lambda line: -(line["half"] or 0.0))
    return Sensitivity(run.options.criterion, work.fit_on.count, lines)
