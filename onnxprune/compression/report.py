"""What `onnxprune compress` did: a line for each weight, and the file's size on disk, packed and in memory."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, TextIO

from onnxprune.report import page
from onnxprune.report.known import known, say
from onnxprune.report.record import Facts, Record
from onnxprune.report.table import amount, share, show
from onnxprune.sparsity.weights import Left

__all__ = ["CompressReport", "Unpacked"]

#: What is true of every result, so that no size is taken for another.
MEMORY = (
    "onnxruntime computes the floats of the weights when it opens the model: in memory, and in time for each run, it "
    "is as the input."
)


@dataclass(kw_only=True, repr=False)
class CompressReport(Record):
    """What was done; what it has of its run in common with other reports is in `Record`.

    Attributes
    ----------
    form : str
        ``onnx`` or ``zst``.
    bytes_before, bytes_model, bytes_after : int
        Of the input's files, of the model that is written or packed, and of the file that is written.
    budget : float or None
        Bytes that the file may take.
    lines : list of dict
        Of each weight on a grid: ``tensor``, ``layer``, ``dims``, ``weights``, ``zeros``, ``levels`` (from the least to
        the greatest), ``bits`` of a value as stored, ``entropy`` (bits that a value takes coded, at best),
        ``bytes_before``, ``bytes_stored``, ``bytes_coded`` (alone; None where it isn't, or too large), ``fitted``,
        ``loss``.
    left : list of Left
        Weights that stay as they are, each with its reason.
    curve : list of dict
        ``bytes`` of the file and the sum of all losses that was expected, ``loss``, for several budgets.
    calibration : dict or None
    latency : dict or None
        With ``--check-speed``: the times of a run before and after, the ratio and its 95 % interval.
    """

    form: str
    bytes_before: int
    bytes_model: int = 0
    bytes_after: int = 0
    budget: float | None = None
    lines: list[dict[str, Any]] = field(default_factory=list)
    left: list[Left] = field(default_factory=list)
    curve: list[dict[str, float]] = field(default_factory=list)
    calibration: dict[str, Any] | None = None
    latency: dict[str, Any] | None = None

    @property
    def zeros(self) -> int:
        """Zeros of all weights on grids."""
        return sum(line["zeros"] for line in self.lines)

    @property
    def weights(self) -> int:
        """Values of all weights on grids."""
        return sum(line["weights"] for line in self.lines)

    def brief(self) -> str:
        """Return how much smaller the file is, in a few words."""
        return self.named(f"{self.bytes_before / max(self.bytes_after, 1):.1f} times smaller ({self.form})")

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "format": 1,
            "form": self.form,
            "bytes": {
                "before": self.bytes_before,
                "model": self.bytes_model,
                "after": self.bytes_after,
                "budget": self.budget,
            },
            "ratio": round(self.bytes_before / max(self.bytes_after, 1), 3),
            "weights": self.weights,
            "zeros": self.zeros,
            "tensors": self.lines,
            "left": [{"tensor": one.name, "reason": one.reason} for one in self.left],
            "curve": self.curve,
            "memory": MEMORY,
            "notes": self.notes,
            **({} if self.calibration is None else {"calibration": self.calibration}),
            **({} if self.latency is None else {"latency": self.latency}),
            **self.run_facts(),
        }

    def page(self) -> str:
        """Return the report as a page to look at."""
        return page.render_compressed(self.to_json())

    def show(self, stream: TextIO | None = None) -> None:
        """Print the table of weights, and the sizes."""
        stream = stream or sys.stdout
        head = ["weight", "layer", "weights", "zeros", "bits stored", "bits coded", "bytes", "loss"]
        rows = [
            [
                line["tensor"],
                line["layer"],
                amount(line["weights"]),
                share(line["zeros"], line["weights"]),
                f"{line['bits']:.3g}",
                f"{line['entropy']:.2f}",
                amount(line["bytes_coded"] or line["bytes_stored"]),
                f"{line['loss']:.3g}",
            ]
            for line in self.lines
        ]
        if rows:
            show(head, rows, stream=stream, left=2)
        sizes = [
            [
                "the model, on disk",
                amount(self.bytes_before),
                amount(self.bytes_model),
                share(self.bytes_model, self.bytes_before),
            ]
        ]
        if self.form == "zst":
            sizes.append(
                [
                    "the packed file, in transfer",
                    "",
                    amount(self.bytes_after),
                    share(self.bytes_after, self.bytes_before),
                ]
            )
        show(["bytes", "before", "after", "of before"], sizes, stream=stream)
        if self.lines:
            say(known(self.calibration, "compress"), stream)
        stream.writelines(f"{line}\n" for line in self.text())

    def text(self) -> list[str]:
        """Return what the tables don't say, a sentence a line."""
        before, after = self.bytes_before, max(self.bytes_after, 1)
        lines = [f"the file is {before / after:.1f} times smaller"]
        if self.lines:
            lines.append(
                f"zeros: {self.zeros / max(self.weights, 1):.1%} of {self.weights:,} weights in {len(self.lines)} "
                "tensors"
            )
        if self.latency is not None:
            low, high = self.latency["interval"]
            lines.append(
                f"a run takes {1 / self.latency['ratio']:.2f} of the input's time here "
                f"({1 / high:.2f} to {1 / low:.2f})"
            )
        reasons = Counter(one.reason for one in self.left)
        lines += [f"left as they are: {count} x {reason}" for reason, count in reasons.most_common(6)]
        lines += [f"note: {note}" for note in self.notes]
        return [*lines, MEMORY] if self.lines else lines


@dataclass(repr=False)
class Unpacked(Facts):
    """What `onnxprune decompress` has written.

    Attributes
    ----------
    files : list of dict
        ``name``, ``bytes`` and ``sha256`` of each, the model first.
    """

    files: list[dict[str, Any]]

    def brief(self) -> str:
        """Return how many files, and bytes, in a few words."""
        total = sum(one["bytes"] for one in self.files)
        return f"{len(self.files)} files of {total:,} bytes, as they were packed"

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {"format": 1, "files": self.files}

    def show(self, stream: TextIO | None = None) -> None:
        """Print a line for each file."""
        stream = stream or sys.stdout
        for one in self.files:
            stream.write(f"{one['name']}: {one['bytes']:,} bytes, sha256 {one['sha256']} as recorded\n")
