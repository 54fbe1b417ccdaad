"""Compute before the run what depends on no input: ``fold_constants``.

Rules:

1. A tensor that follows from weights alone, through ops of ONNX that give the same result each time, becomes a weight
   of the same name; the nodes and weights that only led to it go. A weight that is a graph input may change, so nothing
   follows from it.
2. An `If` whose condition is decided before any run is replaced by its branch; the rules are those of
   `onnxprune.graph.branches`.
3. What would make the file larger stays: a tensor is folded if it has at most ``growth`` times the bytes of the weights
   that go with it, or at most 1 KiB. So no result of ConstantOfShape, Expand or Tile is written out that a few bytes
   describe.
4. DequantizeLinear, QuantizeLinear and their kin stay, so that a quantised weight remains one; so do ops that are
   random, Dropout, ops with bodies, and whatever makes an output of the graph directly.
5. Values are, bit for bit, those that onnxruntime computes node by node; where it has no kernel, those of ONNX's
   reference. Outputs are the same up to rounding: a kernel may add up in another order where a weight is constant.
6. Weights whose sources lie in external data lie there too. Bodies of Loop, Scan and undecided `If`s are left alone.
   Local functions are inlined if there is anything to fold. What stays keeps its bytes and its order.
"""

from __future__ import annotations

import logging

from onnxprune.errors import UsageError
from onnxprune.graph.branches import settle
from onnxprune.graph.folding import fold_all
from onnxprune.graph.inline import inline_functions
from onnxprune.model import Model

__all__ = ["run"]

_log = logging.getLogger(__name__)


def run(model: Model, *, growth: float = 1.0) -> Model:
    """Return a model that computes nothing from weights alone.

    Parameters
    ----------
    model : Model
    growth : float
        How many times the bytes of what goes a folded weight may have.

    Returns
    -------
    Model
        The same one if there is nothing to fold.

    Raises
    ------
    UsageError
        If ``growth`` is negative.
    """
    if not growth >= 0:
        raise UsageError(f"fold_constants{{growth={growth}}}: growth must be 0 or more.")
    flat = inline_functions(model)
    whole = settle(flat)
    if whole is not flat:
        _log.info("branches took the place of Ifs that were decided")
    folded = fold_all(whole, growth)
    if not folded.tensors:
        return model if whole is flat else whole
    gone = len(whole.proto.graph.node) - len(folded.model.proto.graph.node)
    _log.info("%d computed tensors are weights now, and %d nodes are gone", len(folded.tensors), gone)
    return folded.model
