"""Options of how the layers that stay make up for what went."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from onnxprune.errors import UsageError
from onnxprune.options.declare import SharedFields, SharedOptions, option

__all__ = ["RecoveryFields", "RecoveryOptions"]

#: The recoveries that fit all layers together, and the one of them that learns from true labels.
WHOLE, LABELLED = ("distill", "finetune"), "finetune"


@dataclass(frozen=True, kw_only=True)
class RecoveryOptions(SharedOptions):
    """Samples, the file that is written, and how layers are fitted on the samples."""

    recover: str = option(
        "blocks",
        "with --calib or --moments: how layers make up for what went: blocks (lstsq, then a few layers together, by "
        "descent), lstsq (layer by layer, quicker), distill (blocks, then all layers together, slower), finetune "
        "(distill with true labels), stats, bias, none",
        stage="calibrate",
        metavar="NAME",
        needs="fitted",
    )
    epochs: int | None = option(
        None,
        "with --recover distill or finetune: how often every sample is seen, 16 in a step; by default there are 1,000 "
        "steps, and no sample is seen more than 60 times",
        stage="calibrate",
        metavar="E",
        needs="whole",
    )
    lr: float | None = option(
        None,
        "with --recover distill or finetune: length of the first steps, as a share of the root mean square of each "
        "weight; by default 0.004, and a quarter of it where held-out samples don't gain",
        stage="calibrate",
        metavar="L",
        needs="whole",
    )
    extra_samples: Any = option(
        None,
        "with --recover distill: more unlabelled inputs, in any form of --calib and of any source, such as crops of "
        "other pictures; layers are fitted together on them, too, while --calib alone chooses and judges",
        stage="calibrate",
        metavar="SAMPLES",
        needs="whole",
    )

    def __post_init__(self) -> None:
        """Check ranges, and bring values to their own types."""
        super().__post_init__()
        if self.whole and self.calib is None:
            raise UsageError(
                f"--recover {self.recover} runs over samples, and moments alone don't do; give --calib as well."
            )
        if self.labelled and self.labels is None:
            raise UsageError(
                "--recover finetune learns from true labels; name their key in the samples with --labels."
            )
        if self.labelled and self.extra_samples is not None:
            raise UsageError("--extra-samples have no labels to learn from; use --recover distill.")
        if self.epochs is not None and self.epochs < 1:
            raise UsageError(f"--epochs must be at least 1; got {self.epochs}.")
        if self.lr is not None and not 0 < self.lr <= 1:
            raise UsageError(f"--lr is a share of a weight's size, above 0 and at most 1; got {self.lr}.")

    @property
    def whole(self) -> bool:
        """Whether all layers are fitted together."""
        return self.recover in WHOLE

    @property
    def labelled(self) -> bool:
        """Whether true labels are learned from."""
        return self.recover == LABELLED


class RecoveryFields(SharedFields, total=False):
    """The fields of `RecoveryOptions`, as keyword arguments."""

    recover: str
    epochs: int | None
    lr: float | None
    extra_samples: Any
