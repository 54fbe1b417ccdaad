"""Places of outputs that onnxruntime gives other values in each run of the same model on the same input.

Some kernels leave a part of what they return as the memory was (GroupQueryAttention behind the last position of a
cache). No cut can change that, and nothing can be said of such places. They are looked for where law 1 would fail:
the masked original runs again, in other orders of the inputs and after others, so that it finds other memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.proof.compare import compare
from onnxprune.proof.interior import Case
from onnxprune.runtime.session import Session

__all__ = ["Places", "left_out", "unrepeatable"]

#: Output -> which of its elements differ between runs.
Places = Mapping[str, NDArray[np.bool_]]

#: Each input is run again until this many rounds have shown nothing new, and not more often than that.
QUIET, ROUNDS = 2, 12


def unrepeatable(session: Session, cases: Sequence[Case], tolerance: float) -> list[Places]:
    """Find the elements of outputs that aren't the same in each run.

    Parameters
    ----------
    session : Session
        Of the masked original.
    cases : sequence of Case
    tolerance : float
        An output in which no element moves by more than this share of the largest is only rounded otherwise.

    Returns
    -------
    list of dict
        For each case, the outputs in which there are such elements, by whole rows: along the last axis, all beside
        one that wasn't bitwise the same. An output of which nothing would be left isn't there: it can't be proved.
    """
    rng = np.random.default_rng(0)
    changed: list[dict[str, NDArray[np.bool_]]] = [{} for _ in cases]
    loose: set[str] = set()
    quiet, rounds = 0, 0
    while quiet < QUIET and rounds < ROUNDS:
        before, rounds = _count(_rows(changed, loose)), rounds + 1
        for number in rng.permutation(len(cases)):
            case = cases[number]
            session.run({n: -a if _floats(a) else a for n, a in case.feeds.items()})
            for name, again in session.run(case.feeds).items():
                was = case.reference[name]
                if not _floats(was) or not _floats(again) or was.shape != again.shape:
                    continue
                differs = ~((was == again) | (np.isnan(was) & np.isnan(again)))
                if differs.any():
                    changed[number][name] = differs | changed[number].get(name, False)
                    if not compare(was, again).error <= tolerance:
                        loose.add(name)
        quiet = quiet + 1 if _count(_rows(changed, loose)) == before else 0
    rows = _rows(changed, loose)
    noise = {n for r in rows for n, w in r.items() if w.all()}
    return [{n: w for n, w in r.items() if n not in noise} for r in rows]


def _rows(changed: Sequence[Places], loose: set[str]) -> list[dict[str, NDArray[np.bool_]]]:
    """Return the rows of places in some outputs: rounding is no reason to look again, nor is another place of a row.

    What lies in memory that wasn't written may be the same by chance, here and there in a row.
    """
    return [
        {n: w | w.any(-1, keepdims=True) if w.ndim else w for n, w in c.items() if n in loose}
        for c in changed
    ]


def _count(changed: Sequence[Places]) -> int:
    return sum(int(where.sum()) for places in changed for where in places.values())


def left_out(outputs: Mapping[str, Any], places: Places) -> dict[str, Any]:
    """Return outputs without the elements at some places; those of other shapes as they are."""
    return {
        n: a[~places[n]] if n in places and np.shape(a) == places[n].shape else a for n, a in outputs.items()
    }


def _floats(array: Any) -> bool:
    return isinstance(array, np.ndarray) and array.dtype.kind == "f"
