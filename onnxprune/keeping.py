"""Loss curves on disk, so that a model is calibrated once on the same samples."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import cache as once
from pathlib import Path
from typing import Any

import numpy as np

from onnxprune.calibrate.algebra import Curve
from onnxprune.calibrate.samples import Samples
from onnxprune.graph.group_types import Group
from onnxprune.latency import cache

__all__ = ["curves_of", "facts_of", "keep"]


def facts_of(sha256: str, samples: Samples, groups: Sequence[Group], **more: Any) -> dict[str, Any]:
    """Return what curves depend on: model, samples, groups, the code that measures, and settings (JSON values)."""
    digest = hashlib.sha256()
    for batch in samples.batches:
        for name, array in sorted(batch.items()):
            digest.update(f"{name} {array.dtype} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array).view(np.uint8).data if array.size else b"")
    return {
        "model": sha256,
        "samples": digest.hexdigest(),
        "provider": samples.provider,
        "groups": [[g.name, g.units] for g in groups],
        "code": _code(),
        **more,
    }


@once
def _code() -> str:
    """Return a hash of the files that measure: another version measures anew."""
    here = Path(__file__).parent
    files = [
        here / "repair.py",
        *(p for d in ("calibrate", "criteria", "recovery", "rotation") for p in (here / d).glob("*.py")),
    ]
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(path.read_bytes() if path.exists() else b"")
    return digest.hexdigest()


def curves_of(facts: Mapping[str, Any]) -> dict[str, Curve] | None:
    """Return the curves that were kept for these facts; None where there are none, or none that are whole."""
    found = cache.read("curves", facts)
    units = dict(facts["groups"])
    try:
        curves = {
            name: Curve(np.array(order, np.int64), np.array(error, np.float64))
            for name, order, error in found
        }
        whole = all(
            sorted(c.order.tolist()) == list(range(units[n])) and c.error.shape == (units[n] + 1,)
            for n, c in curves.items()
        )
    except (TypeError, ValueError, KeyError):
        return None
    return curves if curves and whole else None


def keep(facts: Mapping[str, Any], curves: Mapping[str, Curve]) -> None:
    """Keep curves for these facts."""
    cache.write("curves", facts, [[n, c.order.tolist(), c.error.tolist()] for n, c in curves.items()])
