"""Does a tensor hold as much data as its dimensions say? Libraries read past its end, if not."""

from __future__ import annotations

import math
from collections.abc import Sequence

import onnx

from onnxprune.errors import ModelError
from onnxprune.files import payload
from onnxprune.files.external import is_external

__all__ = ["MOST_DENSE", "MOST_DIMS", "check_dense", "check_size"]

MOST_DIMS = 64  # numpy's limit
MOST_DENSE = 2**32  # values of a sparse tensor when made dense, as onnxruntime does

_T = onnx.TensorProto
_FLOAT, _DOUBLE = (_T.FLOAT, _T.COMPLEX64), (_T.DOUBLE, _T.COMPLEX128)


def _typed(tensor: onnx.TensorProto) -> tuple[int, int]:
    """Entries that a tensor has in the typed field of its element type, and entries that it needs."""
    kind, count = tensor.data_type, math.prod(tensor.dims)
    if kind == _T.STRING:
        return len(tensor.string_data), count
    if kind in _FLOAT:
        return len(tensor.float_data), count * (1 + (kind == _T.COMPLEX64))
    if kind in _DOUBLE:
        return len(tensor.double_data), count * (1 + (kind == _T.COMPLEX128))
    if kind == _T.INT64:
        return len(tensor.int64_data), count
    if kind in (_T.UINT32, _T.UINT64):
        return len(tensor.uint64_data), count
    packed = {2: 4, 4: 2}.get(payload.bits(kind), 1)  # 6 bits aren't packed in int32_data
    return len(tensor.int32_data), -(-count // packed)


def _shown(dims: Sequence[int]) -> str:
    return "x".join(map(str, dims[:8])) + ("..." if len(dims) > 8 else "") if dims else "a scalar"


def check_size(tensor: onnx.TensorProto, what: object, detached: int | None = None) -> int:
    """Check the dimensions of a tensor against its data.

    Parameters
    ----------
    tensor : onnx.TensorProto
    what : object
        The tensor, for a message.
    detached : int, optional
        Bytes of its data, where that isn't in the proto.

    Returns
    -------
    int
        Bytes that its data takes in storage; 0 for strings.

    Raises
    ------
    ModelError
        If they differ, or if the element type is unknown.
    """
    dims, kind = tuple(tensor.dims), tensor.data_type
    shown = _shown(dims)
    if len(dims) > MOST_DIMS or any(dim < 0 for dim in dims):
        raise ModelError(
            f"The dimensions of {what} are {shown}; there may be at most {MOST_DIMS}, none negative."
        )
    if (
        0 in dims and math.prod(dim for dim in dims if dim) >= 2**31
    ):  # a zero among them doesn't help libraries that multiply
        raise ModelError(
            f"The dimensions of {what} are {shown}, which no tensor has; the file is damaged or hostile."
        )
    here = not is_external(tensor) and detached is None
    if kind == _T.UNDEFINED and here and not tensor.HasField("raw_data"):
        return 0  # an attribute that was never set
    if kind != _T.STRING and not payload.known_type(kind):
        raise ModelError(
            f"The element type of {what} is {kind}, which the installed onnx {onnx.__version__} "
            "doesn't know; update onnx, or export the model again."
        )
    need = 0 if kind == _T.STRING else payload.nbytes(dims, kind)
    if is_external(tensor):
        if kind == _T.STRING or tensor.HasField("raw_data"):
            reason = "strings must not be" if kind == _T.STRING else "it also has data of its own"
            raise ModelError(
                f"The data of {what} is said to be external, but {reason}; export the model again."
            )
        return need  # compared with the file where it's mapped
    if detached is not None or (tensor.HasField("raw_data") and (tensor.raw_data or need)):
        have, unit = len(tensor.raw_data) if detached is None else detached, "bytes"
        wanted = need
    else:
        (have, wanted), unit = _typed(tensor), "values"
    if have != wanted:
        name = _T.DataType.Name(kind)
        raise ModelError(
            f"The dimensions of {what} ({shown}, {name}) need {wanted} {unit}, but it holds "
            f"{have}; the file is damaged or was made by a faulty tool."
        )
    return need


def check_dense(dims: Sequence[int], what: object) -> None:
    """Check that a sparse tensor isn't a bomb.

    Parameters
    ----------
    dims : sequence of int
        When made dense.
    what : object
        The tensor, for a message.

    Raises
    ------
    ModelError
        If it has more than `MOST_DENSE` values, or dimensions that none can have.
    """
    if len(dims) > MOST_DIMS or any(dim < 0 for dim in dims) or math.prod(dims) > MOST_DENSE:
        raise ModelError(
            f"The tensor of {what} would be {_shown(dims)} when made dense, but at most "
            f"{MOST_DENSE:,} values are accepted; the file is damaged or hostile."
        )
