"""Passes as text: ``resolve_shapes,prune{ratio=0.5},shrink``.

Grammar::

    list    = pass , { "," , pass } ;
    pass    = name , [ "{" , [ option , { ( " " | "," ) , option } ] , "}" ] ;
    option  = name , "=" , value ;

A pass is a module in ``passes/`` with one function ``run(model, **options)`` that returns a `Model`, or a `Passed`
with a report beside it; its options are that
function's keyword arguments, and their annotations say how a value is read (int, float, bool, str, or a tuple
of str, separated by "|").
"""

from __future__ import annotations

import contextlib
import inspect
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, TextIO

from onnxprune import registry
from onnxprune.errors import OnnxPruneError, UsageError, did_you_mean, missing
from onnxprune.files.reading import rely
from onnxprune.model import Model
from onnxprune.options.kinds import Share, share_of
from onnxprune.report.printing import printed_on
from onnxprune.report.record import Record

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
_VALUE = re.compile(r'"[^"]*"|[^\s,{}]+')


@dataclass(frozen=True)
class PassCall:
    """One pass of a list, with its options as text."""

    name: str
    options: dict[str, str] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """The pass as it may be written."""
        inside = " ".join(f"{name}={value}" for name, value in self.options.items())
        return f"{self.name}{{{inside}}}" if inside else self.name


def parse(text: str) -> list[PassCall]:
    """Read a list of passes.

    Parameters
    ----------
    text : str

    Raises
    ------
    UsageError
        With the place where the text can't be read.

    Examples
    --------
    >>> parse("drop_dead, prune{ratio=0.5 align=none}")
    [PassCall(name='drop_dead', options={}), PassCall(name='prune', options={'ratio': '0.5', 'align': 'none'})]
    """
    reader = _Reader(text)
    steps = [reader.step()]
    while not reader.done():
        reader.expect(",")
        steps.append(reader.step())
    return steps


class _Reader:
    def __init__(self, text: str) -> None:
        self.text, self.at = text, 0

    def skip(self) -> None:
        while self.at < len(self.text) and self.text[self.at].isspace():
            self.at += 1

    def done(self) -> bool:
        self.skip()
        return self.at == len(self.text)

    def fail(self, wanted: str) -> UsageError:
        shown = self.text[: self.at] + " >>> " + self.text[self.at :]
        return UsageError(f"--passes wants {wanted} at character {self.at + 1}: {shown.strip()}")

    def match(self, pattern: re.Pattern[str], wanted: str) -> str:
        self.skip()
        matched = pattern.match(self.text, self.at)
        if not matched:
            raise self.fail(wanted)
        self.at = matched.end()
        return matched.group()

    def sees(self, mark: str) -> bool:
        self.skip()
        return self.text.startswith(mark, self.at)

    def expect(self, mark: str) -> None:
        if not self.sees(mark):
            raise self.fail(f"'{mark}'")
        self.at += len(mark)

    def step(self) -> PassCall:
        name = self.match(_NAME, "the name of a pass")
        options: dict[str, str] = {}
        if self.sees("{"):
            self.expect("{")
            while not self.sees("}"):
                key = self.match(_NAME, "an option or '}'").replace("-", "_")
                self.expect("=")
                if key in options:
                    raise UsageError(f"--passes gives {key!r} of {name!r} twice.")
                options[key] = self.match(_VALUE, f"a value of {key!r}").strip('"')
                if self.sees(","):
                    self.expect(",")
            self.expect("}")
        return PassCall(name, options)


@dataclass(frozen=True)
class Passed:
    """What a pass may return instead of a model: the model, and what it has to tell."""

    model: Model
    report: Record


@dataclass(kw_only=True, repr=False)
class RunReport(Record):
    """What passes did.

    Attributes
    ----------
    passes : list of tuple
        Each pass as text, and its report if it gave one.
    """

    passes: list[tuple[str, Record | None]] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        passes = [{"pass": text, "report": report and report.to_json()} for text, report in self.passes]
        return {"format": 1, "passes": passes, "notes": self.notes, **self.run_facts()}

    def page(self) -> str:
        """Return the page of the one pass that reports.

        Raises
        ------
        UsageError
            If none does, or several.
        """
        reports = [report for _, report in self.passes if report is not None]
        if len(reports) != 1:
            raise UsageError(_ONE_PAGE.format(len(reports)))
        (report,) = reports
        return replace(report, files=self.files, command=self.command).page()

    def brief(self) -> str:
        """Return the passes, in a few words."""
        return self.named(", ".join(text for text, _ in self.passes) or "no passes")

    def show(self, stream: TextIO | None = None) -> None:
        """Print what passes told, each under its name."""
        stream = printed_on(stream)
        for text, report in self.passes:
            if report is not None:
                stream.write(f"{text}:\n")
                report.show(stream)


_ONE_PAGE = (
    "--report writes a page of one pass that reports, such as prune, and there are {} in the list; give it a name that "
    "ends in .json."
)


def reporting(steps: Sequence[PassCall]) -> int:
    """Return how many passes of a list say that they give a report."""
    functions = (_function(step) for step in steps)
    return sum(typing.get_type_hints(one).get("return") is Passed for one in functions)


def check_page(steps: Sequence[PassCall]) -> None:
    """Refuse a page that couldn't be written in the end.

    Raises
    ------
    UsageError
        If not just one pass reports.
    """
    if reporting(steps) != 1:
        raise UsageError(_ONE_PAGE.format(reporting(steps)))


def apply(
    model: Model,
    steps: Sequence[PassCall],
    progress: Callable[[str], None] | None = None,
    *,
    input_shapes: Mapping[str, tuple[int, ...]] | None = None,
    calib: Any = None,
    each: Callable[[str, Record | None], None] | None = None,
) -> Model:
    """Run passes one after the other.

    Parameters
    ----------
    model : Model
    steps : sequence of PassCall
    progress : callable, optional
        Is told the name of each pass.
    input_shapes : mapping, optional
        Input -> shape, for the passes that take some and don't have their own.
    calib : optional
        Samples, likewise.
    each : callable, optional
        Is given each pass as text when it is done, and its report if it gave one.

    Raises
    ------
    UsageError
        If there is no pass of a name, it has no such option, or none takes sizes or samples that are given; before
        any pass has run.
    """
    rely(model.files)
    given = {"input_shapes": input_shapes or None, "calib": calib}
    given = {name: value for name, value in given.items() if value is not None}
    ready = [(step, *_bind(step, given)) for step in steps]
    for name, flag in (("input_shapes", "--input-shape"), ("calib", "--calib")):
        if name in given and not any(name in options for _, _, options in ready):
            names = ", ".join(step.name for step in steps)
            raise UsageError(f"{flag} is of no use to these passes ({names}); leave it out.")
    for step, function, options in ready:
        if progress:
            progress(f"pass {step.name}")
        with _blamed(step):
            result = function(model, **options)
        model = result.model if isinstance(result, Passed) else result
        if not isinstance(model, Model):
            raise OnnxPruneError(
                f"The pass {step.name!r} returned {type(model).__name__}, and must return a Model or a Passed; mend "
                "its function run."
            )
        if each:
            each(step.text, result.report if isinstance(result, Passed) else None)
    return model


@contextlib.contextmanager
def _blamed(step: PassCall) -> Iterator[None]:
    """Name the pass that fails: it may be one of the user's own.

    Raises
    ------
    OnnxPruneError
        For whatever isn't raised on purpose, but what a step of the machine means, such as too little memory.
    """
    try:
        yield
    except (OnnxPruneError, MemoryError, BrokenPipeError):
        raise
    except ModuleNotFoundError as error:
        raise OnnxPruneError(f"The pass {step.name!r} needs what isn't there. {missing(error)}") from error
    except Exception as error:
        raise OnnxPruneError(
            f"The pass {step.name!r} fails with {type(error).__name__}: {str(error).rstrip('.')}; mend it where it is "
            "yours, and report it with the output of -v where it is onnxprune's."
        ) from error


def _function(step: PassCall) -> Callable[..., Model | Passed]:
    with _blamed(step):
        leaf = registry.load("onnxprune.passes", step.name)
    function: Callable[..., Model | Passed] | None = getattr(leaf, "run", None)
    if function is None:
        raise OnnxPruneError(f"The pass {step.name!r} has no function run(model, **options).")
    return function


def _bind(
    step: PassCall, given: Mapping[str, Any] = MappingProxyType({})
) -> tuple[Callable[..., Model | Passed], dict[str, Any]]:
    function = _function(step)
    hints = typing.get_type_hints(function, include_extras=True)
    parameters = list(inspect.signature(function).parameters.values())[1:]
    known = dict.fromkeys(p.name for p in parameters if p.kind is not p.VAR_KEYWORD)
    for parameter in parameters:
        if parameter.kind is parameter.VAR_KEYWORD:  # **options: Unpack[a TypedDict]
            more = typing.get_type_hints(typing.get_args(hints[parameter.name])[0], include_extras=True)
            known, hints = known | dict.fromkeys(more), hints | more
    options: dict[str, Any] = {}
    for key, text in step.options.items():
        if key not in known:
            hint = did_you_mean(key, known)
            raise UsageError(
                f"The pass {step.name!r} has no option {key!r}; it has {', '.join(known) or 'none'}.{hint}"
            )
        options[key] = _read(step.name, key, text, hints.get(key, str))
    for name in given:
        if name in known:
            options.setdefault(name, given[name])
    needed = [p.name for p in parameters if p.kind is not p.VAR_KEYWORD and p.default is p.empty]
    missing = [name for name in needed if name not in options]
    if missing:
        raise UsageError(
            f"The pass {step.name!r} needs {missing[0]!r}, as in {step.name}{{{missing[0]}=...}}."
        )
    return function, options


def _read(name: str, key: str, text: str, kind: Any) -> Any:
    """Return an option's value as its annotation says."""
    kinds = typing.get_args(kind) if typing.get_origin(kind) in (typing.Union, types.UnionType) else (kind,)
    if type(None) in kinds and text.lower() == "none":
        return None
    if Any in kinds:  # samples, inputs: as text they are files
        return text
    if any(typing.get_origin(k) is tuple for k in kinds):
        return tuple(text.split("|"))
    for one, read in _READERS.items():
        if one not in kinds:
            continue
        try:
            return read(text)
        except (ValueError, KeyError):
            continue
    names: dict[Any, str] = {type(None): "none", Share: "float or a share in percent"}
    wanted = " or ".join(names.get(k, getattr(k, "__name__", str(k))) for k in kinds)
    raise UsageError(f"The option {key!r} of the pass {name!r} must be {wanted}; got {text!r}.")


_BOOLS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
_READERS: dict[Any, Callable[[str], Any]] = {
    bool: lambda text: _BOOLS[text.lower()], int: int, Share: share_of, float: float, str: str
}  # fmt: skip
