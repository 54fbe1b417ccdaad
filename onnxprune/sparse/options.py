"""The options of `onnxprune sparsify`, declared once: command line, Python API, report and docs/options.md."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, TypedDict

from onnxprune.errors import UsageError
from onnxprune.options import _option, _patterns
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
        "magnitude",
        "how weights are chosen: magnitude",
        stage="sparsify",
        metavar="NAME",
    )
    scope: str = _option(
        "local",
        "the sparsity holds for each weight tensor (local), or for all together (global)",
        stage="sparsify",
        metavar="local|global",
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
        if self.scope not in ("local", "global"):
            raise UsageError(f"--scope must be 'local' or 'global'; got {self.scope!r}.")
        if self.scope == "global" and pattern.fixed:
            raise UsageError("--scope global can't be had with N:M, which is the same share everywhere.")
        if self.store not in ("dense", "sparse"):
            raise UsageError(f"--store must be 'dense' or 'sparse'; got {self.store!r}.")
        object.__setattr__(self, "ignore", _patterns("--ignore", self.ignore))
        object.__setattr__(self, "only", _patterns("--only", self.only))

    def to_json(self) -> dict[str, Any]:
        """Return the options as JSON values, in their order."""
        found = {}
        for spec in dataclasses.fields(self):
            value = getattr(self, spec.name)
            found[spec.name] = list(value) if isinstance(value, tuple) else value
        return found


class SparseFields(TypedDict, total=False):
    """The fields of `SparseOptions` but the pattern, as keyword arguments; a test holds the two together."""

    sparsity: float | None
    method: str
    scope: str
    ignore: tuple[str, ...]
    only: tuple[str, ...]
    store: str
    in_place: bool
    external_data_threshold: int | None
