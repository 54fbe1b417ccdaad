"""Weights on grids of few bits within a share of the bytes, chosen on the samples: a file that onnxruntime loads."""

from __future__ import annotations

from pathlib import Path

from onnxprune.calibration.samples import Samples
from onnxprune.compression.journey import compress
from onnxprune.errors import NothingToPrune
from onnxprune.journey.run import Run
from onnxprune.options.compression import CompressOptions

__all__ = ["AIMS", "ENDS", "LEAST", "apply"]

AIMS = ("bytes",)
LEAST = 0.08
ENDS = True


def apply(source: Path, output: Path, setting: str, samples: Samples) -> None:
    """Write a model of fewer bytes.

    Parameters
    ----------
    source, output : Path
    setting : str
        The share of the bytes that stays, such as 0.4.
    samples : Samples
        That grids are chosen by, and layers fitted on.

    Raises
    ------
    OnnxPruneError
        If no weight of the model may lie on a grid, or the share can't be met.
    """
    options = CompressOptions(
        target=f"bytes={setting}", to="onnx", calib=samples.batches, calib_provider=samples.provider
    )
    try:
        compress(Run.open(source, options, None), output)
    except NothingToPrune as error:  # its advice is about options of another command
        raise NothingToPrune(f"{str(error).partition('; ask for')[0].rstrip('.')}.") from error
