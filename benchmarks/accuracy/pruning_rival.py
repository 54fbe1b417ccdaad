"""onnxsim's structured pruning with data, of one file.

    python benchmarks/accuracy/pruning_rival.py IN OUT SPARSITY... [--calib NPZ]

Needs onnxsim >= 0.8. Channels of layers and heads of attention are removed at the same sparsity. With ``--calib`` they
are ranked by Wanda's metric on the samples, and the layers are refitted (``apply_pruning_finetune``); without, by the
norm of weights: the same counts go, which is enough to count MACs. Of several sparsities there are OUT.0, OUT.1, ...
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import onnx
import onnxsim


def batches(model: onnx.ModelProto, path: str, samples: int | None) -> list[dict[str, Any]]:
    """The first samples, in batches of the size that the model takes."""
    with np.load(path) as file:
        arrays = {n: file[n] for n in file.files}
    shape = model.graph.input[0].type.tensor_type.shape.dim
    fixed = shape[0].dim_value if shape else 0
    count = min(min(len(a) for a in arrays.values()), samples or 1 << 60)
    size = fixed or min(64, count)
    return [{n: a[i : i + size] for n, a in arrays.items()} for i in range(0, count - size + 1, size)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source")
    parser.add_argument("target")
    parser.add_argument("sparsity", type=float, nargs="+")
    parser.add_argument("--calib")
    parser.add_argument("--samples", type=int)
    args = parser.parse_args()
    data = batches(onnx.load(args.source), args.calib, args.samples) if args.calib else None
    for n, sparsity in enumerate(args.sparsity):
        small = prune(onnx.load(args.source), sparsity, data)
        if data is not None:
            small = onnxsim.apply_pruning_finetune(onnx.load(args.source), small, data)
        onnx.save(small, args.target if len(args.sparsity) == 1 else f"{args.target}.{n}")


def prune(model: onnx.ModelProto, sparsity: float, data: list[dict[str, Any]] | None) -> onnx.ModelProto:
    if data is None:
        small = onnxsim.apply_structured_pruning(model, sparsity=sparsity)
        return onnxsim.apply_attention_head_pruning(small, sparsity=sparsity)
    small = onnxsim.apply_structured_wanda_pruning(model, data, sparsity=sparsity)
    return onnxsim.apply_attention_head_wanda_pruning(small, data, sparsity=sparsity)


if __name__ == "__main__":
    main()
