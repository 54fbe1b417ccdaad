"""The options of `onnxprune sparsify`, declared once: command line, Python API, report and docs/options.md."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypedDict

from onnxprune.errors import UsageError
from onnxprune.options import Shapes, _option, _patterns
from onnxprune.sparse.kinds import parse_pattern

__all__ = ["SparseFields", "SparseOptions"]


@dataclass(frozen=True, kw_only=True)
class SparseOptions:
    """What may be asked of `onnxprune.sparsify`.

    Raises
    ------
    UsageError
        If a value is out of range; the sentence names the option.
    """

    pattern: str = _option(
        dataclasses.MISSING,
        "where zeros may be: 2:4 (any N:M, N of M stay), unstructured, block:RxC, kernel, vector",
        stage="sparsify",
        metavar="PATTERN",
    )
    sparsity: float | None = _option(
        None,
        "share of the weights that become zero, for patterns other than N:M",
        stage="sparsify",
        metavar="S",
        unit="0 to 1",
    )
    method: str = _option(
        "auto",
        "how weights are chosen: magnitude; with --calib also wanda, sparsegpt, obs; auto is obs with --calib and "
        "magnitude without",
        stage="sparsify",
        metavar="NAME",
    )
    scope: str = _option(
        "auto",
        "the sparsity holds for each weight tensor (local), or for all together (global); auto is global with --calib, "
        "local without",
        stage="sparsify",
        metavar="local|global",
    )
    permute: bool = _option(
        False,
        "for N:M: first give channels another order, so that the zeros take less; costs nothing at run time",
        stage="sparsify",
    )
    calib: Any = _option(  # noqa: RUF009 - makes a field
        None,
        "unlabelled samples to choose by and to refit the layers on, as for 'prune'",
        stage="sparsify",
        metavar="SAMPLES",
    )
    samples: int | None = _option(
        None, "with --calib: use at most this many samples", stage="sparsify", metavar="N"
    )
    labels: str | None = _option(
        None,
        "the key of true labels in the samples, for the accuracy in the report",
        stage="sparsify",
        metavar="KEY",
    )
    refit: bool = _option(
        True, "with --calib: don't refit the weights that stay", stage="sparsify", flag="--no-refit"
    )
    schedule: str = _option(
        "once",
        "with --calib: reach the sparsity at once, or in --steps steps with refits between (cubic)",
        stage="sparsify",
        metavar="once|cubic",
    )
    steps: int = _option(1, "with --schedule cubic: how many steps", stage="sparsify", metavar="K")
    input_shapes: Shapes = _option(  # noqa: RUF009 - makes a field
        {},
        "with --calib: sizes for the dynamic axes of an input, such as name:1,3,224,224 (repeatable)",
        stage="sparsify",
        metavar="NAME:D,D,...",
        flag="--input-shape",
    )
    seed: int = _option(
        0, "with --calib: seed of the choice of samples and positions", stage="sparsify", metavar="N"
    )
    ignore: tuple[str, ...] = _option(
        (),
        "leave weights alone whose name, or whose layer's name, matches (regular expression, repeatable)",
        stage="sparsify",
        metavar="REGEX",
    )
    only: tuple[str, ...] = _option(
        (), "treat no weights but those that match (repeatable)", stage="sparsify", metavar="REGEX"
    )
    store: str = _option(
        "dense",
        "sparse writes a weight as sparse_initializer where that is smaller; many tools can't read it",
        stage="sparsify",
        metavar="dense|sparse",
    )
    in_place: bool = _option(False, "allow OUT to be the same file as IN", stage="sparsify")
    external_data_threshold: int | None = _option(
        None,
        "move weights of at least this size to OUT.data",
        stage="sparsify",
        metavar="BYTES",
        unit="bytes",
    )

    def __post_init__(self) -> None:
        """Check ranges, and bring values to their own types."""
        pattern = parse_pattern(self.pattern)
        if pattern.fixed and self.sparsity is not None:
            raise UsageError(
                f"--pattern {pattern.text} says itself how many weights go; leave --sparsity out."
            )
        if not pattern.fixed and self.sparsity is None:
            raise UsageError(
                f"--pattern {pattern.text} needs --sparsity, the share of weights that become zero."
            )
        if self.sparsity is not None and not 0 <= self.sparsity <= 1:
            raise UsageError(f"--sparsity must be from 0 to 1; got {self.sparsity}.")
        if self.permute and not pattern.fixed:
            raise UsageError(f"--permute is for N:M; the order of channels means nothing to {pattern.text}.")
        self._check_calibration()
        if self.scope == "auto":
            found = "global" if self.calib is not None and not pattern.fixed else "local"
            object.__setattr__(self, "scope", found)
        if self.scope not in ("local", "global"):
            raise UsageError(f"--scope must be 'local' or 'global'; got {self.scope!r}.")
        if self.scope == "global" and pattern.fixed:
            raise UsageError("--scope global can't be had with N:M, which is the same share everywhere.")
        if self.store not in ("dense", "sparse"):
            raise UsageError(f"--store must be 'dense' or 'sparse'; got {self.store!r}.")
        object.__setattr__(self, "ignore", _patterns("--ignore", self.ignore))
        object.__setattr__(self, "only", _patterns("--only", self.only))

    def _check_calibration(self) -> None:
        if self.method == "auto":
            object.__setattr__(self, "method", "magnitude" if self.calib is None else "obs")
        if self.schedule not in ("once", "cubic"):
            raise UsageError(f"--schedule must be 'once' or 'cubic'; got {self.schedule!r}.")
        if self.steps < 1 or (self.steps > 1) != (self.schedule == "cubic"):
            raise UsageError("--steps must be at least 2, and goes with --schedule cubic.")
        asked = [
            name
            for name, value in (
                ("--samples", self.samples is not None),
                ("--labels", self.labels is not None),
                ("--schedule", self.schedule != "once"),
                ("--no-refit", not self.refit),
            )
            if value
        ]
        if self.calib is None and asked:
            raise UsageError(f"{asked[0]} needs samples; give them with --calib.")
        if self.samples is not None and self.samples < 1:
            raise UsageError(f"--samples must be at least 1; got {self.samples}.")
        shapes = {name: tuple(int(d) for d in shape) for name, shape in self.input_shapes.items()}
        object.__setattr__(self, "input_shapes", shapes)

    def to_json(self) -> dict[str, Any]:
        """Return the options as JSON values, in their order."""
        found = {}
        for spec in dataclasses.fields(self):
            value = getattr(self, spec.name)
            if spec.name == "calib":
                value = value if isinstance(value, (str, type(None))) else "given"
            elif isinstance(value, Mapping):
                value = {name: list(shape) for name, shape in value.items()}
            found[spec.name] = list(value) if isinstance(value, tuple) else value
        return found


class SparseFields(TypedDict, total=False):
    """The fields of `SparseOptions` but the pattern, as keyword arguments; a test holds the two together."""

    sparsity: float | None
    method: str
    scope: str
    permute: bool
    calib: Any
    samples: int | None
    labels: str | None
    refit: bool
    schedule: str
    steps: int
    input_shapes: Shapes
    seed: int
    ignore: tuple[str, ...]
    only: tuple[str, ...]
    store: str
    in_place: bool
    external_data_threshold: int | None
