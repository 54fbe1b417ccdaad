"""Negative controls: rows and emitters that are wrong on purpose must be found, by the kit and by the engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from onnx import helper

from onnxprune.ops import EMITTERS, TABLE, Map, Row
from onnxprune.testing.op_law import check_op

from .contrib_cases import case, f, i32, s8, scale, u8, zero
from .engine import Op, law

Wrong = Callable[[Any], Any]


def text(*replacements: tuple[str, str]) -> Wrong:
    """Return what changes the text of the right row."""

    def change(row: Row) -> Row:
        found = row.text
        for old, new in replacements:
            assert old in found, f"{old!r} is not in {found!r}: the control would change nothing"
            found = found.replace(old, new)
        return replace(row, text=found)

    return change


def shifted(row: Row) -> Row:
    return replace(
        row, maps={name: Map(m.source, np.maximum(m.index - 1, 0)) for name, m in row.maps.items()}
    )


def open_maximum(row: Row) -> Row:
    return replace(text(("b~", "b"))(row), lowest={})


def no_attrs(row: Row) -> Row:
    return replace(row, attrs={})


def no_zeros(row: Row) -> Row:
    return replace(row, zeros={})


def no_pins(row: Row) -> Row:
    return replace(row, pinned={})


ONNX: dict[str, Any] = {"domain": ""}
x = f(2, 6, 5, 5)
shape = np.array([2, 3, 2, 5, 5], np.int64)
ints = np.array
point = (scale(), zero(120))

#: what is wrong, the node, its inputs, how the right row is made wrong
WRONG_ROWS = [
    ("parts swapped", case("Concat", f(2, 3), f(2, 4), axis=1, **ONNX), text(("(p0 + p1)", "(p1 + p0)"))),
    ("input channels not tied", case("Conv", x, f(8, 6, 3, 3), f(8), **ONNX), text(("o i *k!", "o j *k!"))),
    ("bias not tied", case("Conv", x, f(8, 6, 3, 3), f(8), **ONNX), text((", o?", ", b?"))),
    ("kernel open", case("Conv", x, f(8, 6, 3, 3), **ONNX), text(("*k!", "*k"))),
    ("groups inside out", case("Conv", x, f(8, 3, 3, 3), group=2, **ONNX), text(("n (g i)", "n (i g)"))),
    ("group count kept", case("Conv", x, f(6, 1, 3, 3), group=6, **ONNX), no_attrs),
    ("axis open", case("LogSoftmax", f(4, 5), axis=1, **ONNX), text(("b!", "b"))),
    ("permuted otherwise", case("Transpose", f(4, 4, 4), perm=[1, 2, 0], **ONNX), text(("-> b c a", "-> c a b"))),
    ("not permuted", case("Transpose", f(4, 4), **ONNX), text(("-> b a", "-> a b"))),
    ("off by one", case("Slice", f(2, 9), ints([2]), ints([7]), ints([1]), **ONNX), shifted),
    ("off by one", case("Gather", f(2, 9), ints([3, 5, 8]), axis=1, **ONNX), shifted),
    ("not pinned", case("Gather", f(2, 4), ints(2), axis=1, **ONNX), no_pins),
    ("statistics not tied", case("BatchNormalization", x, f(6), f(6), f(6), f(6) + 2, **ONNX),
     text((", c, c, c, c", ", c, c, d, d"))),
    ("maximum open", case("ReduceMax", f(4, 5, 6) - 3, ints([1]), **ONNX), open_maximum),
    ("width open", case("LayerNormalization", f(4, 6), f(6), f(6), **ONNX), text(("~", ""))),
    ("running sum open", case("CumSum", f(4, 6), ints(1), **ONNX), text(("!", ""))),
    ("blocks first", case("DepthToSpace", f(2, 8, 3, 3), blocksize=2, mode="CRD", **ONNX),
     text(("(c p! q!)", "(p! q! c)"))),
    ("atoms swapped", case("Reshape", x, shape, **ONNX), text(("(b c)", "(c b)"))),
    ("past not contracted", case("RNN", f(5, 2, 3), f(1, 4, 3), f(1, 4, 4), hidden_size=4, **ONNX),
     text(("h^", "w!"))),
    ("gates inside out", case("LSTM", f(5, 2, 3), f(1, 16, 3), f(1, 16, 4), hidden_size=4, **ONNX),
     text(("(q! h)", "(h q!)"))),
    ("zero point forgotten",
     case("QLinearConv", u8(2, 4, 5, 5), *point, s8(6, 4, 3, 3), scale(), zero(3, np.int8), scale(), zero(9), **ONNX),
     no_zeros),
    ("zero points not tied", case("ConvInteger", u8(1, 4, 5, 5), u8(6, 4, 3, 3), zero(7), u8(6), **ONNX),
     text((", o? ->", ", z? ->"))),
    ("scales not tied",
     case("QGemm", u8(3, 6), *point, s8(8, 6), scale(8), np.zeros(8, np.int8), i32(8), *point, transB=1),
     text(("n k, n, n", "n k, z, z"))),
    ("heads not counted", case("Attention", f(2, 5, 7), f(7, 36), f(36), num_heads=4), no_attrs),
    ("keys not contracted", case("MultiHeadAttention", f(2, 5, 12), f(2, 6, 12), f(2, 6, 12), num_heads=4),
     text(("(h d^)", "(h d^)"), ("b! t! (h v)?", "b! t! (h d)?"))),
]  # fmt: skip

FORGOTTEN = [
    case("Reshape", x, shape, **ONNX),
    case("Reshape", f(2, 12), np.array([2, 3, 4], np.int64), **ONNX),
    case("Expand", f(2, 6, 1), np.array([2, 6, 4], np.int64), **ONNX),
    case("Slice", f(2, 9), ints([2]), ints([7]), ints([1]), **ONNX),
    case("Split", f(2, 9), ints([4, 5]), axis=1, outputs=2, **ONNX),
    case("Pad", f(2, 6), ints([0, 1, 0, 2]), **ONNX),
    case("Gather", f(2, 9), ints([3, 5, 8]), axis=1, **ONNX),
    case("Resize", f(2, 6, 4, 4), None, None, ints([2, 6, 8, 8]), **ONNX),
    case("ReduceMean", f(4, 5, 6), ints([1]), **ONNX),
    case("GlobalAveragePool", f(4, 5, 6), **ONNX),
    case("Attention", f(2, 5, 7), f(7, 32), f(32), num_heads=4, qkv_hidden_sizes=[12, 12, 8]),
]


def both(node: Any, inputs: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Return the violations that the kit and the engine find."""
    arrays = [inputs.get(name) for name in node.input]
    opsets = {"": 21, "com.microsoft": 1}
    kit = [v for known in (False, True) for v in check_op(node, arrays, opsets, known=known).violations]
    return kit, law(node, inputs, cuts=40).violations


@pytest.mark.parametrize(
    ("what", "case", "wrong"), WRONG_ROWS, ids=[f"{c[0]} {what}" for what, c, _ in WRONG_ROWS]
)
def test_a_wrong_row_is_found(monkeypatch: pytest.MonkeyPatch, what: str, case: Any, wrong: Wrong) -> None:
    _, node, inputs = case
    assert both(node, inputs) == ([], [])
    key: Op = (node.domain, node.op_type)
    right = TABLE[key]

    def rule(seen: Any) -> Any:
        found = right(seen)
        return wrong(found) if isinstance(found, Row) else found

    monkeypatch.setitem(TABLE, key, rule)
    kit, engine = both(node, inputs)
    assert kit
    assert engine


@pytest.mark.parametrize("case", FORGOTTEN, ids=[c[0] for c in FORGOTTEN])
def test_a_forgotten_emitter_is_found(monkeypatch: pytest.MonkeyPatch, case: Any) -> None:
    _, node, inputs = case
    assert both(node, inputs) == ([], [])
    monkeypatch.delitem(EMITTERS, (node.domain, node.op_type))
    kit, engine = both(node, inputs)
    assert kit
    assert engine


def test_a_row_for_an_op_that_mixes_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    node = helper.make_node("CDist", ["a", "b"], ["y"], domain="com.microsoft")
    inputs = {"a": f(4, 6), "b": f(5, 6)}
    assert law(node, inputs).cuts == 0
    monkeypatch.setitem(TABLE, ("com.microsoft", "CDist"), lambda _: Row("m k, n k -> n m"))
    assert all(both(node, inputs))
