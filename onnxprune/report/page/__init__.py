"""The report as one page to look at: HTML, style and script in a single file that asks the network for nothing."""

from __future__ import annotations

from onnxprune.report.page.render import (
    render,
    render_compressed,
    render_family,
    render_frontier,
    render_lossless,
    render_zeros,
)

__all__ = [
    "render",
    "render_compressed",
    "render_family",
    "render_frontier",
    "render_lossless",
    "render_zeros",
]
