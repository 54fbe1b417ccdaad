"""What each command does; the front door `onnxprune.api` does the work."""

from __future__ import annotations

import contextlib
import json
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from onnxprune import api
from onnxprune.cli import folder
from onnxprune.cli.arguments import options_from, shapes_from
from onnxprune.cli.passes import listening
from onnxprune.cli.progress import showing
from onnxprune.cli.values import file_of
from onnxprune.errors import OnnxPruneError, UsageError
from onnxprune.files.commit import write_text
from onnxprune.files.target import STDOUT
from onnxprune.journey import passes as passlist
from onnxprune.journey.output import Sides, declared
from onnxprune.journey.passes import RunReport
from onnxprune.journey.recipe import PassFields, steps_of
from onnxprune.journey.recipe import read as read_recipe
from onnxprune.journey.trees import model_in
from onnxprune.model import Model
from onnxprune.options.pruning import OptionFields, Options
from onnxprune.options.target import family_of
from onnxprune.pruning.journey import Result
from onnxprune.report.forms import is_page
from onnxprune.report.record import Facts, Record

__all__ = [
    "apply", "calibrate", "compress", "decompress", "explain", "fleet",
    "inspect", "merge", "plan", "profile", "prune", "run", "sensitivity",
    "sparsify", "tune", "verify",
]  # fmt: skip

T = TypeVar("T")


def prune(args: Namespace) -> None:
    """``onnxprune prune IN OUT --ratio R``."""
    source = _input(args)
    options: Options = options_from(args)
    if len(family_of(options.target)) > 1:
        _family(args, source, options)
        return
    if folder.pruned(args, options, _places, _told):
        return
    with _places(args, source, _out(args), {"--report": args.report, "--plan": args.plan}):
        result = _told(args, api.prune, source, args.out, options)
        if args.plan:
            result.plan.save(args.plan)
        _keep(args, result.report)
    _finish(args, result.report)


def _family(args: Namespace, source: str, options: Options) -> None:
    """Make several models, and print what each is worth."""
    from onnxprune.pruning.family import member_path, page_of, pareto, show_pareto

    def keep(target: str, result: Result) -> None:
        result.report.command = args.line
        if args.report:
            result.report.save(member_path(args.report, target))
        if args.plan:
            result.plan.save(member_path(args.plan, target))

    paths = {"OUT": args.out, "--report": args.report, "--plan": args.plan}
    if STDOUT in paths.values():
        raise UsageError(
            "Several models can't share standard output; give files, whose names get the targets."
        )
    writes: dict[str, str | None] = {
        f"{what} of {target}": str(member_path(path, target))
        for what, path in paths.items()
        if path
        for target in family_of(options.target)
    }
    overview = args.report if args.report and is_page(args.report) else None
    with _places(args, source, None, writes | {"--report": overview}, joined=False):
        results = _told(args, api.family, source, args.out, options, each=keep)
        if overview:
            write_text(Path(overview), page_of(results, overview, source, args.line))
    if args.json:
        print(json.dumps(pareto(results), indent=1))
    elif not args.quiet:
        show_pareto(pareto(results))
        for result in results.values():
            print(f"wrote {result.path}")


def sensitivity(args: Namespace) -> None:
    """``onnxprune sensitivity IN --calib SAMPLES``."""
    _say(args, _told(args, api.sensitivity, _input(args), options_from(args, ratio=0.5)))


def calibrate(args: Namespace) -> None:
    """``onnxprune calibrate IN --calib SAMPLES -o M.npz``."""
    from onnxprune.options.calibration import CalibrateOptions

    source = _input(args)
    with _places(args, source, None, {"-o": args.output}):
        told = _told(args, api.calibrate, source, args.output, options_from(args, CalibrateOptions))
    _say(args, told)


def merge(args: Namespace) -> None:
    """``onnxprune merge PART.npz ... -o M.npz``."""
    with _places(args, "", None, {"-o": args.output}):
        told = _told(args, api.merge, args.parts, args.output)
    _say(args, told)


def profile(args: Namespace) -> None:
    """``onnxprune profile IN``."""
    options: Options = options_from(args, ratio=0.5, check_speed=True)
    names = ("input_shapes", "allow_inexact", "center_norms", "provider", "batch", "threads")
    given: Any = {name: getattr(options, name) for name in names}
    _say(args, _told(args, api.profile, _input(args), **given))


def apply(args: Namespace) -> None:
    """``onnxprune apply IN PLAN OUT``."""
    source = _input(args)
    with _places(args, source, args.out, {"--report": args.report}):
        result = _told(args, api.apply, source, args.plan, args.out, **_given(args))
        _keep(args, result.report)
    _finish(args, result.report)


def plan(args: Namespace) -> None:
    """``onnxprune plan IN -o PLAN``."""
    source = _input(args)
    with _places(args, source, None, {"-o": args.output}):
        plan = _told(args, api.plan, source, options_from(args))
        plan.save(args.output)
    if _speaks(args):
        print(f"{args.output}: {plan.brief()}")


def verify(args: Namespace) -> None:
    """``onnxprune verify ORIGINAL PRUNED --plan PLAN``."""
    verdict = _told(args, api.verify, args.original, args.pruned, args.plan, **_given(args))
    if args.json:
        print(json.dumps(verdict, indent=1, allow_nan=False))
    elif _speaks(args):
        print(
            f"law 1 holds: pruned = masked original within {verdict['max_relative_error']:.1e} (relative) "
            f"on {verdict['inputs']} inputs"
        )
        for line in verdict["checks"]:
            print(line)


def inspect(args: Namespace) -> None:
    """``onnxprune inspect IN`` or ``onnxprune inspect --ops``."""
    _refuse_idle(args)
    if args.ops:
        _ops(args)
        return
    if not _input(args):
        raise UsageError(
            "'inspect' needs a model, or --ops for the op table; see 'onnxprune inspect --help'."
        )
    if args.sparsity:
        _say(args, api.inspect_sparsity(_input(args)))
        return
    with _places(args, _input(args), None, {"--html": args.html}):
        inspection = _told(
            args,
            api.inspect,
            _input(args),
            input_shapes=shapes_from(getattr(args, "input_shapes", [])),
            allow_inexact=getattr(args, "allow_inexact", False),
            center_norms=getattr(args, "center_norms", True),
            open_io=getattr(args, "open_io", ()),
        )
        if args.html:
            write_text(Path(args.html), inspection.page(Path(_input(args)).name))
    _say(args, inspection)


def explain(args: Namespace) -> None:
    """``onnxprune explain IN TENSOR [AXIS]``."""
    explanation = _told(
        args,
        api.explain,
        _input(args),
        args.tensor,
        args.axis,
        input_shapes=shapes_from(getattr(args, "input_shapes", [])),
        allow_inexact=getattr(args, "allow_inexact", False),
        center_norms=getattr(args, "center_norms", True),
        open_io=getattr(args, "open_io", ()),
    )
    _say(args, explanation)


def run(args: Namespace) -> None:
    """``onnxprune run IN OUT --passes LIST``."""
    source, report = _input(args), RunReport()
    passes = read_recipe(args.recipe) if args.passes is None else args.passes  # a pipe is read once
    shapes = shapes_from(getattr(args, "input_shapes", []))
    beside: PassFields = {"input_shapes": shapes, "calib": getattr(args, "calib", None)}
    steps = steps_of(passes, **beside)
    if args.report and is_page(args.report):
        passlist.check_page(steps)
    given = {n: getattr(args, n) for n in ("in_place", "external_data_threshold") if hasattr(args, n)}
    with _places(args, source, args.out, {"--report": args.report}), listening(report.notes, args.quiet):
        model = Model.load(source)
        _told(
            args,
            api.run,
            model,
            passes,
            args.out,
            each=lambda text, record: report.passes.append((text, record)),
            **beside,
            **given,
        )
        report.name_files(Path(source), Path(args.out))
        report.sha256 = {"input": model.sha256}
        report.options = {"passes": ",".join(step.text for step in steps), "recipe": args.recipe, **given}
        _keep(args, report)
    if _speaks(args):
        report.show()
        print(f"wrote {args.out} ({Path(args.out).stat().st_size:,} bytes)")


def sparsify(args: Namespace) -> None:
    """``onnxprune sparsify IN OUT --pattern 2:4``."""
    from onnxprune.options.sparsity import SparseOptions

    source = _input(args)
    with _places(args, source, _out(args), {"--report": args.report}):
        result = _told(args, api.sparsify, source, args.out, options_from(args, SparseOptions))
        _keep(args, result.report)
    _finish(args, result.report)


def compress(args: Namespace) -> None:
    """``onnxprune compress IN OUT --target bytes=0.1``."""
    from onnxprune.options.compression import CompressOptions

    source, options = _input(args), options_from(args, CompressOptions)
    args.out = str(options.place(Path(_out(args))))
    with _places(args, source, args.out, {"--report": args.report}):
        result = _told(args, api.compress, source, args.out, options)
        _keep(args, result.report)
    _finish(args, result.report)


def decompress(args: Namespace) -> None:
    """``onnxprune decompress IN OUT``."""
    with _places(args, _input(args), args.out, {}):
        told = _told(args, api.decompress, _input(args), args.out)
    _finish(args, told)


def tune(args: Namespace) -> None:
    """``onnxprune tune IN OUT --max-drop 1 --calib SAMPLES --labels KEY``."""
    from onnxprune.options.tuning import TuneOptions
    from onnxprune.tuning.missed import Missed

    source, options = _input(args), options_from(args, TuneOptions)
    with _places(args, source, args.out, {"--report": args.report}, joined=False):
        try:
            report = _told(args, api.tune, source, args.out, options)
        except Missed as missed:  # what was tried is told all the same: it says how near one can come
            _keep(args, missed.report)
            _say(args, missed.report)
            raise
        _keep(args, report)
    _finish(args, report)


def fleet(args: Namespace) -> None:
    """``onnxprune fleet SPEC|FOLDER OUT``."""
    from onnxprune.options.fleet import FleetOptions

    table = _told(args, api.fleet, _input(args), args.out, options_from(args, FleetOptions))
    _say(args, table)
    if table.failed:
        raise OnnxPruneError(
            f"{len(table.failed)} of {len(table.names)} could not be done; {args.out}/fleet.csv says why, and --retry "
            "tries them again."
        )


def _refuse_idle(args: Namespace) -> None:
    """Refuse what 'inspect' wouldn't look at, as it is asked for the op table or for zeros."""
    given = {"a model": _input(args), "--sparsity": args.sparsity} if args.ops else {}
    given |= {"--html": args.html, "--input-shape": getattr(args, "input_shapes", None)}
    given["--allow-inexact"] = getattr(args, "allow_inexact", False)
    given["--no-center-norms"] = not getattr(args, "center_norms", True)
    idle = [name for name, value in given.items() if value]
    if idle and (args.ops or args.sparsity):
        way = "--ops" if args.ops else "--sparsity"
        raise UsageError(f"'inspect {way}' takes no account of {idle[0]}; leave one of them out.")


def _ops(args: Namespace) -> None:
    from onnxprune.pruning.inspection import op_table

    table = op_table()
    if args.quiet and not args.json:
        return
    if args.json:
        print(json.dumps([{"op": op, "kind": kind, "text": text} for op, kind, text in table], indent=1))
        return
    from onnxprune.report.table import show

    show(["op", "kind", "row"], table, left=3)


def _keep(args: Namespace, report: Record) -> None:
    report.command = args.line
    if args.report:
        report.save(args.report)


def _finish(args: Namespace, report: Facts) -> None:
    _say(args, report)
    if _speaks(args):
        print(f"wrote {args.out}")


def _say(args: Namespace, facts: Facts) -> None:
    """Print what was found: for programs, for people, or not at all."""
    if args.json:
        sys.stdout.write(facts.dumps())
    elif _speaks(args):
        facts.show()


def _speaks(args: Namespace) -> bool:
    """Whether tables and sentences may go to standard output: nothing else goes there, and they are wanted."""
    return not (args.quiet or getattr(args, "json", False) or STDOUT in _written(args).values())


def _written(args: Namespace) -> dict[str, str]:
    """Return the files that a command writes beside a model, by their options."""
    options = {"--report": "report", "--plan": "plan", "--html": "html", "-o": "output"}
    reads = ("apply", "verify")  # the plan is theirs to read
    paths = {flag: getattr(args, name, None) for flag, name in options.items()}
    return {
        f: str(path) for f, path in paths.items() if path and not (f == "--plan" and args.command in reads)
    }


def _input(args: Namespace) -> str:
    return str(getattr(args, "in") or "")


def _out(args: Namespace) -> str:
    """Return the place of the result, which is in a folder where a folder is given and one is wanted."""
    return str(model_in(_input(args), Path(args.out)))


def _given(args: Namespace) -> OptionFields:
    """Return the options that were given, of those that don't belong to a decision."""
    names = ("verify", "inputs", "rtol", "in_place", "external_data_threshold", "seed", "reproducible")
    given: Any = {name: getattr(args, name) for name in names if hasattr(args, name)}
    fields: OptionFields = given
    return fields


@contextlib.contextmanager
def _places(
    args: Namespace, source: str, output: str | None, writes: Mapping[str, str | None], *, joined: bool = True
) -> Iterator[None]:
    """Refuse files that would replace what is read or each other, and what can't be written, before any work; write all
    together at the end of the block.

    The output itself may be the input with --in-place; that is checked where it is written.
    """
    taken = [what for what, path in _written(args).items() if path == STDOUT]
    taken += ["--json"] * bool(getattr(args, "json", False))
    if len(taken) > 1:
        raise UsageError(f"{' and '.join(taken)} would both go to standard output; give one of them a file.")
    given = {"--calib": getattr(args, "calib", None), "--inputs": getattr(args, "inputs", None)}
    given |= {"--eval": getattr(args, "held_out", None), "--metric": getattr(args, "metric", None)}
    given["--moments"] = getattr(args, "moments", None)
    given |= {f"part {n}": part for n, part in enumerate(getattr(args, "parts", ()), 1)}
    if args.command == "apply":
        given["the plan"] = args.plan
    reads = {what: file_of(text) for what, text in given.items() if isinstance(text, str)}
    written = {what: Path(path) for what, path in writes.items() if path}
    with declared(Sides(written, reads), source, output, joined=joined):
        yield


def _told(args: Namespace, work: Callable[..., T], *given: Any, **more: Any) -> T:
    """Do the work, with progress on standard error meanwhile, and what scripts of the user's print."""
    with showing(quiet=args.quiet, verbose=args.verbose) as tell, contextlib.redirect_stdout(sys.stderr):
        return work(*given, progress=tell or False, **more)
