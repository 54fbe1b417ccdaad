"""Bytes that a weight takes in each form, and the form of ONNX that leaves zeros out."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxprune.files.payload import encode, nbytes
from onnxprune.model import Model
from onnxprune.sparsity.weights import SparseWeight

__all__ = ["CANT_READ", "INDEX", "StoredBytes", "sizes_of", "to_sparse"]

Array = NDArray[Any]
INDEX = 8  # bytes of an index in a SparseTensorProto
#: Bytes that are compressed to tell how well it works; of a larger weight, pieces spread over it.
SAMPLE, PIECE = 1 << 18, 1 << 14
#: What fails on a sparse_initializer (measured with onnx 1.23, onnx-ir 1.1).
CANT_READ = "strict shape inference, the version converter and the reference evaluator of onnx, and onnx-ir"


@dataclass(frozen=True)
class StoredBytes:
    """Bytes of one weight.

    Attributes
    ----------
    dense : int
    compressed : int
        By zlib at level 6, as in .gz and .zip; from a sample where ``sampled``.
    sparse : int
        Values and indices of a SparseTensorProto.
    two_four : int or None
        Two values of four with two bits each for their places; None where 2:4 doesn't hold.
    sampled : bool
    """

    dense: int
    compressed: int
    sparse: int
    two_four: int | None
    sampled: bool


def sizes_of(weight: Array, elem_type: int, zeros: int, two_four: bool) -> StoredBytes:
    """Return what a weight takes.

    Parameters
    ----------
    weight : array
    elem_type : int
        ONNX's.
    zeros : int
        Of its values.
    two_four : bool
        Whether 2:4 holds for all of it.
    """
    dense = nbytes(weight.shape, elem_type)
    data = encode(weight, elem_type).data
    sampled = len(data) > SAMPLE
    if sampled:
        step = len(data) // (SAMPLE // PIECE) // 64 * 64
        data = memoryview(b"".join(data[i : i + PIECE] for i in range(0, len(data) - PIECE, step)))
    packed = len(zlib.compress(data, 6)) * dense // max(len(data), 1)
    item = dense / max(weight.size, 1)
    half = dense // 2 + -(-weight.size // 8) if two_four else None
    return StoredBytes(dense, packed, int((weight.size - zeros) * (item + INDEX)), half, sampled)


def to_sparse(model: Model, targets: list[SparseWeight]) -> list[str]:
    """Turn float initializers into sparse ones where that is smaller; return their names.

    Values whose zero is another number than 0 (quantised weights) stay dense.
    """
    names = []
    for target in targets:
        info = model.info(target.name)
        if info.kind != "initializer" or target.zero is not None:
            continue
        weight = np.asarray(model.weight(target.name))
        flat = weight.ravel()
        index = np.flatnonzero(flat)
        if (len(flat) - len(index)) == 0 or index.nbytes + index.size * flat.itemsize >= info.nbytes:
            continue
        sparse = onnx.SparseTensorProto(dims=weight.shape)
        sparse.values.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(flat[index]), target.name))
        sparse.indices.CopyFrom(onnx.numpy_helper.from_array(index.astype(np.int64)))
        model.drop(target.name)
        model.proto.graph.sparse_initializer.append(sparse)
        names.append(target.name)
    return names
