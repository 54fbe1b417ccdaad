"""Loss curves on disk, so that a model is calibrated once on the same samples."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from functools import cache as once
from pathlib import Path
from typing import Any

import numpy as np

from onnxprune.calibration.samples import Samples
from onnxprune.files import cache
from onnxprune.graph.group_types import Group
from onnxprune.reconstruction.least_squares import Curve

__all__ = ["code_of", "curves_of", "facts_of", "keep", "program"]


def facts_of(sha256: str, samples: Samples, groups: Sequence[Group], **more: Any) -> dict[str, Any]:
    """Return what curves depend on: model, samples, groups, the code that measures, and settings (JSON values)."""
    import onnx
    import onnxruntime

    digest = hashlib.sha256()
    for batch in samples.batches:
        for name, array in sorted(batch.items()):
            digest.update(f"{name} {array.dtype} {array.shape}".encode())
            if array.dtype == object:  # texts
                digest.update(
                    "".join(f"{len(text)} {text}" for text in array.ravel()).encode("utf-8", "replace")
                )
            else:
                digest.update(np.ascontiguousarray(array).view(np.uint8).data if array.size else b"")
    return {
        "model": sha256,
        "samples": digest.hexdigest(),
        "provider": samples.provider,
        "groups": [[g.name, g.units] for g in groups],
        "code": program(),
        "versions": {
            "numpy": np.__version__,
            "onnx": onnx.__version__,
            "onnxruntime": onnxruntime.__version__,
        },
        **more,
    }


@once
def program() -> str:
    """Return a hash of the installed program, see `code_of`."""
    return code_of(Path(__file__).parents[1])


def code_of(folder: Path) -> str:
    """Return a hash of the program: another version measures anew.

    Curves hang on most of it, from the op table to the sums, so all of it counts; what is named one by one is forgotten
    one by one. Names count, too: a file that is moved is another program.

    Raises
    ------
    FileNotFoundError
        If the folder isn't the package's.
    """
    files = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*.py"))
    if "reconstruction/cache.py" not in files:
        raise FileNotFoundError(f"The package's sources aren't at {str(folder)!r}, so curves can't be kept.")
    digest = hashlib.sha256()
    for name in files:
        data = (folder / name).read_bytes()
        digest.update(f"{name} {len(data)}\n".encode())
        digest.update(data)
    return digest.hexdigest()


def curves_of(facts: Mapping[str, Any]) -> dict[str, Curve] | None:
    """Return the curves that were kept for these facts; None where there are none, or none that can be right."""
    entries = cache.read("curves", facts)
    units = dict(facts["groups"])
    if not isinstance(entries, list) or not entries:
        return None
    curves: dict[str, Curve] = {}
    for entry in entries:
        curve = _curve(entry, units)
        if curve is None or entry[0] in curves:
            return None
        curves[entry[0]] = curve
    return curves


def _curve(entry: Any, units: Mapping[str, int]) -> Curve | None:
    """Read one group's curve: each unit once, an error for each count, none negative, none that is no number."""
    if not isinstance(entry, list) or len(entry) != 3:
        return None
    name, order, error = entry
    count = units.get(name) if isinstance(name, str) else None
    if count is None or not isinstance(order, list) or not isinstance(error, list):
        return None
    if {type(n) for n in order} != {int} or {type(e) for e in error} != {float}:
        return None
    if sorted(order) != list(range(count)) or len(error) != count + 1:
        return None
    reached = sum(math.isfinite(e) for e in error)  # only counts behind all these may be infinite
    if not reached or not all(e >= 0 for e in error) or not all(math.isfinite(e) for e in error[:reached]):
        return None
    return Curve(np.array(order, np.int64), np.array(error, np.float64))


def keep(facts: Mapping[str, Any], curves: Mapping[str, Curve]) -> None:
    """Keep curves for these facts."""
    cache.write("curves", facts, [[n, c.order.tolist(), c.error.tolist()] for n, c in curves.items()])
