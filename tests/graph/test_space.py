"""The space of axes: components, units and closure."""

from __future__ import annotations

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxprune.graph.components import components
from onnxprune.graph.groups import check_closed
from onnxprune.graph.space import NONE, Space, solve


@given(st.integers(1, 40), st.lists(st.tuples(st.integers(0, 39), st.integers(0, 39)), max_size=60))
def test_components_are_those_of_networkx(n: int, pairs: list[tuple[int, int]]) -> None:
    pairs = [(a % n, b % n) for a, b in pairs]
    label = components(
        n, np.array([a for a, _ in pairs], np.int64), np.array([b for _, b in pairs], np.int64)
    )
    graph = nx.Graph()
    graph.add_nodes_from(range(n))
    graph.add_edges_from(pairs)
    for part in nx.connected_components(graph):
        assert {int(label[i]) for i in part} == {min(part)}


def test_a_long_path_needs_few_rounds() -> None:
    n = 200_000
    order = np.random.default_rng(0).permutation(n)
    assert (components(n, order[:-1], order[1:]) == 0).all()


def heads_and_width() -> tuple[Space, int, int, int]:
    space = Space()
    whole, heads, width = space.new(12), space.new(3), space.new(4)
    space.product(whole, (heads, width))
    return space, whole, heads, width


def test_outer_family_cuts_heads_and_inner_family_cuts_width() -> None:
    space, whole, heads, width = heads_and_width()
    outer, inner = solve(space), solve(space, inner_first=True)
    np.testing.assert_array_equal(outer.units_of(whole, 12), np.repeat(outer.units_of(heads, 3), 4))
    np.testing.assert_array_equal(inner.units_of(whole, 12), np.tile(inner.units_of(width, 4), 3))
    assert (outer.units_of(width, 4) == -1).all()
    assert outer.ambiguous == {0}


def test_an_axis_times_itself_is_frozen_for_that_reason() -> None:
    """As in a Gram matrix that is flattened: an element would go with either of two channels."""
    space = Space()
    whole, channels = space.new(9), space.new(3)
    space.product(whole, (channels, channels))
    for inner_first in (False, True):
        found = solve(space, inner_first=inner_first)
        assert (found.units_of(whole, 9) == -1).all()
        assert found.why(channels) == found.why(whole) == "both factors of a product are this axis"


def test_a_locked_factor_leaves_the_other() -> None:
    space, whole, heads, width = heads_and_width()
    space.lock(heads, "averaged")
    found = solve(space)
    assert found.ambiguous == frozenset()
    np.testing.assert_array_equal(found.units_of(whole, 12), np.tile(found.units_of(width, 4), 3))
    assert found.why(heads) == "averaged"


def test_a_factor_that_proves_frozen_through_a_link_is_given_up() -> None:
    space, whole, heads, _ = heads_and_width()
    picked = [space.new(1) for _ in range(3)]
    for n, dim in enumerate(picked):  # a split of the heads into pieces of one
        space.link(heads, np.array([n]), dim, np.array([0]))
    found = solve(space)
    assert found.chosen == [1]
    assert (found.units_of(whole, 12) >= 0).all()


def test_a_lock_on_one_index_freezes_its_class_only() -> None:
    space = Space()
    a, b = space.new(4), space.new(4)
    space.link(a, np.arange(4), b, np.arange(4)[::-1])
    space.lock(a, "picked", index=np.array([0]))
    found = solve(space)
    np.testing.assert_array_equal(found.units_of(b, 4) >= 0, [True, True, True, False])
    assert found.why(b, 3) == "picked"
    assert found.reason[found.start[b]] == NONE


def test_soft_locks_open_and_mark_units_inexact() -> None:
    space = Space()
    a = space.new(3)
    space.lock(a, "averaged over", soft=True)
    assert a not in solve(space).start
    assert solve(space, allow_inexact=True).inexact.all()


def test_what_no_permission_opens_is_the_reason_where_both_hold() -> None:
    space = Space()
    whole, outer, inner, other = space.new(6), space.new(2), space.new(3), space.new(3)
    space.product(whole, (outer, inner))
    space.lock(inner, "averaged over", soft=True)
    space.lock(other, "averaged over", soft=True)
    space.lock(whole, "axis of the output")
    space.lock(other, "axis of the output")
    for allow in (False, True):
        found = solve(space, allow_inexact=allow)
        assert {found.why(dim) for dim in (whole, outer, inner, other)} == {"axis of the output"}


def test_axes_of_different_size_cannot_be_tied() -> None:
    space = Space()
    with pytest.raises(ValueError, match="axes of 3 and 4 channels"):
        space.tie(space.new(3), space.new(4))


@st.composite
def spaces(draw: st.DrawFn) -> Space:
    space = Space()
    for size in draw(st.lists(st.integers(1, 6), min_size=1, max_size=6)):
        space.new(size)
    for _ in range(draw(st.integers(0, 4))):
        if len(space.sizes) > 1 and max(space.sizes) < 500 and draw(st.booleans()):
            factors = tuple(
                draw(st.lists(st.integers(0, len(space.sizes) - 1), min_size=2, max_size=3, unique=True))
            )
            space.product(space.new(int(np.prod([space.sizes[f] for f in factors]))), factors)
        else:
            a, b = (draw(st.integers(0, len(space.sizes) - 1)) for _ in range(2))
            n = draw(st.integers(1, min(space.sizes[a], space.sizes[b])))
            ia = np.array(draw(st.permutations(range(space.sizes[a])))[:n])
            space.link(a, ia, b, np.arange(n))
    for dim in draw(st.lists(st.integers(0, len(space.sizes) - 1), max_size=2)):
        space.lock(dim, "locked", index=np.array([0]))
    return space


@settings(max_examples=300, deadline=None)
@given(spaces(), st.data())
def test_any_union_of_units_of_both_families_is_closed(space: Space, data: st.DataObject) -> None:
    masks: dict[int, np.ndarray] = {}
    for inner in (False, True):
        found = solve(space, inner_first=inner)
        units = found.inexact.size
        if not units:
            continue
        gone = data.draw(st.sets(st.integers(0, units - 1)))
        for root in found.start:
            mask = np.isin(found.units_of(root, space.sizes[root]), sorted(gone))
            masks[root] = masks.get(root, np.zeros_like(mask)) | mask
    check_closed(space, {root: mask for root, mask in masks.items() if mask.any()})


def test_closure_check_refuses_a_half_head() -> None:
    space, whole, _, _ = heads_and_width()
    mask = np.zeros(12, bool)
    mask[0] = True
    with pytest.raises(ValueError, match="union of whole slices"):
        check_closed(space, {whole: mask})
