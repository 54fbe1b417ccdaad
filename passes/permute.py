"""Give channels another order, without loss, in which N:M zeros take less: ``permute{pattern=2:4}``.

Rules:

1. Channels that must be reordered together are reordered together, in every weight that makes or reads them; nothing is
   added to the graph, so that the order costs nothing at run time.
2. The order is the one in which the pattern would keep most of what matters: squares of weights, or with samples
   (``calib``) the rise of each layer's error (`onnxprune.sparsity.order` has the equations).
3. The result is compared with the model in onnxruntime; a group whose order fails is put back, and named.
4. No weight becomes zero here: that is for ``sparsify``, or for other tools. Values stay as they are, bit for bit.
5. Model-local functions are inlined if anything is reordered.
"""

from __future__ import annotations

from typing import Unpack

from onnxprune.journey.passes import Passed
from onnxprune.journey.run import Run
from onnxprune.model import Model
from onnxprune.options.sparsity import ChoiceFields, SparseOptions
from onnxprune.sparsity.order import reorder

__all__ = ["run"]


def run(model: Model, *, pattern: str = "2:4", **options: Unpack[ChoiceFields]) -> Passed:
    """Return a model in another order, and the report.

    Parameters
    ----------
    model : Model
    pattern : str
        N:M.
    **options
        Those of `onnxprune.options.sparsity.SparseOptions` that say which weights matter, and how much.

    Raises
    ------
    OnnxPruneError
        As `onnxprune.sparsify`.
    """
    outcome = reorder(Run.open(model, SparseOptions(pattern=pattern, permute=True, **options)))
    return Passed(outcome.changed, outcome.report)
