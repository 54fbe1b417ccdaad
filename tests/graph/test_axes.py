"""Axis arithmetic: broadcasting, regrouping of a reshape into atoms."""

import doctest
from math import prod

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxprune.ops import axes, base, notation
from onnxprune.ops.axes import broadcast, onto, regroup
from onnxprune.ops.base import Node, lookup
from onnxprune.ops.notation import Axis, Letter, Product, parse

sizes = st.lists(st.sampled_from([1, 2, 3, 4, 6]), min_size=1, max_size=5)


def length(axis: Axis, known: dict[str, int]) -> int:
    if isinstance(axis, Letter):
        return known[axis.name]
    return prod(length(factor, known) for factor in axis.factors) if isinstance(axis, Product) else 1


@given(sizes)
def test_atoms_multiply_to_the_axes_of_both_shapes(old: list[int]) -> None:
    new = [1, *old, 1]
    at = len(new) // 2
    new[at - 1 : at + 1] = [new[at - 1] * new[at]]  # merge two neighbours
    left, right, found, locked = regroup(tuple(old), tuple(new))
    known = dict(found)
    row = parse(f"{' '.join(left)} -> {' '.join(right)}")
    assert [length(axis, known) for axis in row.inputs[0].axes] == old
    assert [length(axis, known) for axis in row.outputs[0].axes] == new
    assert not locked  # what merges neighbours has atoms: the neighbours


@given(sizes, sizes)
def test_any_two_shapes_of_one_product_regroup(one: list[int], two: list[int]) -> None:
    old, new = (*one, prod(two)), (*two, prod(one))
    left, right, found, locked = regroup(old, new)
    known = dict(found)
    row = parse(f"{' '.join(left)} -> {' '.join(right)}")
    assert tuple(length(axis, known) for axis in row.inputs[0].axes) == old
    assert tuple(length(axis, known) for axis in row.outputs[0].axes) == new
    assert locked <= known.keys()


@pytest.mark.parametrize(
    ("old", "new", "left", "right"),
    [
        ((2, 768), (2, 12, 64), ("a", "(b c)"), ("a", "b", "c")),
        ((2, 8, 3, 3), (2, 72), ("a", "b", "c", "d"), ("a", "(b c d)")),
        ((2, 8, 3, 5), (2, 4, 30), ("a", "(b c)", "d", "e"), ("a", "b", "(c d e)")),
        ((1, 6, 1), (6,), ("1", "a", "1"), ("a",)),
        ((6, 4), (4, 6), ("a!", "b!"), ("c!", "d!")),
        ((2, 6, 4), (2, 4, 6), ("a", "b!", "c!"), ("a", "d!", "e!")),
        ((0, 3), (3, 0), ("a0!", "a1!"), ("b0!", "b1!")),
    ],
)
def test_regroup(
    old: tuple[int, ...], new: tuple[int, ...], left: tuple[str, ...], right: tuple[str, ...]
) -> None:
    assert regroup(old, new)[:2] == (left, right)


def test_what_does_not_fit_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"\[2, 3\] can't be reshaped to \[5\]"):
        regroup((2, 3), (5,))
    with pytest.raises(ValueError, match="don't broadcast"):
        broadcast(((2, 3), (4,)))
    with pytest.raises(ValueError, match=r"a shape \[2\] is broadcast to \[3\]"):
        onto((2,), (3,), "a")


def test_an_unknown_op_and_an_unknown_shape_are_refused() -> None:
    def node(op: str, domain: str = "", **more: object) -> Node:
        fields = {"shapes": (None, None), "inputs": ("a", "b")} | more
        rest = {"out_shapes": (None,), "values": (None, None), "constant": (False, False), "outputs": ("y",)}
        return Node(op=op, domain=domain, opset=17, name="n", attrs={}, **fields, **rest)  # type: ignore[arg-type]

    assert lookup(node("Foo")).reason == "no row for ai.onnx::Foo: all its axes are frozen"  # type: ignore[union-attr]
    assert lookup(node("Foo", "my.own")).reason.startswith("no row for my.own::Foo")  # type: ignore[union-attr]
    assert lookup(node("Add")).reason == "Add: the shape of input 0 is unknown"  # type: ignore[union-attr]
    wrong = node("Add", shapes=((2, 3), (4,)))
    assert "don't broadcast" in lookup(wrong).reason  # type: ignore[union-attr]


@pytest.mark.parametrize("module", [axes, base, notation])
def test_examples_in_docstrings(module: object) -> None:
    assert doctest.testmod(module).failed == 0  # type: ignore[arg-type]
