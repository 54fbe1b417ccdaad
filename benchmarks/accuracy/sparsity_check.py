"""What NVIDIA's checker says of our 2:4.

    python benchmarks/accuracy/sparsity_check.py --polygraphy PATH FILE_OR_FOLDER...

Each model is sparsified by magnitude, and ``polygraphy inspect sparsity`` reads the result. A line for each: weights
that we treated, that the checker calls sparse, that it calls non-sparse; and of the latter those that we had treated
(there must be none) and those that we left dense on purpose, with our reason. ``--wrong-axis`` is the control: groups
of four along the outputs, at which the checker must say no.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

import onnxprune
from onnxprune.errors import OnnxPruneError


def called(polygraphy: str, path: Path) -> tuple[set[str], set[str]]:
    """Return the tensors that the checker calls sparse, and those that it calls non-sparse."""
    done = subprocess.run(
        [polygraphy, "inspect", "sparsity", str(path)], capture_output=True, text=True, check=True
    )
    text = done.stdout + done.stderr
    return (
        set(re.findall(r"Found sparse tensor: (.+)", text)),
        set(re.findall(r"Found non-sparse tensor: (.+)", text)),
    )


def wrong(path: Path) -> None:
    """Put the zeros of every weight along the other axis."""
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        if len(tensor.dims) in (2, 4) and all(d % 4 == 0 for d in tensor.dims[:2]):
            array = numpy_helper.to_array(tensor)
            axis = 0 if len(tensor.dims) == 4 else int(np.argmax(tensor.dims))
            values = np.random.default_rng(0).standard_normal(array.shape).astype(array.dtype)
            index = np.arange(array.shape[axis]).reshape(-1, *([1] * (array.ndim - 1 - axis)))
            tensor.CopyFrom(numpy_helper.from_array(np.where(index % 4 < 2, 0, values), tensor.name))
    onnx.save(model, path)


def models(paths: list[Path]) -> Iterator[Path]:
    for path in paths:
        yield from sorted(path.glob("*.onnx")) if path.is_dir() else [path]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("paths", nargs="+", type=Path)
    parser.add_argument("--polygraphy", default="polygraphy")
    parser.add_argument("--wrong-axis", action="store_true")
    args = parser.parse_args()
    print(
        "| model | treated | sparse | non-sparse | treated but non-sparse | left dense, non-sparse |\n|"
        + "---|" * 6
    )
    bad = 0
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "sparse.onnx")
        for path in models(args.paths):
            try:
                report = onnxprune.sparsify(path, out, pattern="2:4").report
                if args.wrong_axis:
                    wrong(out)
                yes, no = called(args.polygraphy, out)
            except (OnnxPruneError, subprocess.CalledProcessError) as error:
                print(f"| {path.stem} | {' '.join(str(error).split())[:120]} | | | | |", flush=True)
                continue
            treated = {line.tensor for line in report.lines if not line.tail}
            left = {one.name: one.reason for one in report.left}
            missed = sorted(no & treated)
            bad += len(missed)
            reasons = "; ".join(sorted({left.get(name, "not listed") for name in no - treated}))
            cells = [path.stem, len(treated), len(yes), len(no), missed or 0, reasons]
            print("| " + " | ".join(str(c) for c in cells) + " |", flush=True)
    print(f"{bad} treated weights are called non-sparse")


if __name__ == "__main__":
    main()
