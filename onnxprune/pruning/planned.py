"""What a plan asks for, as options; what is wrong with them is the plan's fault, since nobody gave them."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Iterator

from onnxprune.errors import ModelError, PlanError, UsageError
from onnxprune.options.granularity import CHANNELS
from onnxprune.options.pruning import OptionFields, Options
from onnxprune.pruning.plan import Plan

__all__ = ["planned"]

#: Option -> the key of a plan that stands for it.
KEYS = {
    "--ratio": "ratio", "--criterion": "criterion", "--align": "align", "--scope": "scope",
    "--allow-inexact": "inexact", "--open-io": "open_io", "--granularity": "granularity",
    "--input-shape": "input_shapes", "--keep-tokens": "vocabulary", "--unk": "vocabulary", "--drop": "depth",
}  # fmt: skip
_FLAG = re.compile("(" + "|".join(KEYS) + r")\b(?!-)")


@contextlib.contextmanager
def planned(plan: Plan, fields: OptionFields) -> Iterator[Options]:
    """Yield the options that a plan was made with, and others for what comes after it.

    Raises
    ------
    PlanError
        If what fails within the block is about options that the plan stands for; the sentence names its keys.
    """
    try:
        yield _options_of(plan, fields)
    except (UsageError, ModelError) as error:
        text = str(error)
        for name in plan.depth:
            text = text.replace(repr(f"^{re.escape(name)}$"), repr(name))
        told = _FLAG.sub(lambda flag: f'"{KEYS[flag[1]]}" of the plan', text)
        if told == str(error):
            raise
        raise PlanError(told) from error


def _options_of(plan: Plan, fields: OptionFields) -> Options:
    """Return the options that a plan was made with, and others for what comes after it."""
    decided: OptionFields = {
        "ratio": plan.ratio,
        "criterion": plan.criterion,
        "align": plan.align,
        "scope": plan.scope,
        "seed": plan.seed,
        "allow_inexact": plan.inexact,
        "open_io": plan.open_io,
        "granularity": ",".join(plan.granularity) or CHANNELS,
        "input_shapes": {n: tuple(s) for n, s in plan.input_shapes.items()},
    }
    if plan.vocabulary is not None:
        kept = plan.vocabulary
        unk = kept.unk if kept.remap else None
        decided |= {"keep_tokens": list(kept.keep), "remap": kept.remap, "unk": unk}
    if plan.depth:
        decided |= {"drop": tuple(f"^{re.escape(name)}$" for name in plan.depth)}
    return dataclasses.replace(Options(**decided), **fields)
