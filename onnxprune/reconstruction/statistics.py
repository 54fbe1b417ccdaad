"""Recovery of statistics: each output channel is scaled and shifted to the mean and variance that it had.

``y' = s (y - mu_pruned) + mu_dense`` with ``s = sqrt((v_dense + e) / (v_pruned + e))``, written into the layer's
weight and bias. In front of a BatchNormalization this is the same as to estimate its statistics anew; where it has
been folded into the layer it does what that would do. ``e`` is a hundredth of the layer's mean variance, which
shrinks the scale of channels that hardly vary toward one. It is applied to every layer in order, whatever the
squared error says: a matched variance isn't the least squared error, whose scale is smaller by the correlation.

References
----------
Jordan, Sedghi, Saukh, Entezari, Neyshabur, "REPAIR: REnormalizing Permuted Activations for Interpolation Repair",
arXiv 2211.08403, section 3.
"""

from __future__ import annotations

import numpy as np

from onnxprune.reconstruction.least_squares import Fit, Ints, Matrix, Regression

__all__ = ["fit"]

#: Added to both variances, as a share of the layer's mean variance.
SMALL = 1e-2


def fit(problem: Regression, kept: Ints, prior: Matrix) -> Fit:
    """Return the layer with its outputs' means and variances restored.

    Parameters
    ----------
    problem : Regression
        Moments of the present inputs and of the targets.
    kept : int64[k]
        Regressors that stay.
    prior : float64[d, O]
        The old weights, zero outside ``kept``.
    """
    variance = np.maximum(problem.spread(prior), 0)
    small = SMALL * float(problem.v.mean()) or 1.0
    w = prior * np.sqrt((problem.v + small) / (variance + small))
    return Fit(w, problem.my - problem.mx @ w)
