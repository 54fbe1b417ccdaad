"""What ``--target`` says: ``macs=0.5``, ``bytes=20MB``, several joined by ``+``, a family of values by commas."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from onnxprune import registry
from onnxprune.errors import UsageError, did_you_mean
from onnxprune.options.kinds import share_of

__all__ = ["WITHIN", "Target", "Written", "checked", "family_of", "kinds", "read_target"]

#: Times differ from one measurement to the next, so a latency within this much of its budget holds.
WITHIN = 1.05
_VALUE = re.compile(r"([0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?)\s*([A-Za-z%]*)")
_LIKE = "such as macs=0.5, params=3M, bytes=20MB, memory=0.7 or latency=4ms"


class Written(NamedTuple):
    """One budget as it is written; what its unit is worth, the file of its kind knows.

    Attributes
    ----------
    kind : str
        The name of a file in onnxprune/budgets.
    number : float
    unit : str
        Empty for a share.
    text : str
        As it was given.
    """

    kind: str
    number: float
    unit: str
    text: str


@dataclass(frozen=True)
class Target:
    """One budget.

    Attributes
    ----------
    kind : str
        The name of a file in onnxprune/budgets.
    value : float
        A share of the original, or an amount in the kind's unit: MACs, parameters, bytes, seconds.
    relative : bool
        Whether it is a share.
    text : str
        As it was given.
    """

    kind: str
    value: float
    relative: bool
    text: str


def kinds() -> list[str]:
    """Return the kinds of budgets that there are."""
    return [name for name in registry.names("onnxprune.budgets") if name != "ratio"]


def read_target(text: str) -> tuple[Written, ...]:
    """Split what must hold together, and check its form.

    Raises
    ------
    UsageError
        If a kind is unknown or given twice, or a share isn't above 0 and at most 1.

    Examples
    --------
    >>> read_target("macs=0.5+bytes=20MB")[1]
    Written(kind='bytes', number=20.0, unit='MB', text='bytes=20MB')
    """
    parts = tuple(_one(part.strip()) for part in text.split("+"))
    if len({part.kind for part in parts}) < len(parts):
        raise UsageError(f"--target {text!r} gives one kind of budget twice; give the tighter one.")
    return parts


def checked(given: str | Iterable[str]) -> tuple[str, ...]:
    """Return what was given, one text or several, as texts.

    Raises
    ------
    UsageError
        If one of them isn't of the form that `read_target` and `family_of` know.
    """
    texts = (given,) if isinstance(given, str) else tuple(given)
    for text in family_of(texts) if texts else ():
        read_target(text)
    return texts


def family_of(texts: Iterable[str]) -> tuple[str, ...]:
    """Return the budgets of each model that is asked for.

    Parameters
    ----------
    texts : iterable of str
        All of them must hold. The values of one of them may be several, separated by commas.

    Returns
    -------
    tuple of str
        One text for each model, for `read_target`.

    Examples
    --------
    >>> family_of(["macs=0.7,0.5", "bytes=20MB"])
    ('macs=0.7+bytes=20MB', 'macs=0.5+bytes=20MB')
    """
    parts = [part.strip() for text in texts for part in text.split("+")]
    lists = [_values(part) for part in parts]
    several = [n for n, values in enumerate(lists) if len(values) > 1]
    if len(several) > 1:
        raise UsageError(
            f"--target {parts[several[1]]!r} and {parts[several[0]]!r} both list values; one budget may."
        )
    count = len(lists[several[0]]) if several else 1
    targets = tuple("+".join(values[n if len(values) > 1 else 0] for values in lists) for n in range(count))
    if len(set(targets)) < len(targets):
        raise UsageError(f"--target {parts[several[0]]!r} lists a value twice.")
    return targets


def _values(part: str) -> list[str]:
    kind, equals, values = part.partition("=")
    if "=" in values and values.rpartition("=")[0].rpartition(",")[2].strip() in kinds():
        first, _, rest = part.partition(",")
        raise UsageError(
            f"--target {part!r}: a comma parts several values of one budget; several budgets are joined by a plus, "
            f"such as {first.strip()}+{rest.strip()}."
        )
    return [f"{kind.strip()}{equals}{value.strip()}" for value in values.split(",")]


def _one(part: str) -> Written:
    kind, _, written = part.partition("=")
    match = _VALUE.fullmatch(written.strip())
    if kind not in kinds() or match is None:
        hint = "" if kind in kinds() else did_you_mean(kind, kinds())
        if not written and re.fullmatch(r"[0-9.]+ ?%?", kind):
            hint = f" Did you mean 'macs={kind}'?"
        raise UsageError(
            f"--target must look like macs=0.5, a budget and a value, {_LIKE}; got {part!r}.{hint}"
        )
    number, unit = float(match[1]), match[2]
    if unit not in ("", "%"):
        return Written(kind, number, unit, part)
    share = share_of(written)
    if not 0 < share <= 1:
        hint = "" if unit else f"; an amount needs a unit, {_LIKE}"
        raise UsageError(f"--target {part!r}: a share must be above 0 and at most 1{hint}.")
    return Written(kind, share, "", part)
