"""What each command does; the front door `onnxprune.api` does the work."""

from __future__ import annotations

import json
import logging
import sys
from argparse import Namespace
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TypeVar

from onnxprune import api
from onnxprune.cli_arguments import options_from, shapes_from
from onnxprune.cli_progress import showing
from onnxprune.errors import UsageError
from onnxprune.files.commit import write_text
from onnxprune.options import OptionFields, Options
from onnxprune.pipeline import Result
from onnxprune.places import Sides, declared
from onnxprune.record import Facts, Record
from onnxprune.sparse import front
from onnxprune.sparse.options import SparseOptions
from onnxprune.targets import family_of

__all__ = ["sensitivity", "apply", "explain", "inspect", "plan", "prune", "run", "sparsify", "verify"]

T = TypeVar("T")


def prune(args: Namespace) -> None:
    """``onnxprune prune IN OUT --ratio R``."""
    source = _input(args)
    options: Options = options_from(args)
    if len(family_of(options.target)) > 1:
        _family(args, source, options)
        return
    with _places(args, source, args.out, {"--report": args.report, "--plan": args.plan}):
        result = _told(args, api.prune, source, args.out, options)
        if args.plan:
            result.plan.save(args.plan)
        _keep(args, result.report)
    _finish(args, result.report)


def _family(args: Namespace, source: str, options: Options) -> None:
    """Make several models, and print what each is worth."""
    from onnxprune.family import member_path, pareto, show_pareto

    def keep(target: str, result: Result) -> None:
        result.report.command = args.line
        if args.report:
            result.report.save(member_path(args.report, target))
        if args.plan:
            result.plan.save(member_path(args.plan, target))

    paths = {"OUT": args.out, "--report": args.report, "--plan": args.plan}
    writes: dict[str, str | None] = {
        f"{what} of {target}": str(member_path(path, target))
        for what, path in paths.items()
        if path
        for target in family_of(options.target)
    }
    with _places(args, source, None, writes, joined=False):
        results = _told(args, api.family, source, args.out, options, each=keep)
    if args.json:
        print(json.dumps(pareto(results), indent=1))
    elif not args.quiet:
        show_pareto(pareto(results))
        for result in results.values():
            print(f"wrote {result.path}")


def sensitivity(args: Namespace) -> None:
    """``onnxprune sensitivity IN --calib SAMPLES``."""
    _say(args, _told(args, api.sensitivity, _input(args), options_from(args, ratio=0.5)))


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
    with _places(args, source, None, {"-o": args.output if args.output != "-" else None}):
        found = _told(args, api.plan, source, options_from(args))
        if args.output != "-":
            found.save(args.output)
    if args.output == "-":
        sys.stdout.write(found.dumps())
        return
    if not args.quiet:
        removed, units = sum(len(g.removed_units) for g in found.groups), sum(g.units for g in found.groups)
        print(f"{args.output}: {removed:,} of {units:,} units of {len(found.groups)} groups are to go")


def verify(args: Namespace) -> None:
    """``onnxprune verify ORIGINAL PRUNED --plan PLAN``."""
    found = _told(args, api.verify, args.original, args.pruned, args.plan, **_given(args))
    if args.json:
        print(json.dumps(found, indent=1, allow_nan=False))
    elif not args.quiet:
        print(
            f"law 1 holds: pruned = masked original within {found['max_relative_error']:.1e} (relative) "
            f"on {found['inputs']} inputs"
        )
        for line in found["checks"]:
            print(line)


def inspect(args: Namespace) -> None:
    """``onnxprune inspect IN`` or ``onnxprune inspect --ops``."""
    if args.ops:
        _ops(args)
        return
    if not _input(args):
        raise UsageError(
            "'inspect' needs a model, or --ops for the op table; see 'onnxprune inspect --help'."
        )
    if args.sparsity:
        _say(args, front.inspect_sparsity(_input(args)))
        return
    with _places(args, _input(args), None, {"--html": args.html}):
        found = _told(
            args,
            api.inspect,
            _input(args),
            input_shapes=shapes_from(getattr(args, "input_shapes", [])),
            allow_inexact=getattr(args, "allow_inexact", False),
        )
        if args.html:
            write_text(Path(args.html), found.page(Path(_input(args)).name))
    _say(args, found)


def explain(args: Namespace) -> None:
    """``onnxprune explain IN TENSOR [AXIS]``."""
    found = _told(
        args,
        api.explain,
        _input(args),
        args.tensor,
        args.axis,
        input_shapes=shapes_from(getattr(args, "input_shapes", [])),
        allow_inexact=getattr(args, "allow_inexact", False),
    )
    _say(args, found)


def run(args: Namespace) -> None:
    """``onnxprune run IN OUT --passes LIST``."""
    given = _given(args)
    source = _input(args)
    if not args.quiet:
        _show_log()
    with _places(args, source, args.out, {}):
        _told(args, api.run, source, args.passes, args.out, in_place=given.get("in_place", False))
    if not args.quiet:
        print(f"wrote {args.out} ({Path(args.out).stat().st_size:,} bytes)")


def sparsify(args: Namespace) -> None:
    """``onnxprune sparsify IN OUT --pattern 2:4``."""
    source = _input(args)
    with _places(args, source, args.out, {"--report": args.report}):
        result = _told(args, front.sparsify, source, args.out, options_from(args, SparseOptions))
        _keep(args, result.report)
    _finish(args, result.report)


def _show_log() -> None:
    """Let passes say on standard error what they did and what they refused."""
    log, handler = logging.getLogger("onnxprune.passes"), logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(module)s: %(message)s"))
    log.handlers[:] = [handler]
    log.setLevel(logging.INFO)


def _ops(args: Namespace) -> None:
    from onnxprune.inspection import op_table

    table = op_table()
    if args.json:
        print(json.dumps([{"op": op, "kind": kind, "text": text} for op, kind, text in table], indent=1))
        return
    from onnxprune.table import show

    show(["op", "kind", "row"], table, left=3)


def _keep(args: Namespace, report: Record) -> None:
    report.command = args.line
    if args.report:
        report.save(args.report)


def _finish(args: Namespace, report: Record) -> None:
    _say(args, report)
    if not (args.json or args.quiet):
        print(f"wrote {args.out}")


def _say(args: Namespace, found: Facts) -> None:
    """Print what was found: for programs, for people, or not at all."""
    if args.json:
        sys.stdout.write(found.dumps())
    elif not args.quiet:
        found.show()


def _input(args: Namespace) -> str:
    return str(getattr(args, "in") or "")


def _given(args: Namespace) -> OptionFields:
    """Return the options that were given, of those that don't belong to a decision."""
    names = ("verify", "inputs", "rtol", "in_place", "external_data_threshold", "seed")
    given: Any = {name: getattr(args, name) for name in names if hasattr(args, name)}
    found: OptionFields = given
    return found


def _places(
    args: Namespace, source: str, output: str | None, writes: Mapping[str, str | None], *, joined: bool = True
) -> AbstractContextManager[None]:
    """Refuse files that would replace what is read or each other, and what can't be written, before any work; write all
    together at the end of the block.

    The output itself may be the input with --in-place; that is checked where it is written.
    """
    given = {"--calib": getattr(args, "calib", None), "--inputs": getattr(args, "inputs", None)}
    if args.command == "apply":
        given["the plan"] = args.plan
    reads = {what: _file_of(text) for what, text in given.items() if isinstance(text, str)}
    written = {what: Path(path) for what, path in writes.items() if path}
    return declared(Sides(written, reads), source, output, joined=joined)


def _file_of(samples: str) -> Path:
    """Return the file or folder of samples, of which a script is given as ``file.py:function``."""
    head, colon, _ = samples.rpartition(":")
    return Path(head if colon and head.endswith(".py") else samples)


def _told(args: Namespace, work: Callable[..., T], *given: Any, **more: Any) -> T:
    """Do the work, with progress on standard error meanwhile."""
    with showing(quiet=args.quiet, verbose=args.verbose) as tell:
        return work(*given, progress=tell, **more)
