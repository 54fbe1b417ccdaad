"""The recoveries: how the layers that stay make up for what was cut.

Each layer is a regression ``y = W^T x + b`` on the channels that it still reads. A recovery says what may be put in the
place of its old ``W`` and ``b``:

=======  ===========================================================================================================
none     nothing: the layer keeps them
bias     a new ``b``: what the removed channels gave on average
stats    each output scaled and shifted to the mean and variance that it had (`onnxprune.reconstruction.statistics`)
lstsq    ``W`` and ``b`` of least squares, near what the layer alone needs by a ridge (`onnxprune.reconstruction.layer`)
blocks   lstsq, and then a few layers together, by descent (`onnxprune.reconstruction.segments`)
distill  blocks, and then all layers together, toward the original's states (`onnxprune.reconstruction.distill`)
finetune distill with true labels (`onnxprune.reconstruction.finetune`)
=======  ===========================================================================================================

Where there are several variants, held-out samples choose for each layer. Another recovery is another line of
`RECOVERIES`; its algorithm, if it has one of its own, is a module beside this one.

References
----------
He, Zhang, Sun, "Channel Pruning for Accelerating Very Deep Neural Networks", ICCV 2017, section 3.2 (lstsq).
Li et al., "BRECQ: Pushing the Limit of Post-Training Quantization by Block Reconstruction", ICLR 2021, section 3
(blocks).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxprune import registry
from onnxprune.reconstruction import statistics
from onnxprune.reconstruction.least_squares import Fit, Regression

__all__ = ["RECOVERIES", "STRONG", "Recovery", "recovery_of"]

#: Of least squares, as shares of the regressors' mean variance.
RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
#: Where there are fewer than two rows for each regressor: near the old weights.
STRONG = (0.1, 1.0, 10.0)

Alone = Callable[[Regression, NDArray[np.int64], NDArray[np.float64]], Fit]


@dataclass(frozen=True)
class Recovery:
    """What may be put in the place of a layer's weights.

    Attributes
    ----------
    ridges : tuple of float
        Of the refits that are tried, as shares of the regressors' mean variance; none: there is no refit.
    variants : tuple of str
        What a layer may get, as its report calls it: ``"kept"``, ``"bias"``, ``"local"``, ``"lstsq"``, or the name of
        ``alone``.
    alone : callable, optional
        (problem, kept regressors int64[k], old weights float64[d, outputs]) -> fit, for every layer, whatever the
        held-out error says.
    together : bool
        Whether segments of a few layers are fitted together afterwards.
    whole : bool
        Whether all layers are fitted together after that.
    labelled : bool
        Whether that is toward true labels as well.
    """

    ridges: tuple[float, ...]
    variants: tuple[str, ...]
    alone: Alone | None = None
    together: bool = False
    whole: bool = False
    labelled: bool = False


#: What ``--recover`` may name.
RECOVERIES = {
    "none": Recovery((), ("kept",)),
    "bias": Recovery((), ("kept", "bias")),
    "stats": Recovery((), ("stats",), alone=statistics.fit),
    "lstsq": Recovery(RIDGES, ("kept", "bias", "local", "lstsq")),
    "blocks": Recovery(RIDGES, ("kept", "bias", "local", "lstsq"), together=True),
    "distill": Recovery(RIDGES, ("kept", "bias", "local", "lstsq"), together=True, whole=True),
    "finetune": Recovery(
        RIDGES, ("kept", "bias", "local", "lstsq"), together=True, whole=True, labelled=True
    ),
}


def recovery_of(name: str) -> Recovery:
    """Return a recovery by its name.

    Raises
    ------
    UsageError
        If there is none; the message lists the known ones.
    """
    return RECOVERIES[registry.match(name, RECOVERIES, "recovery")]
