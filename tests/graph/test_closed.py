"""What goes when units go: the same on both sides of a relation, never all, and what counts it counts anew."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest

import onnxprune
from graph.test_groups import model, study


def test_dead_refuses_what_is_not_the_same_on_both_sides() -> None:
    """Units are closed as they are made; one that lost its place on an axis is found out."""
    text = """g (float[1,3,4,4] x) => (float[1,2,4,4] y) {
        a = Conv(x, w1)
        b = Conv(x, w2)
        c = Concat<axis=1>(a, b)
        y = Conv(c, w3)
    }"""
    grouping = study(text, w1=(4, 3, 1, 1), w2=(5, 3, 1, 1), w3=(2, 9, 1, 1)).grouping
    space, (family,) = grouping.coupling.space, grouping.families
    removed = {g.name: [0, 2] for g in grouping.groups}
    assert {int(mask.sum()) for mask in grouping.dead(removed).values()} == {2, 4}
    units = family.solution.unit.copy()
    whole = next(root for root in family.solution.start if space.sizes[root] == 9)
    first = family.solution.start[whole]
    units[first : first + 9] = np.roll(units[first : first + 9], 1)
    turned = replace(family, solution=replace(family.solution, unit=units))
    with pytest.raises(ValueError, match="not the same on both sides of a concatenation"):
        replace(grouping, families=(turned,)).dead(removed)


def test_what_matters_most_is_put_back_where_an_axis_would_be_empty() -> None:
    text = """g (float[1,3,4,4] x) => (float[1,2,4,4] y) {
        a = Conv(x, w1)
        y = Conv(a, w2)
    }"""
    grouping = study(text, w1=(5, 3, 1, 1), w2=(2, 5, 1, 1)).grouping
    (only,) = grouping.groups
    found = grouping.spare({only.name: np.arange(5)}, {only.name: np.array([2.0, 1.0, 7.0, 3.0, 4.0])})
    assert found[only.name].tolist() == [0, 1, 3, 4]


def test_indices_from_the_end_count_anew() -> None:
    """Channels that a Gather takes from the end are the same ones of fewer."""
    text = """g (float[1,3,4,4] x) => (float[1,2,4,4] y) <int64[5] at = {-1, 0, -2, 1, -4}> {
        a = Conv(x, w1)
        b = Gather<axis=1>(a, at)
        y = Conv(b, w2)
    }"""
    source = model(text, w1=(6, 3, 1, 1), w2=(2, 5, 1, 1))
    result = onnxprune.prune(source, ratio=0.5, align="none")
    (index,) = (t for t in result.model.graph.initializer if t.name == "at")
    gone = next(set(c.removed) for c in result.report.cuts if c.tensor == "w1")
    kept = [n for n in range(6) if n not in gone]
    assert [kept[n] for n in onnx.numpy_helper.to_array(index)] == [n for n in (5, 0, 4, 1, 2) if n in kept]
    assert result.report.law1["max_relative_error"] < 1e-5


@pytest.mark.parametrize("count", [3, 6])
def test_scales_that_are_not_those_of_the_axis_freeze_it(count: int) -> None:
    text = """g (float[1,3,4,4] x) => (float[1,2,4,4] y) {
        a = Conv(x, w1)
        q = QuantizeLinear<axis=1>(a, s)
        d = DequantizeLinear<axis=1>(q, s)
        y = Conv(d, w2)
    }"""
    grouping = study(text, w1=(4, 3, 1, 1), s=(count,), w2=(2, 4, 1, 1)).grouping
    assert not grouping.groups
    (why,) = (f.reason for f in grouping.frozen if (f.tensor, f.axis) == ("w1", 0))
    assert why.startswith(f"QuantizeLinear: {count} scales for an axis of 4")
