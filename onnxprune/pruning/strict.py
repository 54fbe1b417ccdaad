"""Values of JSON read strictly: what is unknown, missing, of a wrong type or out of range is named with its place."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from typing import Any, TypeVar

__all__ = [
    "Wrong",
    "distinct",
    "each",
    "flag",
    "indices",
    "integer",
    "matching",
    "no_constant",
    "no_twins",
    "record",
    "share",
    "shown",
    "text",
]

T = TypeVar("T")


class Wrong(Exception):
    """Something in a file is wrong; the text says what and where."""


def no_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object of JSON; a key that is given twice is refused with ValueError."""
    mapping = dict(pairs)
    if len(mapping) < len(pairs):
        name = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the key {name!r} is given twice")
    return mapping


def no_constant(text: str) -> None:
    """Refuse NaN and Infinity with ValueError."""
    raise ValueError(f"{text} isn't a number of JSON")


def record(value: Any, names: tuple[str, ...], where: str) -> dict[str, Any]:
    """Return an object that has these keys and no others."""
    if not isinstance(value, dict):
        raise Wrong(f"{where} must be an object, it is {shown(value)}")
    unknown = [name for name in value if name not in names]
    missing = [name for name in names if name not in value]
    if unknown:
        raise Wrong(f"{where} has an unknown key {unknown[0]!r}; known are {', '.join(names)}")
    if missing:
        raise Wrong(f"{where} lacks the key {missing[0]!r}")
    return value


def each(value: Any, where: str, read: Callable[[Any, str], T]) -> list[T]:
    """Read the entries of a list, each by ``read(entry, where)``."""
    if not isinstance(value, list):
        raise Wrong(f"{where} must be a list, it is {shown(value)}")
    return [read(entry, f"entry {index} of {where}") for index, entry in enumerate(value)]


def indices(value: Any, where: str, size: int | None) -> tuple[int, ...]:
    """Read indices in any order, each once."""
    indices = sorted(each(value, where, lambda entry, at: integer(entry, at, 0)))
    distinct(indices, where)
    if size is not None and indices and indices[-1] >= size:
        raise Wrong(f"{where} holds {indices[-1]}, beyond the last unit {size - 1}")
    return tuple(indices)


def distinct(entries: list[Any], where: str) -> None:
    """Refuse entries that are there twice."""
    seen: set[Any] = set()
    for entry in entries:
        if entry in seen:
            raise Wrong(f"{where} holds {entry!r} twice")
        seen.add(entry)


def integer(value: Any, where: str, least: int | None = None) -> int:
    """Return an integer that is no truth value."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise Wrong(f"{where} must be an integer, it is {shown(value)}")
    if least is not None and value < least:
        raise Wrong(f"{where} must be at least {least}, it is {shown(value)}")
    return value


def share(value: Any, where: str) -> float:
    """Return a number from 0 to below 1."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise Wrong(f"{where} must be a number, it is {shown(value)}")
    if not 0 <= value < 1:
        raise Wrong(f"{where} must be at least 0 and below 1, it is {shown(value)}")
    return float(value)


def flag(value: Any, where: str) -> bool:
    """Return true or false."""
    if not isinstance(value, bool):
        raise Wrong(f"{where} must be true or false, it is {shown(value)}")
    return value


def text(value: Any, where: str) -> str:
    """Return a string."""
    if not isinstance(value, str):
        raise Wrong(f"{where} must be a string, it is {shown(value)}")
    return value


def matching(value: Any, pattern: str, where: str, what: str) -> str:
    """Return a string that a regular expression matches; ``what`` says which those are."""
    if not re.fullmatch(pattern, text(value, where)):
        raise Wrong(f"{where} must be {what}, it is {shown(value)}")
    return str(value)


def shown(value: Any) -> str:
    """Return a value in a message."""
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
