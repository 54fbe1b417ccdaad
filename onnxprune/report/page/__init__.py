"""The report as one page to look at: HTML, style and script in a single file that asks the network for nothing."""

from __future__ import annotations

import os

from onnxprune.report.page.render import render, render_frontier, render_lossless, render_zeros

__all__ = ["is_page", "render", "render_frontier", "render_lossless", "render_zeros"]


def is_page(path: str | os.PathLike[str]) -> bool:
    """Whether a file of this name is to be a page.

    Examples
    --------
    >>> is_page("r.html"), is_page("r.HTM"), is_page("r.json")
    (True, True, False)
    """
    return os.fspath(path).lower().endswith((".html", ".htm"))
