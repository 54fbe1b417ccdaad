"""Why axes are frozen, in words and counted."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

from onnxprune.graph.groups import Frozen

__all__ = ["plain_reason", "reasons", "worth_telling"]

#: What nobody would expect to be cut, and every convolution has.
_OF_COURSE = "the positions of a"


def plain_reason(reason: str) -> str:
    """Return a reason without the names of nodes and tensors in it."""
    return re.sub(r"\s*'[^']*'", "", reason)


def reasons(frozen: Iterable[Frozen]) -> list[tuple[str, int]]:
    """Return why axes are frozen, names left out, with how often; see `worth_telling` for the order.

    Examples
    --------
    >>> reasons([Frozen(name, 0, f"axis of the graph output '{name}'") for name in "yz"])
    [('axis of the graph output', 2)]
    """
    counted = Counter(plain_reason(f.reason) for f in frozen).most_common()
    return sorted(counted, key=lambda line: worth_telling(*line))


def worth_telling(reason: str, count: int) -> tuple[bool, int]:
    """Return what reasons are sorted by: the most frequent first, and last what nobody would expect to be cut.

    Examples
    --------
    >>> worth_telling("axis of the graph output", 2) < worth_telling("the positions of a convolution (Conv)", 9)
    True
    """
    return reason.startswith(_OF_COURSE), -count
