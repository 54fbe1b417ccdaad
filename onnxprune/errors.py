"""The errors that onnxprune raises, one exit code each.

::

    OnnxPruneError           1   anything else that onnxprune reports
    ├── UsageError           2   an option or an argument is wrong
    ├── ModelError           3   the input isn't a sound ONNX model
    ├── NothingToPrune       4   nothing in the model can be cut as asked
    │   └── FloorMissed      4   no cut that was tried holds what must hold on samples
    ├── VerificationError    5   the result doesn't compute what it must
    ├── PlanError            6   a plan is malformed or belongs to another model
    ├── OutputError          7   the output can't be written, or would overwrite the input
    ├── CalibrationError     8   the samples don't fit the model
    └── NotFaster            9   the result is sound, but no faster than the input

A message is one sentence: what, where, why, and what to do.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

__all__ = [
    "CalibrationError",
    "FloorMissed",
    "ModelError",
    "NotFaster",
    "NothingToPrune",
    "OnnxPruneError",
    "OutputError",
    "PlanError",
    "UsageError",
    "VerificationError",
    "did_you_mean",
    "many",
    "missing",
]


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return the end of a message on an unknown name: the known one that is most like it, if any is.

    Examples
    --------
    >>> did_you_mean("ration", ["ratio", "align"]), did_you_mean("x", ["ratio"])
    (" Did you mean 'ratio'?", '')
    """
    import difflib  # takes a while, and only who goes wrong needs it

    choices = {
        choice.lstrip("-"): choice for choice in known
    }  # dashes that all options share make none alike
    name = name.lstrip("-")
    close = [choices[c] for c in difflib.get_close_matches(name, choices, n=1)]
    if not close:  # cases, dashes and underscores are often mixed up
        alike = {c.lower().replace("_", "-"): choice for c, choice in choices.items()}
        close = [alike[c] for c in difflib.get_close_matches(name.lower().replace("_", "-"), alike, n=1)]
    return f" Did you mean {close[0]!r}?" if close else ""


def many(count: int, what: str) -> str:
    """Return how many there are of something, as in "1 sample" and "2 samples"."""
    return f"{count} {what}{'' if count == 1 else 's'}"


def missing(error: ModuleNotFoundError) -> str:
    """Return the sentence for a module that isn't installed."""
    package = (error.name or "").partition(".")[0]
    if not package:
        return f"A Python module isn't installed: {error}."
    return f"The Python module {error.name!r} isn't installed; install it, as by 'pip install {package}'."


class OnnxPruneError(Exception):
    """Base of every error that onnxprune raises on purpose."""

    exit_code: ClassVar[int] = 1


class UsageError(OnnxPruneError):
    """An option or an argument is wrong."""

    exit_code = 2


class ModelError(OnnxPruneError):
    """The input isn't a sound ONNX model, or holds what can't be read safely."""

    exit_code = 3


class NothingToPrune(OnnxPruneError):
    """Nothing in the model can be cut as asked."""

    exit_code = 4


class FloorMissed(NothingToPrune):
    """Units could go, but no cut that was tried holds what must hold on samples."""


class VerificationError(OnnxPruneError):
    """The result doesn't compute what the plan promises."""

    exit_code = 5


class PlanError(OnnxPruneError):
    """A plan is malformed, inconsistent, or belongs to another model."""

    exit_code = 6


class OutputError(OnnxPruneError):
    """The output can't be written, or would overwrite the input."""

    exit_code = 7


class CalibrationError(OnnxPruneError):
    """The given samples don't fit the model."""

    exit_code = 8


class NotFaster(OnnxPruneError):
    """The result is sound, but not faster than the input."""

    exit_code = 9
