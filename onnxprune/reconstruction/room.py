"""How much memory the fit of a layer takes, known before any sample runs.

Of a layer with d inputs and O outputs moments take 8 d (d + O) bytes, twice, and a solution several copies; where
it is wide, n rows take 4 n (d + O) bytes, and a solution some matrices of n x n and d x O.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from onnxprune.errors import CalibrationError
from onnxprune.reconstruction.evidence import WIDE
from onnxprune.reconstruction.layer import Settings
from onnxprune.reconstruction.layers import Site

__all__ = ["TOGETHER", "abreast", "admit", "kept", "lasting", "needed"]

#: Copies of moments, of rows' products and of a layer's weight that are there at once while it is solved.
MOMENTS, PRODUCTS, WEIGHTS = 6, 4, 10
#: Bytes of a fit and of the targets that stay for other fits on the same samples, and of these at most.
SHARE, LASTING = 1 << 30, 3 << 27
#: Bytes that a descent on a few layers together may take; copies of their weights in it (as they were, are and are
#: best, means of gradients and of their squares, a step), and of the largest matrix of inputs while its axes are
#: sought.
TOGETHER, STATES, AXES = 1 << 30, 8, 3


def kept(site: Site, settings: Settings, share: int = 1) -> float:
    """Return the bytes of what is kept of a layer while samples run, for fitting and held out, see `Settings.rows`."""
    view = site.view
    whole = float(view.width + _outputs(site))
    each = 4.0 * settings.rows(view, share) if view.width > settings.wide else 16.0 * view.width
    return view.blocks * each * whole


def _outputs(site: Site) -> int:
    """Return how many outputs a fit sees."""
    return min(site.view.outputs, site.view.width) if site.lean else site.view.outputs


def needed(site: Site, settings: Settings) -> float:
    """Return about the most bytes that the fit of a layer takes."""
    view = site.view
    d, rows = float(view.width), float(settings.rows(view))
    weights = WEIGHTS * d * _outputs(site)
    if view.width > settings.wide:
        return kept(site, settings) + 8 * (PRODUCTS * rows**2 + view.blocks * weights)
    return 8 * view.blocks * (MOMENTS * d * d + weights)


def abreast(sites: Iterable[Site]) -> float:
    """Return about the bytes that a descent on the weights of some layers together takes, all of them float32."""
    views = [site.view for site in sites]
    squares = [float(v.blocks * v.width**2) if v.width <= WIDE else 0.0 for v in views]
    weights = sum(float(v.blocks * v.width * v.outputs) for v in views)
    return 4 * (STATES * weights + sum(squares)) + 8 * AXES * max(squares, default=0.0)


def lasting(sites: Iterable[Site], settings: Settings) -> float:
    """Return the bytes of targets that may stay for other fits: what the largest fit leaves of a share, see `SHARE`."""
    return min(max(SHARE - max((needed(site, settings) for site in sites), default=0.0), 0.0), LASTING)


def admit(sites: Iterable[Site], settings: Settings, free: float | None = None) -> None:
    """Refuse layers for whose fit there is no memory.

    Parameters
    ----------
    sites : iterable of Site
    settings : Settings
    free : float, optional
        Bytes; what the machine has by default.

    Raises
    ------
    CalibrationError
        If a layer needs more; the message names it, and what to do.
    """
    free = _free() if free is None else free
    for site in sites:
        need = needed(site, settings)
        if need > free:
            raise CalibrationError(
                f"The layer {site.name!r} reads {site.view.blocks * site.view.width:,} numbers and gives "
                f"{site.view.blocks * site.view.outputs:,}: to fit it takes about {need / 1e9:.1f} GB, and "
                f"{free / 1e9:.1f} GB of memory are free. Leave what it reads as it is (--ignore), prune without "
                "samples (no --calib), or use a machine with more memory."
            )


def _free() -> float:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return 1024.0 * int(line.split()[1])
    except OSError:
        pass
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        return float(os.sysconf("SC_PHYS_PAGES")) * os.sysconf("SC_PAGE_SIZE")
    return float("inf")
