"""onnxsim's zeros, of one file.

    python benchmarks/accuracy/sparsity_rival.py IN OUT METHOD PATTERN SPARSITY [--calib NPZ --samples N]

METHOD is magnitude, wanda or sparsegpt, PATTERN N:M or unstructured. Needs onnxsim >= 0.8.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import onnx
import onnxsim


def batches(path: str, samples: int) -> list[dict[str, Any]]:
    """The first samples, in batches of 64."""
    with np.load(path) as file:
        arrays = {n: file[n][:samples] for n in file.files}
    count = min(len(a) for a in arrays.values())
    return [{n: a[i : i + 64] for n, a in arrays.items()} for i in range(0, count, 64)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("source", "target", "method", "pattern"):
        parser.add_argument(name)
    parser.add_argument("sparsity", type=float)
    parser.add_argument("--calib")
    parser.add_argument("--samples", type=int, default=512)
    args = parser.parse_args()
    model, more = onnx.load(args.source), {"sparsity": args.sparsity}
    if ":" in args.pattern:
        keep, of = (int(n) for n in args.pattern.split(":"))
        more |= {"n": keep, "m": of}
    if args.method == "magnitude":
        found = onnxsim.apply_magnitude_pruning(model, **more)
    else:
        data = batches(args.calib, args.samples)
        found = getattr(onnxsim, f"apply_{args.method}_pruning")(model, data, **more)
    onnx.save(found, args.target)


if __name__ == "__main__":
    main()
