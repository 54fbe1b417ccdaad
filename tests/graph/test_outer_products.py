"""Outer products of what two layers give: one of the two is cut, and the other one told."""

import numpy as np
from small_models import Builder, attention

import onnxprune


def test_a_layer_that_stays_for_the_sake_of_another_is_told() -> None:
    """The outer product of what two layers give: one axis, of which only one factor can be cut."""
    b = Builder(0)
    left = b.op("MatMul", ["x", b.weight("a", 8, 16)], "left")
    right = b.op("MatMul", ["x", b.weight("b", 8, 12)], "right")
    rows = b.op("Unsqueeze", [left, b.constant("last", np.array([2]))], "rows")
    columns = b.op("Unsqueeze", [right, b.constant("middle", np.array([1]))], "columns")
    flat = b.op(
        "Reshape", [b.op("Mul", [rows, columns], "outer"), b.constant("to", np.array([-1, 192]))], "flat"
    )
    model = b.model({"x": ["N", 8]}, b.op("MatMul", [flat, b.weight("c", 192, 4)], "y"))
    notes = onnxprune.prune(model, ratio=0.5, align=None).report.notes
    (said,) = [note for note in notes if "stays whole" in note]
    assert said.startswith("b:1 stays whole: one axis holds it times a:1")
    result = onnxprune.prune(model, ratio=0.5, align=None, only="^b:1$")
    assert [g["removed"] for g in result.report.groups if g["name"] == "b:1"] == [6]
    assert not any("stays whole" in note for note in result.report.notes)
    heads = onnxprune.prune(attention(), ratio=0.5, align=None).report.notes
    assert not any("stays whole" in note for note in heads), "the width of heads is of the same weights"
