"""onnxsim's structured pruning of one file: `python benchmarks/zoo/rival.py IN OUT RATIO` (needs onnxsim >= 0.8)."""

from __future__ import annotations

import sys

import onnx
from onnxsim.pruning import apply_structured_pruning

if __name__ == "__main__":
    source, target, ratio = sys.argv[1:]
    onnx.save(apply_structured_pruning(onnx.load(source), sparsity=float(ratio)), target)
