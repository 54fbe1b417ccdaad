"""The sections of a page on a change that keeps what the model computes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

from onnxprune.report.page.sections import FOOTER, run, why
from onnxprune.report.page.summary import head

__all__ = ["all_of"]

Values = Mapping[str, Any]


def all_of(values: Values) -> Iterator[str]:
    """Yield the sections of `onnxprune.report.lossless.LosslessReport.to_json`."""
    change = values["change"]
    names = [("changed", change.capitalize()), ("left", "Left as they were"), ("run", "Run")]
    yield head(values, names, "report", escape("; ".join(values["summary"])))
    yield '<main id="main">'
    changed = [(name, change) for name in dict.fromkeys(group["group"] for group in values["groups"])]
    yield why("changed", change.capitalize(), changed, "groups of channels")
    left = [(one["group"], one["reason"]) for one in values["refused"]]
    yield why("left", "Left as they were, and why", left, "groups of channels")
    yield run(values)
    yield "</main>"
    yield FOOTER
