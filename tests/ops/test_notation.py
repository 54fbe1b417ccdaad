"""The notation: what parses to what, and what the errors say."""

import pytest

from onnxprune.ops.notation import Letter, NotationError, Operand, Product, Star, Sum, Unit, parse


def test_letters_products_stars_and_optional_operands() -> None:
    parsed = parse("n (g i) *s!, (g o) i *k!, (g o)? -> n (g o) *t!")
    assert parsed.inputs[0].axes == (Letter("n"), Product((Letter("g"), Letter("i"))), Star("s", "!"))
    assert [operand.optional for operand in parsed.inputs] == [False, False, True]
    assert parsed.outputs[0].axes[2] == Star("t", "!")


def test_sums_hold_letters_and_products() -> None:
    flat = parse("k (h d + h d + h v) -> ()").inputs[0].axes[1]
    assert isinstance(flat, Sum)
    assert flat.parts[2] == Product((Letter("h"), Letter("v")))
    assert parse("k ((h d) + (h d) + (h v)) -> ()").inputs[0].axes[1] == flat


def test_a_scalar_is_empty_or_a_pair_of_parentheses() -> None:
    assert parse("n c, , () -> n c").inputs[1:] == (Operand(()), Operand(()))
    assert parse("-> n").inputs == ()
    assert parse("()? -> 1").inputs == (Operand((), optional=True),)
    assert parse("() -> 1").outputs[0].axes == (Unit(),)


def test_a_lock_on_one_slot_locks_the_letter() -> None:
    parsed = parse("*b c~, c, c? -> *b c!")
    assert {
        axis.lock
        for operand in parsed.inputs + parsed.outputs
        for axis in operand.axes
        if isinstance(axis, Letter)
    } == {"!"}


def test_contract_is_a_property_of_the_slot() -> None:
    parsed = parse("y (q! h) h^ -> y h")
    assert parsed.inputs[0].axes[2] == Letter("h", "", True)
    assert parsed.outputs[0].axes[1] == Letter("h")


def test_expand_gives_one_axis_for_each_dimension() -> None:
    operand = parse("n *s! c -> ()").inputs[0]
    assert operand.expand(4) == (Letter("n"), Letter("s.0", "!"), Letter("s.1", "!"), Letter("c"))
    assert operand.expand(2) == (Letter("n"), Letter("c"))
    with pytest.raises(ValueError, match="rank 1 where the row has at least 2"):
        operand.expand(1)
    with pytest.raises(ValueError, match="rank 3 where the row has 2"):
        parse("a b -> a b").inputs[0].expand(3)


@pytest.mark.parametrize(
    ("text", "position", "expected"),
    [
        ("n c", 3, "an axis, a comma or ->"),
        ("n (c -> n", 5, "a letter, 1, *, or ("),
        ("n (a +) -> n", 6, "a letter or ("),
        ("n c$ -> n", 3, "a letter, 1, *, (, ), +, !, ~, ^, ?, a comma or ->"),
        ("*a *b -> *a", 3, "at most one star in an operand"),
        ("n 12 -> n", 2, "a letter, 1, *, (, ), +, !, ~, ^, ?, a comma or ->"),
        ("a -> a -> a", 7, "an axis, a comma or the end"),
        ("a -> a?", 6, "no ? on an output"),
        ("a b? c -> a", 5, "an axis, a comma or ->"),
        ("*! -> a", 1, "a letter"),
    ],
)
def test_errors_show_the_text_and_point_at_the_place(text: str, position: int, expected: str) -> None:
    with pytest.raises(NotationError) as caught:
        parse(text)
    assert str(caught.value) == f"{text}\n{' ' * position}^ expected {expected}"
