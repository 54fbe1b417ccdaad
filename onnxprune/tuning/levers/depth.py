"""Residual branches that go: a share of those that a finished model has, ranked on the samples."""

from __future__ import annotations

from pathlib import Path

from onnxprune.calibration.samples import Samples
from onnxprune.options.granularity import DEPTH
from onnxprune.options.pruning import Options
from onnxprune.pruning.journey import open_run, prune

__all__ = ["AIMS", "DEAR", "SETTINGS", "apply"]

AIMS = ("latency", "bytes", "macs", "memory")
SETTINGS = ("eighth", "quarter")
DEAR = True
SHARES = {"eighth": 1 / 8, "quarter": 1 / 4}


def apply(source: Path, output: Path, setting: str, samples: Samples) -> None:
    """Write a model with fewer residual branches, whose layers are fitted to what the given one gives.

    Parameters
    ----------
    source, output : Path
    setting : str
        Which share of the branches goes.
    samples : Samples
        That they are ranked on, and layers fitted.

    Raises
    ------
    OnnxPruneError
        If the model has no branch that can go.
    """
    options = Options(
        ratio=SHARES[setting], granularity=DEPTH, calib=samples.batches, calib_provider=samples.provider,
        recover="lstsq",
    )  # fmt: skip
    prune(open_run(source, options), output)
