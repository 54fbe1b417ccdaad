"""onnxsim's structured pruning with data, of one file: `python accuracy_rival.py IN OUT SPARSITY [--calib NPZ]`.

Needs onnxsim >= 0.8. Channels of layers and heads of attention are removed at the same sparsity. With ``--calib`` they
are ranked by Wanda's metric on the samples, and the layers are refitted (``apply_pruning_finetune``); without, by the
norm of weights: the same counts go, which is enough to count MACs.
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
    parser.add_argument("sparsity", type=float)
    parser.add_argument("--calib")
    parser.add_argument("--samples", type=int)
    args = parser.parse_args()
    model = onnx.load(args.source)
    if args.calib is None:
        small = onnxsim.apply_structured_pruning(model, sparsity=args.sparsity)
        small = onnxsim.apply_attention_head_pruning(small, sparsity=args.sparsity)
    else:
        data = batches(model, args.calib, args.samples)
        small = onnxsim.apply_structured_wanda_pruning(model, data, sparsity=args.sparsity)
        small = onnxsim.apply_attention_head_wanda_pruning(small, data, sparsity=args.sparsity)
        small = onnxsim.apply_pruning_finetune(onnx.load(args.source), small, data)
    onnx.save(small, args.target)


if __name__ == "__main__":
    main()
