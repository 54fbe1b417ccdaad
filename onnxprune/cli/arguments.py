"""What the command line accepts; options come from `onnxprune.options.pruning`."""

from __future__ import annotations

import argparse
import dataclasses
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from onnxprune.cli import examples, values
from onnxprune.cli.parser import CommandParser, Help, TopParser, paragraphs
from onnxprune.cli.small import FILES, Version, add_small
from onnxprune.errors import UsageError
from onnxprune.options.declare import flag, help_of, specs
from onnxprune.options.pruning import Options, parse_shape

__all__ = ["build", "options_from"]

Given = TypeVar("Given")


@dataclasses.dataclass(frozen=True)
class _Text:
    """An option's text, made when help is shown: the names in it are those of files."""

    spec: dataclasses.Field[Any]
    command: str

    def __str__(self) -> str:
        return help_of(self.spec, self.command)


def build(whole: bool = True) -> TopParser:
    """Return the parser of the command line: whole, or with the options of what is read, which takes less time."""
    top = TopParser(
        prog="onnxprune",
        formatter_class=Help,
        epilog=examples.CODES,
        description="Make an ONNX model smaller and faster by cutting channels, exactly: the result\n"
        "computes what the original computes with those channels masked. No framework, no training code.",
    )
    top.add_argument("--version", action=Version, nargs=0, help="print the version")
    commands = top.add_subparsers(
        dest="command", required=True, metavar="COMMAND", parser_class=CommandParser
    )
    top.commands = commands.choices  # type: ignore[assignment]  # what follows is added to it
    for add in (
        _prune, _inspect, _explain, _sensitivity, _calibrate, _merge, _profile, _plan, _apply, _verify, _run,
        _sparsify, _compress, _decompress, _tune, _fleet,
    ):  # fmt: skip
        top.later(add(commands))
    add_small(top, commands)
    if whole:
        top.fill()
    return top


def _command(commands: Any, name: str, text: str, epilog: str = "") -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=text,
        description=text[0].upper() + text[1:] + ".",
        epilog=paragraphs(f"{epilog}\n{examples.CODES}"),
        formatter_class=Help,
        allow_abbrev=False,
    )
    level = parser.add_mutually_exclusive_group()
    level.add_argument("-v", "--verbose", action="store_true", help="say each step, and tracebacks")
    level.add_argument("-q", "--quiet", action="store_true", help="print errors only")
    parser.add_argument(
        "--max-memory",
        type=values.size,
        metavar="SIZE",
        help="stop when more memory than this is needed, such as 4GB (default grows with the model; Linux)",
    )
    parser.add_argument(
        "--max-seconds",
        type=values.seconds,
        metavar="S",
        help="stop when a single run of the model, or any other step in a library, takes longer (default grows with "
        "the model; Linux)",
    )
    return parser


def _add_options(parser: argparse.ArgumentParser, command: str, kind: Any = Options) -> None:
    """Add the options that say that this command takes them."""
    for spec in specs(kind):
        if command in spec.metadata["commands"]:
            _add_option(parser, spec, command)


def _add_option(parser: argparse.ArgumentParser, spec: dataclasses.Field[Any], command: str) -> None:
    name, kind = flag(spec), str(spec.type)
    shared: dict[str, Any] = {"dest": spec.name, "default": argparse.SUPPRESS}
    more = f" [{spec.metadata['unit']}]" if spec.metadata["unit"] else ""
    if kind == "bool":
        action = parser.add_argument(name, action="store_false" if spec.default else "store_true", **shared)
        more = ""
    elif kind in ("Texts", "Shapes"):
        action = parser.add_argument(name, action="append", metavar=spec.metadata["metavar"], **shared)
    elif spec.name == "calib":
        action = parser.add_argument(name, action=values.ByModel, metavar="SAMPLES", **shared)
    elif spec.name == "target":
        action = parser.add_argument(name, action=values.Once, metavar=spec.metadata["metavar"], **shared)
    else:
        missing = spec.default is dataclasses.MISSING
        more += "" if missing or spec.default is None else f" (default {spec.default})"
        parsers = {"float": values.number, "Share": values.share, "int": values.whole}
        parse: Callable[[str], Any] = parsers.get(kind.removesuffix(" | None"), str)
        action = parser.add_argument(
            name, required=missing, type=parse, metavar=spec.metadata["metavar"], **shared
        )
    if re.search(r"FILE|SAMPLES|\.\w", spec.metadata["metavar"]):
        vars(action)["complete"] = FILES
    vars(action)["text"] = _Text(spec, command)  # argparse puts an action's attributes into its help
    action.help = "%(text)s" + more.replace("%", "%%")


def options_from(args: argparse.Namespace, kind: type[Given] = Options, **more: Any) -> Given:  # type: ignore[assignment]
    """Return the options that were given on the command line.

    Parameters
    ----------
    args : Namespace
    kind : dataclass
        Which options.
    more : dict
        Values of options that the command doesn't have.
    """
    names = [spec.name for spec in dataclasses.fields(kind)]  # type: ignore[arg-type]
    given = {name: getattr(args, name) for name in names if hasattr(args, name)}
    if "input_shapes" in given:
        given["input_shapes"] = shapes_from(given["input_shapes"])
    return kind(**{**given, **more})


def shapes_from(texts: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Return input shapes from texts like ``name:1,3,224,224``.

    Raises
    ------
    UsageError
        If an input is given two shapes.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for text in texts:
        name, shape = parse_shape(text)
        if shapes.setdefault(name, shape) != shape:
            raise UsageError(f"--input-shape gives the input {name!r} two shapes.")
    return shapes


def _files(parser: argparse.ArgumentParser, *files: tuple[str, str]) -> None:
    for name, text in files:
        vars(parser.add_argument(name, metavar=name.upper(), help=text))["complete"] = FILES


def _json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")


def _prune(commands: Any) -> Iterator[None]:
    parser = _command(commands, "prune", "cut channels, verify, and write the smaller model", examples.PRUNE)
    yield
    _files(parser, ("in", "the model"), ("out", "where the pruned model goes"))
    _add_options(parser, "prune")
    parser.add_argument(
        "--report",
        metavar="R.html|.json|.md|.csv",
        help="write the report: what was cut, what is frozen and why; a page to look at if it ends in .html",
    )
    parser.add_argument("--plan", metavar="P.json", help="write the plan, for 'apply' and 'verify'")
    _json(parser)


def _inspect(commands: Any) -> Iterator[None]:
    parser = _command(
        commands, "inspect", "show what can be cut, what is frozen and why; writes nothing", examples.INSPECT
    )
    yield
    parser.add_argument("in", metavar="IN", nargs="?", help="the model")
    _add_options(parser, "inspect")
    parser.add_argument("--ops", action="store_true", help="print the op table; needs no model")
    parser.add_argument("--html", metavar="OUT.html", help="write it as a page to look at, too")
    parser.add_argument(
        "--sparsity",
        action="store_true",
        help="show the zeros of each weight, and which patterns hold along which axis",
    )
    _json(parser)


def _explain(commands: Any) -> Iterator[None]:
    parser = _command(
        commands,
        "explain",
        "say what is cut together with a tensor's axis, or what freezes it",
        examples.EXPLAIN,
    )
    yield
    _files(parser, ("in", "the model"))
    parser.add_argument("tensor", metavar="TENSOR", help="a tensor, tensor:axis, or a node for its output")
    parser.add_argument("axis", metavar="AXIS", nargs="?", type=values.whole, help="all of them otherwise")
    _add_options(parser, "explain")
    _json(parser)


def _sensitivity(commands: Any) -> Iterator[None]:
    parser = _command(
        commands,
        "sensitivity",
        "measure what each group's channels are worth, on samples",
        examples.SENSITIVITY,
    )
    yield
    _files(parser, ("in", "the model"))
    _add_options(parser, "sensitivity")
    _json(parser)


def _calibrate(commands: Any) -> Iterator[None]:
    parser = _command(
        commands,
        "calibrate",
        "write the moments of samples, for 'prune --moments'; on many machines, a share each",
        examples.CALIBRATE,
    )
    yield
    from onnxprune.options.calibration import CalibrateOptions

    _files(parser, ("in", "the model"))
    parser.add_argument("-o", "--output", metavar="M.npz", required=True, help="where the moments go")
    _add_options(parser, "calibrate", kind=CalibrateOptions)
    _json(parser)


def _merge(commands: Any) -> Iterator[None]:
    parser = _command(
        commands, "merge", "put the moments of all shares of the samples together", examples.CALIBRATE
    )
    yield
    parser.add_argument("parts", metavar="PART.npz", nargs="+", help="what 'calibrate' wrote for each shard")
    parser.add_argument("-o", "--output", metavar="M.npz", required=True, help="where the whole goes")
    _json(parser)


def _profile(commands: Any) -> Iterator[None]:
    parser = _command(
        commands, "profile", "measure where the time goes, and what no cut can reach", examples.PROFILE
    )
    yield
    _files(parser, ("in", "the model"))
    _add_options(parser, "profile")
    _json(parser)


def _plan(commands: Any) -> Iterator[None]:
    parser = _command(
        commands, "plan", "decide what to cut, and write it down; writes no model", examples.PLAN
    )
    yield
    _files(parser, ("in", "the model"))
    parser.add_argument(
        "-o", "--output", metavar="P.json", required=True, help="where the plan goes; - is standard output"
    )
    _add_options(parser, "plan")


def _apply(commands: Any) -> Iterator[None]:
    parser = _command(
        commands, "apply", "cut what a plan says, verify, and write the smaller model", examples.PLAN
    )
    yield
    _files(
        parser,
        ("in", "the model that the plan was made for"),
        ("plan", "the plan"),
        ("out", "where the result goes"),
    )
    _add_options(parser, "apply")
    parser.add_argument(
        "--report",
        metavar="R.html|.json|.md|.csv",
        help="write the report; a page to look at if it ends in .html",
    )
    _json(parser)


def _verify(commands: Any) -> Iterator[None]:
    parser = _command(commands, "verify", "prove that a pruned model equals the masked original, by its plan")
    yield
    _files(parser, ("original", "the model before"), ("pruned", "the model after"))
    parser.add_argument("--plan", metavar="P.json", required=True, help="the plan that says what was cut")
    _add_options(parser, "verify")
    _json(parser)


def _run(commands: Any) -> Iterator[None]:
    known = examples.RUN.replace("PASSES", _known_passes())
    parser = _command(commands, "run", "run passes by name, one after the other", known)
    yield
    _files(parser, ("in", "the model"), ("out", "where the result goes"))
    chain = parser.add_mutually_exclusive_group(required=True)
    chain.add_argument("--passes", metavar="LIST", help='such as "resolve_shapes,prune{ratio=0.5},shrink"')
    chain.add_argument("--recipe", metavar="R.toml", help="a file of passes, as recipes/edge-cnn.toml")
    _add_options(parser, "run")
    parser.add_argument(
        "--report",
        metavar="R.html|.json|.md|.csv",
        help="write what the passes found: as JSON, or as the page of the one pass that has one, such as prune",
    )


def _sparsify(commands: Any) -> Iterator[None]:
    parser = _command(
        commands, "sparsify", "put zeros into weights in a pattern, such as 2:4", examples.SPARSIFY
    )
    yield
    from onnxprune.options.sparsity import SparseOptions

    _files(parser, ("in", "the model"), ("out", "where the result goes"))
    _add_options(parser, "sparsify", kind=SparseOptions)
    parser.add_argument(
        "--report",
        metavar="R.html|.json|.md|.csv",
        help="write the report: zeros and gains of each weight; a page to look at if it ends in .html",
    )
    _json(parser)


def _compress(commands: Any) -> Iterator[None]:
    parser = _command(
        commands, "compress", "make the file small: weights on coarse grids, packed or not", examples.COMPRESS
    )
    yield
    from onnxprune.options.compression import CompressOptions

    _files(parser, ("in", "the model"), ("out", "where the result goes; packed if it ends in .zst"))
    _add_options(parser, "compress", kind=CompressOptions)
    parser.add_argument(
        "--report",
        metavar="R.html|.json|.md|.csv",
        help="write the report: zeros, bits, bytes and loss of each weight; a page to look at if it ends in .html",
    )
    _json(parser)


def _decompress(commands: Any) -> Iterator[None]:
    parser = _command(
        commands, "decompress", "unpack what 'compress' has packed, and check it", examples.DECOMPRESS
    )
    yield
    _files(parser, ("in", "the packed file"), ("out", "where the model goes"))
    _json(parser)


def _tune(commands: Any) -> Iterator[None]:
    parser = _command(
        commands,
        "tune",
        "find the fastest or smallest model that loses no more than you allow",
        examples.TUNE,
    )
    yield
    from onnxprune.options.tuning import TuneOptions

    _files(parser, ("in", "the model"), ("out", "where the best model goes"))
    _add_options(parser, "tune", kind=TuneOptions)
    parser.add_argument(
        "--report",
        metavar="R.html|R.json",
        help="write the report: all members, measured; a page with the curve if it ends in .html",
    )
    _json(parser)


def _fleet(commands: Any) -> Iterator[None]:
    parser = _command(
        commands, "fleet", "make many models, resumable, with one table of what came of each", examples.FLEET
    )
    yield
    from onnxprune.options.fleet import FleetOptions

    _files(parser, ("in", "a spec (.toml) or a folder of models"), ("out", "the folder of all results"))
    _add_options(parser, "fleet", kind=FleetOptions)
    _json(parser)


def _known_passes() -> str:
    from onnxprune import registry

    try:
        return ", ".join(registry.names("onnxprune.passes")) or "none"
    except UsageError:
        return "none"
