"""Average percentage of zeros: units that are silent at most positions, for most samples, go first.

Where units are never zero (no rectifier in front of what reads them) the mean magnitude decides, weighed so little
that it only parts equals. Needs calibration samples.

References
----------
Hu, Peng, Tai, Tang, "Network Trimming: A Data-Driven Neuron Pruning Approach", arXiv 1607.03250, equation 1.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from onnxprune.reconstruction.probe import Probe

__all__ = ["READS", "measure"]

READS = "model"

#: The most that the mean magnitude may add to a share of nonzeros.
LITTLE = 1e-6


def measure(probe: Probe) -> dict[str, NDArray[np.float64]]:
    """Return for each group the share of nonzeros of each unit, float64[units], averaged over its channels.

    Parameters
    ----------
    probe : Probe
    """
    alive = probe.activations(lambda t, x: t.mask(t.op("Greater", t.op("Abs", x), t.const(0))))
    size = probe.activations(lambda t, x: t.op("Abs", x))
    shares = {}
    for group in probe.readers:
        channels = np.maximum(probe.channels(group), 1)
        mean = probe.units(group, size) / channels
        shares[group] = probe.units(group, alive) / channels + LITTLE * mean / max(float(mean.max()), 1e-30)
    return shares
