"""Cut the vocabulary to the ids that are needed: ``keep_vocabulary{tokens=ids.txt}``.

Rules:

1. The ids that stay are those of a list, of a ``tokenizer.json`` and texts (``words``), or the N most frequent in the
   samples; ids that the graph itself puts before a lookup stay, too.
2. What goes are rows of the table, with the scales, tied heads, biases and logits that count the same ids.
3. The model takes ids as they were, through a map of its own: one that is gone is read as ``unk``. (`onnxprune prune`
   can leave the map out, and writes it beside the model.) Logits are those of the ids that stay.
4. The result equals the model on ids that stay, and is compared with it in onnxruntime on others as well, read as
   ``unk``.
5. No other weight changes.
"""

from __future__ import annotations

from typing import Any

from onnxprune import api
from onnxprune.journey.passes import Passed
from onnxprune.model import Model
from onnxprune.options.pruning import Shapes

__all__ = ["run"]


def run(
    model: Model,
    *,
    tokens: str,
    words: str | None = None,
    unk: int | None = None,
    calib: Any = None,
    input_shapes: Shapes | None = None,
) -> Passed:
    """Return a model with fewer words, and the report.

    Parameters
    ----------
    model : Model
    tokens : str
        A file of ids, one a line or a JSON list, a ``tokenizer.json``, or a number N with ``calib``.
    words, unk, calib, input_shapes
        As in `onnxprune.Options`.

    Raises
    ------
    OnnxPruneError
        As `onnxprune.prune`.
    """
    options = {"words": words, "unk": unk, "calib": calib, "input_shapes": input_shapes}
    given = {name: value for name, value in options.items() if value is not None}
    result = api.prune(model, keep_tokens=tokens, remap=True, **given)
    return Passed(result.pruned, result.report)
