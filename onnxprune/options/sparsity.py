"""The options of `onnxprune sparsify`, declared once: command line, Python API, report and docs/options.md."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, TypedDict

from onnxprune.errors import UsageError
from onnxprune.options.declare import SharedFields, SharedOptions, documented, option, patterns
from onnxprune.options.kinds import Shapes, Share, Texts, meant_in_percent
from onnxprune.options.pattern import parse_pattern

__all__ = ["ChoiceFields", "SparseFields", "SparseOptions"]


@documented
@dataclass(frozen=True, kw_only=True)
class SparseOptions(SharedOptions):
    """What may be asked of `onnxprune.sparsify`.

    Raises
    ------
    UsageError
        If a value is out of range; the sentence names the option.
    """

    COMMAND = "sparsify"

    pattern: str = option(
        dataclasses.MISSING,
        "where zeros may be: 2:4 (any N:M, N of M stay, N from 1 to M-1), unstructured, block:RxC, kernel, vector",
        stage="decide",
        commands="sparsify",
        metavar="PATTERN",
    )
    sparsity: Share | None = option(
        None,
        "share of the weights that become zero, for patterns other than N:M",
        stage="decide",
        commands="sparsify",
        metavar="S",
        unit="0 <= S < 1",
    )
    method: str = option(
        "auto",
        "how weights are chosen: {onnxprune.sparsity.methods}; auto is obs with --calib and magnitude without",
        stage="decide",
        commands="sparsify",
        metavar="NAME",
    )
    scope: str = option(
        "auto",
        "the sparsity holds for each weight tensor (local), or for all together (global); auto is global with --calib, "
        "local without",
        stage="decide",
        commands="sparsify",
        metavar="local|global",
    )
    permute: bool = option(
        False,
        "for N:M: first give channels another order, so that the zeros take less; costs nothing at run time",
        stage="decide",
        commands="sparsify",
    )
    refit: bool = option(
        True,
        "with --calib: don't refit the weights that stay (sparsegpt and obs move them all the same, as they choose)",
        stage="calibrate",
        commands="sparsify",
        flag="--no-refit",
        needs="calibrated",
    )
    schedule: str = option(
        "once",
        "with --calib: reach the sparsity at once, or in --steps steps with refits between (cubic)",
        stage="calibrate",
        commands="sparsify",
        metavar="once|cubic",
        needs="calibrated",
    )
    steps: int = option(
        1,
        "with --schedule cubic: how many steps",
        stage="calibrate",
        commands="sparsify",
        metavar="K",
        needs="calibrated",
    )
    input_shapes: Shapes = option(
        {},
        "with --calib or --permute: sizes for the dynamic axes of an input, such as name:1,3,224,224 (repeatable)",
        stage="calibrate",
        commands="sparsify",
        needs="searched",
        metavar="NAME:D,D,...",
        flag="--input-shape",
    )
    seed: int = option(
        0,
        "with --calib or --permute: seed of the choice of samples and positions, and of the search for an order",
        stage="calibrate",
        commands="sparsify",
        needs="searched",
        metavar="N",
    )
    ignore: Texts = option(
        (),
        "leave weights alone whose name, or whose layer's name, matches (regular expression, repeatable)",
        stage="decide",
        commands="sparsify",
        metavar="REGEX",
    )
    only: Texts = option(
        (),
        "treat no weights but those that match (repeatable)",
        stage="decide",
        commands="sparsify",
        metavar="REGEX",
    )
    store: str = option(
        "dense",
        "sparse writes a weight as sparse_initializer where that is smaller; many tools can't read it",
        stage="write",
        commands="sparsify",
        metavar="dense|sparse",
    )

    def __post_init__(self) -> None:
        """Check ranges, and bring values to their own types."""
        super().__post_init__()
        pattern = parse_pattern(self.pattern)
        if pattern.fixed and not 0 < pattern.keep < pattern.of:
            result = "no weight would stay" if pattern.keep == 0 else "no weight would become zero"
            raise UsageError(
                f"--pattern {pattern.text} must let more than 0 of {pattern.of} weights stay and fewer than all "
                f"({result}); give one such as 2:4."
            )
        if pattern.fixed and self.sparsity is not None:
            raise UsageError(
                f"--pattern {pattern.text} says itself how many weights go; leave --sparsity out."
            )
        if not pattern.fixed and self.sparsity is None:
            raise UsageError(
                f"--pattern {pattern.text} needs --sparsity, the share of weights that become zero."
            )
        if self.sparsity is not None and not 0 <= self.sparsity < 1:
            raise UsageError(
                f"--sparsity must be at least 0 and below 1, the share of the weights that become zero; got "
                f"{self.sparsity}.{meant_in_percent(self.sparsity)}"
            )
        if self.permute and not pattern.fixed:
            raise UsageError(f"--permute is for N:M; the order of channels means nothing to {pattern.text}.")
        self._check_calibration()
        self._refuse_idle(["searched"])
        if self.scope == "auto":
            scope = "global" if self.calib is not None and not pattern.fixed else "local"
            object.__setattr__(self, "scope", scope)
        if self.scope not in ("local", "global"):
            raise UsageError(f"--scope must be 'local' or 'global'; got {self.scope!r}.")
        if self.scope == "global" and pattern.fixed:
            raise UsageError("--scope global can't be had with N:M, which is the same share everywhere.")
        if self.store not in ("dense", "sparse"):
            raise UsageError(f"--store must be 'dense' or 'sparse'; got {self.store!r}.")
        object.__setattr__(self, "ignore", patterns("--ignore", self.ignore))
        object.__setattr__(self, "only", patterns("--only", self.only))

    @property
    def searched(self) -> bool:
        """Whether there is anything that inputs or chance decide."""
        return self.calib is not None or self.permute

    def _check_calibration(self) -> None:
        if self.method == "auto":
            object.__setattr__(self, "method", "magnitude" if self.calib is None else "obs")
        if self.schedule not in ("once", "cubic"):
            raise UsageError(f"--schedule must be 'once' or 'cubic'; got {self.schedule!r}.")
        if self.steps < 1 or (self.steps > 1) != (self.schedule == "cubic"):
            raise UsageError("--steps must be at least 2, and goes with --schedule cubic.")


class SparseFields(SharedFields, total=False):
    """The fields of `SparseOptions` but the pattern, as keyword arguments; a test holds the two together."""

    sparsity: Share | None
    method: str
    scope: str
    permute: bool
    refit: bool
    schedule: str
    steps: int
    input_shapes: Shapes
    seed: int
    ignore: Texts
    only: Texts
    store: str


class ChoiceFields(TypedDict, total=False):
    """The fields of `SparseOptions` that say which weights matter and how much, as keyword arguments."""

    calib: Any
    samples: int | None
    calib_provider: str
    method: str
    input_shapes: Shapes
    seed: int
    ignore: Texts
    only: Texts
