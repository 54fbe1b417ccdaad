"""Values on the command line: numbers, amounts of memory, seconds; what isn't one is refused with what was given."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

from onnxprune.options.kinds import share_of

__all__ = ["ByModel", "Once", "file_of", "number", "seconds", "share", "size", "whole"]


def whole(text: str) -> int:
    """Return a whole number."""
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a whole number, got {text!r}") from None


def number(text: str) -> float:
    """Return a number."""
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number, got {text!r}") from None


def share(text: str) -> float:
    """Return a share, as a number or in percent."""
    try:
        return share_of(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number, or one in percent, got {text!r}") from None


def size(text: str) -> float:
    """Return an amount of memory in bytes.

    Examples
    --------
    >>> size("4GB")
    4000000000.0
    """
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) *([kmgt]?)i?b?", text.strip().lower())
    if not match or float(match[1]) <= 0:
        raise argparse.ArgumentTypeError(f"must be an amount of memory such as 800MB or 4GB, got {text!r}")
    return float(match[1]) * 1000.0 ** " kmgt".index(match[2] or " ")


def seconds(text: str) -> float:
    """Return a time above 0."""
    value = number(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number above 0, got {text!r}")
    return value


_OF_MODEL = re.compile("[^=]+=.")


class _Joined(argparse.Action):
    """An option of which several values make one."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        value: Any,
        flag: str | None = None,
    ) -> None:
        """Keep a value, joined with those before."""
        before = getattr(namespace, self.dest, None)
        setattr(namespace, self.dest, value if before is None else self.joined(before, value))

    def joined(self, before: Any, value: Any) -> Any:
        """Return what the option is after one more value."""
        raise NotImplementedError


class ByModel(_Joined):
    """An option of which the last one counts, as of any; or all of them as a list, where each is MODEL=VALUE."""

    def joined(self, before: Any, value: Any) -> Any:
        """Return the value, or add it to those before."""
        named = [*([before] if isinstance(before, str) else before), value]
        kinds = {_OF_MODEL.match(text) is not None for text in named}
        if len(kinds) > 1:
            raise argparse.ArgumentError(
                self, f"is MODEL=VALUE each time, or never; got {' and '.join(named)}"
            )
        return named if kinds == {True} else value


class Once(_Joined):
    """An option that is refused a second time, where people who know it repeatable would take both to hold."""

    def joined(self, before: Any, value: Any) -> Any:
        """Refuse a second value."""
        raise argparse.ArgumentError(self, f"is given twice, {before} and {value}; give one")


def file_of(samples: str) -> Path:
    """Return the file or folder of samples, of which a script is given as ``file.py:function``."""
    head, colon, _ = samples.rpartition(":")
    return Path(head if colon and head.endswith(".py") else samples)
