"""The report as one page to look at: HTML, style and script in a single file that asks the network for nothing.

What draws it is imported when a page is asked for: most runs ask for none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onnxprune.report.page.pages import render as render
    from onnxprune.report.page.pages import render_compressed as render_compressed
    from onnxprune.report.page.pages import render_family as render_family
    from onnxprune.report.page.pages import render_frontier as render_frontier
    from onnxprune.report.page.pages import render_lossless as render_lossless
    from onnxprune.report.page.pages import render_zeros as render_zeros

__all__ = [
    "render",
    "render_compressed",
    "render_family",
    "render_frontier",
    "render_lossless",
    "render_zeros",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.pages"), name)
