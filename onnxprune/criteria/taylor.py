"""First-order change of the loss: units go whose removal changes it least, by their activation times its gradient.

The loss needs no labels: for each sample a class is drawn from the model's own distribution and the loss is its
negative logarithm (for outputs that are no classes: squared error in units of the output's spread, against a random
target). The divergence from the model itself would not do, since its gradient is zero at the model. For each sample
the products are summed over positions, and over the layers that read the unit, before the absolute value is taken;
the mean over samples is the score. The paper averages over positions, which is the same within a layer; the sum is
the change of the loss itself and can be compared between layers. Needs calibration samples, and gradients of all
ops from the group to the output (`onnxprune.gradient`).

References
----------
Molchanov, Tyree, Karras, Aila, Kautz, "Pruning Convolutional Neural Networks for Resource Efficient Inference",
arXiv 1611.06440, equations 6 to 8.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from onnxprune.reconstruction.probe import Probe

__all__ = ["READS", "measure"]

READS = "model"


def measure(probe: Probe) -> dict[str, NDArray[np.float64]]:
    """Return for each group the mean over samples of the absolute change of the loss, float64[units].

    Parameters
    ----------
    probe : Probe
    """
    total = {group: np.zeros(len(reads[0][1][0])) for group, reads in probe.readers.items()}
    for changes in probe.first_order():
        for group, sums in total.items():
            each = probe.units(group, changes)
            sums += np.abs(each).sum(axis=0) if each.ndim > 1 else np.abs(each)
    return {group: sums / probe.samples.count for group, sums in total.items()}
