"""Can a node be what it says, given what is known of its inputs? Asked before a library computes anything with it.

Shape inference and onnxruntime read past the end of arrays, divide by zero or allocate without end for attributes and
constants that no sound node has. The checks are the same for all ops, by the names of attributes: ONNX uses a
name for one thing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.files import payload
from onnxprune.runtime.binding import Shape

__all__ = ["element_size", "implausible", "out_of_reach", "without_any"]


#: Attributes that count an axis of the first input (or of an output with one axis more).
_AXES = frozenset({"axis", "axes", "batch_axis", "time_axis", "perm"})
#: Attributes that count something there is at least one of.
_POSITIVE = frozenset({"strides", "dilations", "kernel_shape", "blocksize", "group", "num_outputs", "hidden_size", "k",
                       "block_size", "num_groups", "q_num_heads", "kv_num_heads", "num_heads"})  # fmt: skip
#: Those in which a zero says that it isn't given.
_NOT_GIVEN = frozenset({("RotaryEmbedding", "num_heads"), ("QMoE", "block_size")})
#: No size, step, pad or index is beyond this.
_MOST = 2**31 - 1
#: Attributes that may be any integer.
_FREE = frozenset({"value_int", "value_ints", "seed", "starts", "ends", "start", "end", "to", "cats_int64s",
                   "keys_int64s", "values_int64s", "default_int64", "classlabels_int64s", "default_value"})  # fmt: skip
_EINSUM = re.compile(r"[A-Za-z., ]*(->[A-Za-z. ]*)?")


def implausible(
    op: str, attrs: Mapping[str, Any], shapes: Sequence[Shape | None], outputs: int,
    values: Sequence[NDArray[Any] | None],
) -> str:  # fmt: skip
    """Return what is wrong with a node of ONNX's own domain, empty where nothing is.

    Parameters
    ----------
    op : str
    attrs : mapping
        Attributes as Python values.
    shapes : sequence
        Of the inputs, None where absent or unknown.
    outputs : int
        How many outputs are named.
    values : sequence
        Of inputs that are known before the model runs.
    """
    rank = len(shapes[0]) if shapes and shapes[0] is not None else None
    for name, value in attrs.items():
        numbers = value if isinstance(value, list) else [value]
        if name in _FREE or not numbers or not all(isinstance(n, int) for n in numbers):
            continue
        if any(abs(n) > _MOST for n in numbers):
            return f"its attribute {name!r} is {_shown(numbers)}"
        if (
            name in _AXES
            and rank is not None
            and not all(-rank - 1 <= n <= rank + len(numbers) for n in numbers)
        ):
            return f"its attribute {name!r} is {_shown(numbers)}, but its input has {rank} axes"
    special = _SPECIAL.get(op)
    return without_any(op, attrs) or (special(attrs, shapes, outputs, values) if special is not None else "")


def without_any(op: str, attrs: Mapping[str, Any]) -> str:
    """Return which attribute of a node, of ONNX's domain or onnxruntime's, counts none of what there must be."""
    for name in sorted(attrs.keys() & _POSITIVE):
        numbers = attrs[name] if isinstance(attrs[name], list) else [attrs[name]]
        if not numbers or not all(isinstance(n, int) for n in numbers) or (op, name) in _NOT_GIVEN:
            continue
        if min(numbers) < 1:
            return f"its attribute {name!r} is {_shown(numbers)}, but must be above 0"
    return ""


def out_of_reach(
    op: str, attrs: Mapping[str, Any], shapes: Sequence[Shape | None], index: NDArray[Any] | None
) -> str:
    """Return what is wrong with known indices of a Gather, at these sizes; empty where nothing is."""
    data = shapes[0] if shapes else None
    axis = attrs.get("axis", 0)
    if op not in ("Gather", "GatherElements") or data is None or index is None or not index.size:
        return ""
    if index.dtype.kind not in "iu" or not -len(data) <= axis < len(data):
        return ""
    low, high, size = int(index.min()), int(index.max()), data[axis]
    return "" if -size <= low and high < size else f"its indices {low} to {high} don't fit an axis of {size}"


@cache
def element_size(elem: int) -> float:
    """Return the bytes of one value of an element type; 1 where it is unknown."""
    return payload.bits(elem) / 8 if payload.known_type(elem) else 1.0


def _shown(numbers: Sequence[int]) -> str:
    return str(numbers[0]) if len(numbers) == 1 else f"[{', '.join(map(str, numbers[:6]))}]"


def _batch_dims(attrs: Any, shapes: Any, outputs: int, values: Any) -> str:
    number = attrs.get("batch_dims", 0)
    ranks = [len(s) for s in shapes[:2] if s is not None]
    if number < 0 or any(number >= rank for rank in ranks):
        return f"its attribute 'batch_dims' is {number}, but its inputs have {' and '.join(map(str, ranks))} axes"
    return ""


def _split(attrs: Any, shapes: Any, outputs: int, values: Any) -> str:
    number = attrs.get("num_outputs", outputs)
    return (
        "" if outputs <= number else f"it has {outputs} outputs, but its attribute 'num_outputs' is {number}"
    )


def _einsum(attrs: Any, shapes: Any, outputs: int, values: Any) -> str:
    equation = str(attrs.get("equation", ""))
    if not _EINSUM.fullmatch(equation):
        return f"its equation {equation!r} isn't made of letters, commas and an arrow"
    terms = equation.partition("->")[0].split(",")
    if len(terms) != len(shapes):
        return f"its equation has {len(terms)} terms, but it has {len(shapes)} inputs"
    for term, shape in zip(terms, shapes, strict=True):
        letters = len(re.sub(r"[. ]", "", term))
        if shape is not None and (letters > len(shape) or (letters < len(shape) and "..." not in term)):
            return f"the term {term.strip()!r} of its equation doesn't fit an input of {len(shape)} axes"
    return ""


def _divisor(attrs: Any, shapes: Any, outputs: int, values: Any) -> str:
    a, b = (values[n] if n < len(values) else None for n in (0, 1))
    if b is None or b.dtype.kind not in "iu":
        return ""
    if b.size and not b.all() and not attrs.get("fmod", 0):
        return "it divides integers by 0"
    if a is not None and a.dtype.kind == "i" and (b == -1).any() and (a == np.iinfo(a.dtype).min).any():
        return "it divides the least integer by -1, whose result is no integer of that type"
    return ""


def _heads(attrs: Any, shapes: Any, outputs: int, values: Any) -> str:
    flat = bool(shapes) and shapes[0] is not None and len(shapes[0]) == 3
    return "its attribute 'num_heads' must be above 0" if flat and attrs.get("num_heads", 0) < 1 else ""


def _frames(attrs: Any, shapes: Any, outputs: int, values: Any) -> str:
    for slot, what in ((1, "step"), (3, "length")):
        value = values[slot] if slot < len(values) else None
        if value is not None and value.size and not 1 <= int(np.ravel(value)[0]) <= _MOST:
            return f"the {what} of its frames is {int(np.ravel(value)[0])}"
    return ""


_SPECIAL = {"GatherND": _batch_dims, "Split": _split, "Einsum": _einsum, "Div": _divisor, "Mod": _divisor,
            "STFT": _frames, "RotaryEmbedding": _heads}  # fmt: skip
