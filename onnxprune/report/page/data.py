"""What the page's script draws, as compact JSON that can't leave its element."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

__all__ = ["embedded", "facts"]

Values = Mapping[str, Any]
#: Axes of weights that are listed of one group.
MOST_TENSORS = 400


def facts(values: Values) -> dict[str, Any]:
    """Return what is drawn, of a report or of an inspection.

    Parameters
    ----------
    values : mapping
        As `onnxprune.pruning.report.Report.to_json` or `onnxprune.pruning.inspection.Inspection.to_json` give it.

    Returns
    -------
    dict
        ``groups``, ``layers`` and ``fits``, in which groups are named by their numbers.
    """
    calibration = values.get("calibration") or {}
    curves = calibration.get("curves") or {}
    whole = values.get("whole") or {}
    reasons = {entry["group"]: entry["reason"] for entry in values.get("put_back", ())}
    groups = [g for g in values["groups"] if not g.get("alternative")]
    number = {g["name"]: n for n, g in enumerate(groups)}
    return {
        "cut": "after" in _pair(values["parameters"]),
        "macs": _pair(values["macs"]).get("before"),
        "parameters": _pair(values["parameters"]).get("before"),
        "groups": [
            {
                "name": g["name"],
                "kind": g["kind"],
                "units": g["units"],
                "removed": g.get("removed", 0),
                "params": g["params"],
                "macs": g["macs"],
                "inexact": bool(g["inexact"]),
                "component": g.get("component", -1),
                "tensors": g.get("tensors", [])[:MOST_TENSORS],
                "more": max(len(g.get("tensors", [])) - MOST_TENSORS, 0),
                "curve": curves.get(g["name"]),
                "back": reasons.get(g["name"]),
                "whole": whole.get(g["name"]),
            }
            for g in groups
        ],
        "layers": [
            {
                **{key: layer[key] for key in ("name", "op", "shape", "left", "macs")},
                "writes": [number[name] for name in layer["writes"] if name in number],
                "reads": [number[name] for name in layer["reads"] if name in number],
            }
            for layer in values.get("layers", ())
        ],
        "fits": [
            [f["layer"], f["kept"], f["of"], f["before"], f["after"], f["variant"]]
            for f in calibration.get("layers", ())
        ],
    }


def _pair(figure: object) -> Mapping[str, Any]:
    """Return before and after; an inspection knows one number only."""
    return figure if isinstance(figure, Mapping) else {"before": figure}


def embedded(values: Any) -> str:
    r"""Return JSON for a script element: no text in it can end the element or begin markup.

    Examples
    --------
    >>> print(embedded(["</script><!--"]))
    ["\u003c/script\u003e\u003c!--"]
    """
    text = json.dumps(values, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    for char in "<>&\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return text.encode("utf-8", "replace").decode("utf-8")
