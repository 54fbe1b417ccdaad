"""What ``--target`` asks for, in the units of the budgets."""

from __future__ import annotations

import math

from onnxprune import registry
from onnxprune.errors import UsageError
from onnxprune.options.target import Target, Written, read_target

__all__ = ["parse_target"]


def parse_target(text: str) -> tuple[Target, ...]:
    """Return the budgets that must hold together.

    Raises
    ------
    UsageError
        If a kind or unit is unknown, or a share isn't above 0 and at most 1.

    Examples
    --------
    >>> parse_target("macs=0.5+bytes=20MB")[1]
    Target(kind='bytes', value=20000000.0, relative=False, text='bytes=20MB')
    """
    return tuple(_target(part) for part in read_target(text))


def _target(part: Written) -> Target:
    if not part.unit:
        return Target(part.kind, part.number, True, part.text)
    units: dict[str, float] = registry.load("onnxprune.budgets", part.kind).UNITS
    if part.unit.lower() not in units:
        known = ", ".join(units)
        raise UsageError(
            f"--target {part.text!r}: {part.kind} knows the units {known} and none, or %, for a share."
        )
    value = part.number * units[part.unit.lower()]
    if not (value > 0 and math.isfinite(value)):
        raise UsageError(f"--target {part.text!r}: a budget must be above 0.")
    return Target(part.kind, value, False, part.text)
