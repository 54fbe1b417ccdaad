"""Why axes are frozen, in words and counted."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

from onnxprune.graph.groups import Frozen

__all__ = ["reasons", "plain_reason"]


def plain_reason(reason: str) -> str:
    """Return a reason without the names of nodes and tensors in it."""
    return re.sub(r"\s*'[^']*'", "", reason)


def reasons(frozen: Iterable[Frozen]) -> list[tuple[str, int]]:
    """Return why axes are frozen, names left out, with how often; the most frequent first.

    Examples
    --------
    >>> reasons([Frozen(name, 0, f"axis of the graph output '{name}'") for name in "yz"])
    [('axis of the graph output', 2)]
    """
    return Counter(plain_reason(f.reason) for f in frozen).most_common()
