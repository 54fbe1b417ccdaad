"""What zeros a model has, which patterns hold along which axis, and what each runtime would make of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray

from onnxprune.graph.inline import inline
from onnxprune.model import Model
from onnxprune.options.pattern import parse_pattern
from onnxprune.report.printing import printed_on
from onnxprune.report.record import Facts
from onnxprune.sparsity.gains import ONNXRUNTIME, tensor_cores, useful
from onnxprune.sparsity.masks import holds
from onnxprune.sparsity.storage import INDEX
from onnxprune.sparsity.weights import Left, SparseWeight, find, fold_computed

__all__ = ["SparsityInspection", "TensorZeros", "inspect_sparsity", "patterns_of"]

#: Patterns that are looked for, the strictest first.
KNOWN = ("1:8", "2:8", "1:4", "4:8", "2:4")


@dataclass(frozen=True)
class TensorZeros:
    """The zeros of one weight.

    Attributes
    ----------
    tensor : str
    layers : list of str
    dims : list of int
    axis : int or None
        The one that is contracted, where patterns count.
    zeros, weights : int
    patterns : dict
        Axis of the stored weight -> N:M patterns that hold along it, in every whole group.
    tensor_cores : str
        What sparse tensor cores would make of it.
    sparse_initializer : int
        Bytes as a SparseTensorProto, indices included; the dense bytes are ``bytes``.
    bytes : int
    """

    tensor: str
    layers: list[str]
    dims: list[int]
    axis: int | None
    zeros: int
    weights: int
    patterns: dict[int, list[str]]
    tensor_cores: str
    sparse_initializer: int
    bytes: int

    @property
    def holds(self) -> list[str]:
        """Patterns along the contracted axis."""
        return [] if self.axis is None else self.patterns.get(self.axis, [])


@dataclass(repr=False)
class SparsityInspection(Facts):
    """What ``onnxprune inspect --sparsity`` shows."""

    tensors: list[TensorZeros] = field(default_factory=list)
    left: list[Left] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        lines = []
        for one in self.tensors:
            line = dict(vars(one))
            line["patterns"] = {str(axis): patterns for axis, patterns in one.patterns.items()}
            lines.append(line)
        return {
            "format": 1,
            "weights": sum(t.weights for t in self.tensors),
            "zeros": sum(t.zeros for t in self.tensors),
            "tensors": lines,
            "left": [{"tensor": one.name, "reason": one.reason} for one in self.left],
            "onnxruntime_cpu": ONNXRUNTIME,
        }

    def brief(self) -> str:
        """Return the zeros of all weights, in a few words."""
        zeros, weights = sum(t.zeros for t in self.tensors), sum(t.weights for t in self.tensors)
        return f"{zeros:,} of {weights:,} weights in {len(self.tensors):,} tensors are zero"

    def show(self, stream: TextIO | None = None) -> None:
        """Print tables."""
        from onnxprune.report.table import share, show

        stream = printed_on(stream)
        rows = [
            [
                one.tensor,
                one.layers[0],
                "; ".join(
                    f"axis {a}: {', '.join(patterns)}" for a, patterns in one.patterns.items() if patterns
                )
                or "-",
                one.tensor_cores,
                "x".join(map(str, one.dims)),
                "-" if one.axis is None else str(one.axis),
                share(one.zeros, one.weights),
                share(one.sparse_initializer, one.bytes),
            ]
            for one in self.tensors
        ]
        head = ["weight", "layer", "patterns", "tensor cores", "dims", "inputs on axis", "zeros", "as sparse"]
        show(head, rows, stream=stream, left=4)
        if self.left:
            show(
                ["weight that stays dense", "reason"],
                [[o.name, o.reason] for o in self.left],
                stream=stream,
                left=2,
            )
        stream.write(f"{ONNXRUNTIME}\n")


def inspect_sparsity(source: Model) -> SparsityInspection:
    """Look at the weights of a model that a product contracts."""
    model = fold_computed(inline(source)).model
    targets, left = find(model)
    return SparsityInspection([_line(model, target) for target in targets], left)


def _line(model: Model, target: SparseWeight) -> TensorZeros:
    weight = np.asarray(model.weight(target.name))
    zero = target.zeros(weight)
    count = int(np.count_nonzero(zero))
    patterns = {axis: patterns_of(zero, axis) for axis in range(zero.ndim)}
    if target.layout.axis is not None:  # by group, where the axis runs over several
        patterns[target.layout.axis] = _held(target.layout.view(zero))
    sparse = int((weight.size - count) * (weight.dtype.itemsize + INDEX))
    return TensorZeros(
        target.name,
        [f"{r.name} ({r.op})" for r in target.readers],
        list(weight.shape),
        target.layout.axis,
        count,
        weight.size,
        patterns,
        _cores(target, _held(target.layout.view(zero))),
        sparse,
        model.info(target.name).nbytes,
    )


def _cores(target: SparseWeight, patterns: list[str]) -> str:
    why = tensor_cores(target)
    if why:
        return f"no: {why}"
    if not {"2:4", "1:4"} & set(patterns):
        return "no: 2:4 doesn't hold"
    return "yes" if useful(target) else "yes, too small to gain"


def patterns_of(zero: NDArray[np.bool_], axis: int) -> list[str]:
    """Return which N:M patterns hold along one axis of a stored weight.

    Examples
    --------
    >>> patterns_of(np.array([[True, False, True, False]] * 4), 1), patterns_of(np.eye(4) == 0, 1)
    (['2:4'], ['1:4', '2:4'])
    """
    moved = np.moveaxis(zero, axis, -1)
    return _held(moved.reshape(1, -1, zero.shape[axis], 1))


def _held(canonical: NDArray[np.bool_]) -> list[str]:
    lines = []
    for text in KNOWN:
        pattern = parse_pattern(text)
        if canonical.shape[2] % pattern.of == 0 and holds(pattern, canonical):
            lines.append(text)
    return lines
