"""What zeros buy in each runtime, said before anyone is disappointed."""

from __future__ import annotations

from onnxprune.ops import Trait, traits_of
from onnxprune.sparsity.weights import SparseWeight

__all__ = ["ONNXRUNTIME", "tensor_cores", "useful"]

ONNXRUNTIME = "onnxruntime on the CPU gets no speed-up from zeros, in any pattern and at any sparsity."
#: From this many inputs and outputs on sparse tensor cores pay.
WORTH = 256


def tensor_cores(target: SparseWeight) -> str:
    """Return why sparse tensor cores can't take a weight; empty where they can.

    Their rule is 2:4 along the contracted axis of Conv (at each kernel position), Gemm and MatMul.
    """
    blocks, _, inputs, _ = target.shape
    ops = {r.op for r in target.readers}
    if not all(Trait.GEMM in traits_of(r.op, r.domain) for r in target.readers):
        return f"{', '.join(sorted(ops))} isn't among Conv, Gemm and MatMul"
    if any(r.group > 1 for r in target.readers):
        return "a grouped convolution"
    if inputs % 4:
        return f"{inputs} inputs are no multiple of 4"
    if blocks > 1:
        return "a batch of matrices"
    return ""


def useful(target: SparseWeight) -> bool:
    """Whether a layer that sparse tensor cores can take is large enough to gain."""
    _, outputs, inputs, _ = target.shape
    return not tensor_cores(target) and min(outputs, inputs) >= WORTH
