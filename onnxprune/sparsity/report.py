"""What `onnxprune sparsify` did: a line for each weight, sizes in each form, and what it buys."""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, TextIO

import numpy as np

from onnxprune.model import Model
from onnxprune.options.pattern import parse_pattern
from onnxprune.permutation.permute import Permuted
from onnxprune.report import page
from onnxprune.report.known import known, say
from onnxprune.report.printing import printed_on
from onnxprune.report.record import Record
from onnxprune.sparsity.gains import ONNXRUNTIME, tensor_cores, useful
from onnxprune.sparsity.layer import LayerFit
from onnxprune.sparsity.masks import holds, tail
from onnxprune.sparsity.storage import StoredBytes, sizes_of
from onnxprune.sparsity.weights import Left, SparseWeight

__all__ = ["Line", "SparseReport", "line_of"]


@dataclass
class Line:
    """One weight.

    Attributes
    ----------
    tensor : str
    layers : list of str
        Those that read it, with their op.
    dims : list of int
    axis : int or None
        The one that is contracted; N:M groups lie along it.
    weights, zeros_before, zeros : int
    tail : str
        What stays dense because the pattern doesn't divide the weight; empty where nothing does.
    tensor_cores : str
        Why sparse tensor cores can't take it; empty where they can, if 2:4 holds.
    useful : bool
        Whether they would gain.
    two_four : bool
        Whether 2:4 holds along the contracted axis, in all of it.
    method : str
    sizes : StoredBytes
    fit : dict
        With samples: what the refit did.
    """

    tensor: str
    layers: list[str]
    dims: list[int]
    axis: int | None
    weights: int
    zeros_before: int
    zeros: int
    tail: str
    tensor_cores: str
    useful: bool
    two_four: bool
    method: str
    sizes: StoredBytes
    fit: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        values = {k: v for k, v in vars(self).items() if k not in ("sizes", "fit", "tensor_cores")}
        values["tensor_cores"] = {"eligible": not self.tensor_cores, "why_not": self.tensor_cores}
        values["bytes"] = vars(self.sizes)
        return values | ({"fit": self.fit} if self.fit else {})


@dataclass(repr=False)
class SparseReport(Record):
    """What was done; what it has of its run in common with other reports is in `Record`.

    Attributes
    ----------
    pattern : str
    lines : list of Line
    left : list of Left
        Weights that stay as they are, each with its reason.
    bytes_before, bytes_after : int
        Of the files.
    sparse : list of str
        Weights that were written as sparse_initializer.
    fits : dict
        With samples: weight -> what was done to the layer that reads it.
    calibration : dict or None
    order : Permuted or None
        With ``--permute``: which groups have another order.
    """

    pattern: str
    lines: list[Line] = field(default_factory=list)
    left: list[Left] = field(default_factory=list)
    bytes_before: int = 0
    bytes_after: int = 0
    sparse: list[str] = field(default_factory=list)
    calibration: dict[str, Any] | None = None
    fits: dict[str, LayerFit] = field(default_factory=dict)
    order: Permuted | None = None

    @property
    def zeros(self) -> int:
        """Zeros of all treated weights."""
        return sum(line.zeros for line in self.lines)

    @property
    def weights(self) -> int:
        """Values of all treated weights."""
        return sum(line.weights for line in self.lines)

    def brief(self) -> str:
        """Return the share of zeros, in a few words."""
        share = self.zeros / self.weights if self.weights else 0.0
        return self.named(f"{share:.1%} of {self.weights:,} weights are zero ({self.pattern})")

    def bytes_in(self, form: str) -> int:
        """Return the size of the model with the treated weights in a form of `StoredBytes`.

        Weights that the form makes larger, or that can't have it, are counted dense.
        """
        written = [line.sizes for line in self.lines if line.tensor in self.sparse]
        dense = self.bytes_after + sum(sizes.dense - sizes.sparse for sizes in written)
        saved = 0
        for line in self.lines:
            size = getattr(line.sizes, form)
            saved += max(line.sizes.dense - size, 0) if size is not None else 0
        return dense - saved

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain JSON values."""
        return {
            "format": 1,
            "pattern": self.pattern,
            "weights": self.weights,
            "zeros": self.zeros,
            "tensors": [line.to_json() for line in self.lines],
            "left": [{"tensor": one.name, "reason": one.reason} for one in self.left],
            "bytes": {"before": self.bytes_before, "after": self.bytes_after},
            "bytes_in": {form: self.bytes_in(form) for form in ("compressed", "sparse", "two_four")},
            "sparse_initializers": self.sparse,
            "speed": {"onnxruntime_cpu": ONNXRUNTIME, "sparse_tensor_cores": self._cores()},
            "notes": self.notes,
            **({} if self.order is None else {"order": self.order.to_json()}),
            **({} if self.calibration is None else {"calibration": self.calibration}),
            **self.run_facts(),
        }

    def page(self) -> str:
        """Return the report as a page to look at."""
        return page.render_zeros(self.to_json())

    def _cores(self) -> str:
        ready = [line for line in self.lines if line.two_four and not line.tensor_cores]
        if not ready:
            return "Sparse tensor cores (2:4) can use none of the weights."
        large = sum(line.useful for line in ready)
        return (
            f"Sparse tensor cores (2:4) can use {len(ready)} of {len(self.lines)} weights; {large} of them have at "
            "least 256 inputs and outputs, where a gain is to be expected."
        )

    def show(self, stream: TextIO | None = None) -> None:
        """Print the table of weights and what they buy."""
        from onnxprune.report.table import amount, share, show

        stream = printed_on(stream)
        head = ["weight", "layer", "tensor cores", "axis", "weights", "zeros"]
        rows = [
            [
                line.tensor,
                line.layers[0] + (f" and {len(line.layers) - 1} more" if len(line.layers) > 1 else ""),
                _verdict(line),
                "-" if line.axis is None else str(line.axis),
                amount(line.weights),
                share(line.zeros, line.weights),
            ]
            for line in self.lines
        ]
        show(head, rows, stream=stream, left=3)
        dense = self.bytes_before
        forms = [
            ["file", amount(dense), amount(self.bytes_after), share(self.bytes_after, dense)],
            *(
                [label, "", amount(self.bytes_in(form)), share(self.bytes_in(form), dense)]
                for label, form in (
                    ("with weights compressed (zlib)", "compressed"),
                    ("with sparse_initializer", "sparse"),
                    ("with 2:4 values and 2-bit places", "two_four"),
                )
            ),
        ]
        show(["bytes", "before", "after", "of before"], forms, stream=stream)
        if self.zeros:
            say(known(self.calibration, "sparsify"), stream)
        stream.writelines(f"{line}\n" for line in self.text())

    def text(self) -> list[str]:
        """Return what the tables don't say, a sentence a line."""
        share = self.zeros / max(self.weights, 1)
        lines = [
            f"zeros: {share:.1%} of {self.weights:,} weights in {len(self.lines)} tensors, {self.pattern}"
        ]
        lines += [f"dense tail: {line.tensor}: {line.tail}" for line in self.lines if line.tail]
        reasons = Counter(one.reason for one in self.left)
        lines += [f"left dense: {count} x {reason}" for reason, count in reasons.most_common(6)]
        lines += [] if self.order is None else self.order.text(self.pattern)
        if self.calibration is not None:
            lines.append(f"fitted on {self.calibration['samples']:,} samples")
        lines += [f"note: {note}" for note in self.notes]
        return [*lines, self._cores(), ONNXRUNTIME]


def line_of(target: SparseWeight, before: Model, after: Model, report: SparseReport, method: str) -> Line:
    """Return the line of a weight that was treated."""
    weight = np.asarray(after.weight(target.name))
    zero = target.zeros(weight)
    fit, pattern = report.fits.get(target.name), parse_pattern(report.pattern)
    two_four = target.shape[2] % 4 == 0 and holds(parse_pattern("2:4"), target.layout.view(zero))
    count = int(np.count_nonzero(zero))
    rest, names = tail(pattern, target.shape), ("outputs", "inputs")
    parts = [f"the last {rest[i]} of {target.shape[1 + i]} {names[i]}" for i in (0, 1) if rest[i]]
    return Line(
        target.name,
        [f"{r.name} ({r.op})" for r in target.readers],
        list(weight.shape),
        target.layout.axis,
        weight.size,
        int(np.count_nonzero(target.zeros(np.asarray(before.weight(target.name))))),
        count,
        ", ".join(parts),
        tensor_cores(target),
        useful(target),
        two_four,
        method if fit or not report.fits else "magnitude",
        sizes_of(weight, target.elem_type, count, two_four),
        {} if fit is None else dataclasses.asdict(fit),
    )


def _verdict(line: Line) -> str:
    if line.tensor_cores:
        return f"no: {line.tensor_cores}"
    if not line.two_four:
        return "no: 2:4 doesn't hold"
    return "yes" if line.useful else "yes, too small to gain"
