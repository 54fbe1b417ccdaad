"""How an option is declared, and the options that `onnxprune prune` and `onnxprune sparsify` share.

This module imports nothing heavy, since the command line reads it before it knows what is asked.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self, TypedDict, TypeVar, cast

from onnxprune import registry
from onnxprune.errors import UsageError, did_you_mean
from onnxprune.options.kinds import as_kind

__all__ = [
    "NEEDS",
    "STAGES",
    "SharedFields",
    "SharedOptions",
    "bring_to_kinds",
    "default_of",
    "documented",
    "flag",
    "help_of",
    "like",
    "option",
    "patterns",
    "settings_of",
    "specs",
]

#: What an option belongs to, in the order of help and docs: the decision (recorded in the plan), samples, times, the
#: proof, or the file that is written.
STAGES = ("decide", "calibrate", "speed", "verify", "write")

#: What options may need, a property of their class each -> the sentence that refuses one, by its flag, without.
NEEDS = {
    "calibrated": "{0} needs samples; give them with --calib, or leave {0} out.",
    "fitted": "{0} needs samples; give them with --calib, or their moments with --moments, or leave {0} out.",
    "timed": "{0} is for timing, which nothing asks for; add --check-speed or a latency target, or leave {0} out.",
    "verify": "{0} is for the proof, which --no-verify leaves out; leave one of them out.",
    "by_ratio": "{0} is for --ratio; a budget is shared over the whole model in any case, so leave {0} out.",
    "by_budget": "{0} is for --target; a --ratio takes the same share everywhere, so leave {0} out.",
    "whole": "{0} is for --recover distill and finetune, which fit all layers together; add one, or leave {0} out.",
    "searched": "{0} is for --calib or --permute; add one of them, or leave {0} out.",
}


def option(
    default: Any,
    text: str | Mapping[str, str],
    *,
    stage: str,
    metavar: str = "",
    unit: str = "",
    flag: str = "",
    commands: str = "prune",
    needs: str = "",
) -> Any:
    """Return the field of an option.

    Parameters
    ----------
    default : object
        MISSING if the option must be given.
    text : str or mapping
        For ``--help`` and docs/options.md, by `help_of`; command -> text, with that of all others under ``""``.
        ``{onnxprune.criteria}`` stands for the names of that package.
    stage : str
        One of `STAGES`.
    metavar, unit : str
    flag : str
        The command line's name, if it isn't the field's.
    commands : str
        Names of the commands that take it, with spaces between.
    needs : str
        What the option does nothing without, so that it is refused; see `NEEDS`. Several with spaces between.
    """
    texts = {"": text} if isinstance(text, str) else text
    metadata = {
        "help": texts[""],
        "texts": texts,
        "stage": stage,
        "metavar": metavar,
        "unit": unit,
        "flag": flag,
        "commands": tuple(commands.split()),
        "needs": tuple(needs.split()),
    }
    if default is dataclasses.MISSING:
        return field(metadata=metadata)
    if isinstance(default, dict):
        return field(default_factory=dict, metadata=metadata)
    return field(default=default, metadata=metadata)


def like(kind: Any, name: str, commands: str) -> Any:
    """Return the field of an option that another class declares, for other commands."""
    spec = next(spec for spec in dataclasses.fields(kind) if spec.name == name)
    words = {k: spec.metadata[k] for k in ("stage", "metavar", "unit", "flag")}
    return option(default_of(spec), spec.metadata["texts"], commands=commands, **words)


def specs(kind: Any) -> list[dataclasses.Field[Any]]:
    """Return the options of a class in the order in which they are told: by stage, shared ones first."""
    return sorted(dataclasses.fields(kind), key=lambda spec: STAGES.index(spec.metadata["stage"]))


def flag(spec: dataclasses.Field[Any]) -> str:
    """Return the command line's name of an option."""
    return str(spec.metadata["flag"]) or "--" + spec.name.replace("_", "-")


def help_of(spec: dataclasses.Field[Any], command: str = "") -> str:
    """Return an option's text for a command, with the names that there are; it reads files, for who shows it."""
    text = spec.metadata["texts"].get(command, spec.metadata["help"])
    return re.sub(r"\{([\w.]+)\}", lambda name: registry.sentence(name[1]), text)


def bring_to_kinds(options: Any) -> None:
    """Check the kinds of all values, and bring them to their own.

    Raises
    ------
    UsageError
        If one is of another kind.
    """
    for spec in dataclasses.fields(options):
        made = as_kind(flag(spec), str(spec.type), getattr(options, spec.name))
        object.__setattr__(options, spec.name, made)


def patterns(name: str, given: str | Iterable[str]) -> tuple[str, ...]:
    """Return regular expressions as a tuple.

    Raises
    ------
    UsageError
        If one isn't a regular expression.
    """
    expressions = (given,) if isinstance(given, str) else tuple(given)
    for pattern in expressions:
        try:
            re.compile(pattern)
        except (re.error, TypeError) as error:
            raise UsageError(f"{name} {pattern!r} isn't a regular expression: {error}.") from error
    return expressions


def default_of(spec: dataclasses.Field[Any]) -> Any:
    """Return an option's default; MISSING where it must be given."""
    factory = spec.default_factory
    return spec.default if factory is dataclasses.MISSING else factory()


@dataclass(frozen=True, kw_only=True)
class SharedOptions:
    """Samples, and the file that is written.

    Attributes
    ----------
    COMMAND : str
        The command that the options are of; others' are refused.
    """

    COMMAND = "prune"

    calib: Any = option(
        None,
        {
            "": "unlabelled samples to choose by and to refit the layers on: .npz, .npy for one input, folder of "
            ".npy or of test_data_set_N, script.py:function, or 'synthetic'",
            "prune": "unlabelled samples to choose by and to refit the layers on: .npz, .npy for one input, folder of "
            ".npy or of test_data_set_N, script.py:function, or 'synthetic'; for a folder with several models also "
            "MODEL=SAMPLES for each",
        },
        stage="calibrate",
        commands="prune sensitivity sparsify tune calibrate run compress",
        metavar="SAMPLES",
    )
    samples: int | None = option(
        None,
        "with --calib: use at most this many samples (256 synthetic ones)",
        stage="calibrate",
        commands="prune sensitivity sparsify tune calibrate compress",
        metavar="N",
        needs="calibrated",
    )
    calib_provider: str = option(
        "cpu",
        "with --calib: run the samples on this execution provider of onnxruntime, such as cuda",
        stage="calibrate",
        commands="prune sensitivity sparsify tune calibrate compress",
        metavar="NAME",
        needs="calibrated",
    )
    labels: str | None = option(
        None,
        {
            "": "with --calib: the key of true labels in the samples, for the accuracy in the report",
            "calibrate": "with --calib: the key of true labels in the samples, which are left out",
            "tune": "with --calib: the key of true labels in the samples, by which accuracy is judged; with --metric, "
            "which judges then, they are for --recover finetune",
        },
        stage="calibrate",
        commands="prune sparsify tune calibrate compress",
        metavar="KEY",
        needs="calibrated",
    )
    reproducible: bool = option(
        False,
        "leave times out of the report, so that the same command writes the same bytes",
        stage="write",
        commands="prune apply sparsify compress",
    )
    in_place: bool = option(
        False, "allow OUT to be the same file as IN", stage="write", commands="prune apply run sparsify"
    )
    external_data_threshold: int | None = option(
        None,
        "move weights of at least this size to OUT.data; what onnxruntime must find in the model stays",
        stage="write",
        commands="prune apply run sparsify",
        metavar="BYTES",
        unit="bytes",
    )

    def __post_init__(self) -> None:
        """Refuse what needs samples where there are none, and check the range of ``samples``."""
        for spec in self._given():
            if self.COMMAND not in spec.metadata["commands"]:
                raise UsageError(
                    f"{flag(spec)} ({spec.name}) is no option of {self.COMMAND!r}; leave it out."
                )
        self._refuse_idle(["calibrated", "fitted"])
        bring_to_kinds(self)
        if getattr(self, "seed", 0) < 0:
            raise UsageError(f"--seed must be at least 0; got {getattr(self, 'seed', 0)}.")
        if self.samples is not None and self.samples < 1:
            raise UsageError(f"--samples must be at least 1; got {self.samples}.")

    def _given(self) -> list[dataclasses.Field[Any]]:
        """Return the options that aren't at their defaults."""
        return [spec for spec in specs(self) if not _same(getattr(self, spec.name), default_of(spec))]

    def _refuse_idle(self, needs: Iterable[str]) -> None:
        """Refuse options that would do nothing, since what they need, of these needs, isn't asked for."""
        missing = [need for need in needs if not getattr(self, need)]
        for spec in self._given():
            for need in (need for need in spec.metadata["needs"] if need in missing):
                raise UsageError(NEEDS[need].format(flag(spec)))

    @property
    def calibrated(self) -> bool:
        """Whether there are samples."""
        return self.calib is not None

    @property
    def fitted(self) -> bool:
        """Whether there are samples, or moments of some."""
        return self.calib is not None or getattr(self, "moments", None) is not None

    def without_samples(self, **more: Any) -> Self:
        """Return the same options without samples, and without those that need some; ``more`` are replaced, too."""
        plain = {spec.name: default_of(spec) for spec in specs(self) if spec.metadata["needs"]}
        without = {name: None for name in ("calib", "moments") if hasattr(self, name)}
        return dataclasses.replace(self, **{**plain, **without, **more})

    def to_json(self) -> dict[str, Any]:
        """Return the options as JSON values; given arrays only as a note that there were some."""
        values: dict[str, Any] = {}
        for spec in specs(self):
            value = getattr(self, spec.name)
            if str(spec.type) == "Any":
                value = value if isinstance(value, (str, type(None))) else "given"
            elif isinstance(value, tuple):
                value = list(value)
            elif isinstance(value, Mapping):
                value = {name: list(shape) for name, shape in value.items()}
            values[spec.name] = value
        return values


def _same(value: Any, default: Any) -> bool:
    return value is default or (type(value) is type(default) and bool(value == default))


class SharedFields(TypedDict, total=False):
    """The fields of `SharedOptions`, as keyword arguments."""

    calib: Any
    samples: int | None
    calib_provider: str
    labels: str | None
    reproducible: bool
    in_place: bool
    external_data_threshold: int | None


AnyOptions = TypeVar("AnyOptions")


class _Doc:
    """The docstring of a class of options: its own, and a line for each option; made when it is asked for."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __get__(self, instance: object, owner: Any) -> str:
        lines = [inspect.cleandoc(self.text), "", "Attributes", "----------"]
        for spec in specs(owner):
            kind = str(spec.type).replace("Share", "float")
            unit = f" [{spec.metadata['unit']}]" if spec.metadata["unit"] else ""
            default = default_of(spec)
            least = ", required" if default is dataclasses.MISSING else f", default {default!r}"
            lines += [
                f"{spec.name} : {kind}{least}",
                f"    ``{flag(spec)}``: {help_of(spec, getattr(owner, 'COMMAND', 'fleet'))}{unit}",
            ]
        return "\n".join(lines)


def documented(kind: type[AnyOptions]) -> type[AnyOptions]:
    """Give a class of options a docstring that explains each option, for ``help``."""
    kind.__doc__ = _Doc(kind.__doc__ or "")  # type: ignore[assignment]
    return kind


def settings_of(kind: type[AnyOptions], options: AnyOptions | None, fields: Mapping[str, Any]) -> AnyOptions:
    """Return options, or defaults, with these fields replaced.

    Raises
    ------
    UsageError
        If there is no such field, or one that must be given isn't.
    """
    unknown = [name for name in fields if name not in kind.__dataclass_fields__]  # type: ignore[attr-defined]
    if unknown:
        hint = did_you_mean(unknown[0], kind.__dataclass_fields__)  # type: ignore[attr-defined]
        raise UsageError(f"There is no option {unknown[0]!r}; see {_where(kind)}.{hint}")
    if options is not None and not isinstance(options, kind):
        raise UsageError(
            f"options must be onnxprune's {kind.__name__}; got {type(options).__name__} {options!r:.60}."
        )
    try:
        if options is None:
            return kind(**fields)
        changed: AnyOptions = dataclasses.replace(cast(Any, options), **fields)
        return changed
    except TypeError as error:
        raise UsageError(f"{str(error).partition(') ')[2] or error}; see {_where(kind)}.") from error


def _where(kind: type[Any]) -> str:
    command = kind.__name__.removesuffix("Options").lower().replace("sparse", "sparsify")
    return f"'onnxprune {command} --help'" if command else "help(onnxprune.Options)"
