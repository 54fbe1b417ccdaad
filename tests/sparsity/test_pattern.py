"""Masks against slow and plain code."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxprune.errors import UsageError
from onnxprune.options.pattern import parse_pattern
from onnxprune.sparsity.inspection import patterns_of
from onnxprune.sparsity.layout import Layout
from onnxprune.sparsity.masks import best_of, expand, holds, lowest, tail, tile_scores

RNG = np.random.default_rng


def plain(scores, keep, of):
    """Of every group the highest stay, of equals the first."""
    mask = np.ones(scores.shape, bool)
    for b, o, t in itertools.product(*(range(scores.shape[i]) for i in (0, 1, 3))):
        for first in range(0, scores.shape[2] // of * of, of):
            group = scores[b, o, first : first + of, t]
            order = sorted(range(of), key=lambda i: (-float(group[i]), i))
            for i in order[keep:]:
                mask[b, o, first + i, t] = False
    return mask


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(st.integers(1, 2), st.integers(1, 3), st.integers(1, 13), st.integers(1, 3)),
    st.sampled_from([(2, 4), (1, 4), (4, 8), (0, 4), (4, 4), (1, 2), (3, 5)]),
    st.permutations(range(4)),
    st.integers(0, 99),
)
def test_n_of_m_is_the_plain_one_in_any_layout_of_memory(shape, nm, order, seed):
    scores = RNG(seed).integers(0, 5, shape).astype(np.float32)  # with many equals
    stored = np.ascontiguousarray(scores.transpose(order)).transpose(np.argsort(order))
    for given_ in (stored, stored.astype(np.uint32), stored.astype(np.int32)):
        assert np.array_equal(best_of(given_, *nm), plain(scores, *nm))


@pytest.mark.parametrize("nm", ["2:4", "1:4", "4:8", "1:2"])
def test_what_is_made_holds_and_what_is_not_does_not(nm):
    pattern = parse_pattern(nm)
    scores = RNG(0).random((1, 8, 16, 3))
    mask = best_of(scores, pattern.keep, pattern.of)
    assert holds(pattern, ~mask)
    assert mask.mean() == pattern.keep / pattern.of
    assert not holds(pattern, (~mask).transpose(0, 2, 1, 3))  # along the outputs
    one = mask.copy()
    one[0, 0, :, 0] = True
    assert not holds(pattern, ~one)
    assert not holds(pattern, np.ones((1, 8, 1, 3), bool)), "no group is no pattern"


def test_large_weights_are_done_in_pieces():
    scores = RNG(0).random((1, 700, 1024, 1)).astype(np.float32)
    for given_ in (scores, np.ascontiguousarray(scores.transpose(0, 2, 1, 3)).transpose(0, 2, 1, 3)):
        mask = best_of(given_, 2, 4)
        split, kept = (a.reshape(700, 256, 4) for a in (scores, mask))
        assert (kept.sum(2) == 2).all()
        assert (np.where(kept, split, 2).min(2) >= np.where(kept, -1, split).max(2)).all()


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.data())
def test_exactly_so_many_go(size, data):
    count = data.draw(st.integers(0, size))
    scores = RNG(data.draw(st.integers(0, 99))).integers(0, 4, size).astype(np.float32)
    keep = lowest(scores, count)
    assert int((~keep).sum()) == count
    if 0 < count < size:
        assert scores[~keep].max() <= scores[keep].min()


@pytest.mark.parametrize(
    ("text", "shape", "left"),
    [
        ("block:4x2", (1, 10, 7, 3), (2, 1)),
        ("kernel", (1, 5, 7, 9), (0, 0)),
        ("vector", (2, 5, 7, 9), (0, 0)),
        ("unstructured", (1, 5, 7, 9), (0, 0)),
    ],
)
def test_tiles_go_as_a_whole(text, shape, left):
    pattern = parse_pattern(text)
    squares = RNG(0).random(shape).astype(np.float32)
    scores = tile_scores(pattern, squares)
    assert tail(pattern, shape) == left
    keep = expand(pattern, lowest(scores, scores.size // 2), shape)
    inner = keep[:, : shape[1] - left[0], : shape[2] - left[1]]
    size = inner.size // scores.size
    assert (~keep).sum() == scores.size // 2 * size
    assert keep[:, shape[1] - left[0] :].all()
    assert keep[:, :, shape[2] - left[1] :].all()
    again = tile_scores(pattern, keep.astype(np.float32))
    assert set(np.unique(again)) == {0.0, float(size)}
    whole = squares[:, : inner.shape[1], : inner.shape[2]].sum()
    assert np.isclose(scores.sum(), whole, rtol=1e-5)


@pytest.mark.parametrize("text", ["", "2", "5:4", "2:0", "block:0x4", "block:4", "diagonal", "2:4:8"])
def test_what_is_no_pattern_is_refused(text):
    with pytest.raises(UsageError, match="--pattern"):
        parse_pattern(text)


def test_patterns_by_axis():
    zero = ~best_of(RNG(0).random((1, 64, 64, 1)), 1, 4)[0, :, :, 0]
    assert patterns_of(zero, 1) == ["2:8", "1:4", "4:8", "2:4"]
    assert patterns_of(zero, 0) == []


def test_a_layout_goes_there_and_back():
    layout = Layout((6, 8, 9), (("reshape", (6, 8, 3, 3)), ("transpose", (1, 0, 2, 3)), ("reshape", (1, 8, 6, 9)),
                                ("transpose", (0, 2, 1, 3))))  # fmt: skip
    stored = np.arange(6 * 8 * 9).reshape(6, 8, 9)
    assert layout.view(stored).shape == layout.shape == (1, 6, 8, 9)
    assert np.array_equal(layout.back(layout.view(stored)), stored)
    assert layout.axis == 1
    spread = Layout((48, 9), (("reshape", (1, 6, 8, 9)),))
    assert spread.axis is None
