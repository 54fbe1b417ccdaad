"""Remove channels that are already dead, without loss: ``shrink``.

Rules:

1. A channel may go if nothing that reads it would notice: at each sum that runs over it, the
   weights that it is multiplied with are all zero, or the channel is zero whatever the input (its
   filter is all zero, and so is what bias, normalisation and activation make of that).
2. A channel that is constant but not zero may go from Conv without padding, Gemm, and MatMul with a
   weight; what it contributed is added to the bias, or a bias is added where there is none. With
   zero padding this is not exact at the borders: such a channel stays.
3. Channels go by whole units of a dependency group: all members must allow it. No axis loses all
   that it has.
4. Model-local functions are inlined if anything goes. Weights that are inputs of the graph may
   change at run time, and prove nothing.
5. What has gone may leave others dead: the pass repeats until nothing is left to remove.
6. The result is compared with the model on random inputs, at several sizes of the dynamic axes;
   groups that differ by more than rounding are put back.

The log (logger ``onnxprune.passes.shrink``; ``onnxprune run`` shows it) says what went and what was
refused and why. Outputs are the same within the rounding of their type: sums have fewer terms.
"""

from __future__ import annotations

import logging

from onnxprune.model import Model
from onnxprune.options.pruning import Shapes
from onnxprune.sparsity.dead import shrink

__all__ = ["run"]

_log = logging.getLogger(__name__)


def run(model: Model, *, verify: bool = True, input_shapes: Shapes | None = None) -> Model:
    """Return a model without dead channels.

    Parameters
    ----------
    model : Model
    verify : bool
        Compare with the model on random inputs.
    input_shapes : mapping, optional
        Input -> shape, for dynamic axes.

    Returns
    -------
    Model
        The same one if no channel may go.

    Raises
    ------
    VerificationError
        If no removal passes the comparison.
    """
    shrunk = shrink(model, verify=verify, input_shapes=input_shapes)
    for name, units in shrunk.removed.items():
        _log.info("%s: %d dead units are gone", name, units)
    for reason, units in shrunk.refused.items():
        _log.info("%d constant units stay: %s", units, reason)
    if not shrunk.removed:
        _log.info("no dead units may go")
    return shrunk.model
