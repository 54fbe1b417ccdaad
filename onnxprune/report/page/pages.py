"""One page out of a report's values."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from typing import Any

from onnxprune.report.page import compressed, family, frontier, lossless, sections, zeros
from onnxprune.report.page.data import embedded, facts

__all__ = [
    "render",
    "render_compressed",
    "render_family",
    "render_frontier",
    "render_lossless",
    "render_zeros",
]

STYLES = ("page.css", "parts.css")
SCRIPTS = ("theme.js", "base.js", "detail.js", "groups.js", "rails.js", "charts.js")


def render(values: Mapping[str, Any]) -> str:
    """Return the page.

    Parameters
    ----------
    values : mapping
        As `onnxprune.pruning.report.Report.to_json` or `onnxprune.pruning.inspection.Inspection.to_json` give it.

    Returns
    -------
    str
        HTML that needs nothing else. Its content policy forbids every request and every script but its own. The same
        values give the same text.
    """
    return _page(sections.title(values), sections.all_of(values), SCRIPTS, facts(values))


def render_zeros(values: Mapping[str, Any]) -> str:
    """Return the page of a report on zeros, as `onnxprune.sparsity.report.SparseReport.to_json` gives it.

    It is the same kind of page as that of `render`, with no script but for light and dark.
    """
    return _page(sections.title(values), zeros.all_of(values), SCRIPTS[:1], None)


def render_compressed(values: Mapping[str, Any]) -> str:
    """Return the page of a file made small, as `onnxprune.compression.report.CompressReport.to_json` gives it."""
    return _page(sections.title(values), compressed.all_of(values), SCRIPTS[:1], None)


def render_lossless(values: Mapping[str, Any]) -> str:
    """Return the page of a change that keeps the outputs, as `onnxprune.report.lossless.LosslessReport.to_json`."""
    return _page(sections.title(values), lossless.all_of(values), SCRIPTS[:1], None)


def render_frontier(values: Mapping[str, Any]) -> str:
    """Return the page of a search, as `onnxprune.tuning.report.TuneReport` gives it."""
    return _page(sections.title(values), frontier.all_of(values), SCRIPTS[:1], None)


def render_family(values: Mapping[str, Any]) -> str:
    """Return the page of several models, see `onnxprune.report.page.family`."""
    return _page(sections.title(values), family.all_of(values), SCRIPTS[:1], None)


def _page(title: str, parts: Iterable[str], scripts: Sequence[str], data: Any) -> str:
    style = "".join(_read(name) for name in STYLES)
    script = "(() => {\n'use strict';\n" + "".join(_read(name) for name in scripts) + "})();\n"
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; base-uri 'none'; "
        "form-action 'none'"
    )
    body = "\n".join(text for text in parts if text)
    if data is not None:
        body += f'\n<script type="application/json" id="data">{embedded(data)}</script>'
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="referrer" content="no-referrer">
<title>{title} – onnxprune</title>
<style>
{style}</style>
</head>
<body>
{body}
<script>{script}</script>
</body>
</html>
"""


def _read(name: str) -> str:
    return (resources.files("onnxprune.report.page") / name).read_text(encoding="utf-8")
