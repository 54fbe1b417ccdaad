"""Criteria: their formulas against plain numpy, and what must hold for every one of them."""

import itertools
import tracemalloc
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from onnxprune import registry
from onnxprune.criteria import _norm
from onnxprune.errors import UsageError
from onnxprune.graph.group_types import Group, Member
from onnxprune.pruning.saliency import criterion_of

# those that need no samples; for the others see test_calibrated.py and gradient/test_probe.py
NAMES = [
    n
    for n in registry.names("onnxprune.criteria")
    if registry.load("onnxprune.criteria", n).READS == "weights"
]
DATA_BASED = ["bn_scale", "fpgm", "l1", "l2", "lamp", "lp"]


def member(
    tensor: str, axis: int, index: object, unit: object = None, role: str = "weight", reads: bool = False
) -> Member:
    at = np.asarray(index, np.int64)
    return Member(
        tensor, axis, at, np.arange(at.size) if unit is None else np.asarray(unit, np.int64), role, reads
    )


def group(units: int, *members: Member, name: str = "g") -> Group:
    return Group(name, units, "channels", members, (), 0, np.ones(units, np.int64), np.ones(units))


def score(
    name: str, one: Group, weights: Mapping[str, NDArray], seed: int = 0, quiet: bool = True
) -> NDArray[np.float64]:
    criterion = registry.load("onnxprune.criteria", name)
    with warnings.catch_warnings():
        if quiet:
            warnings.simplefilter("ignore", _norm.ScoreWarning)
        found = criterion.score(one, weights.__getitem__, np.random.default_rng(seed))
    assert found.dtype == np.float64
    assert found.shape == (one.units,)
    assert not np.isnan(found).any()
    return found


def pair(units: int = 6) -> tuple[Group, dict[str, NDArray]]:
    """Return a convolution that produces the units, its bias and scale, and one that reads them."""
    rng = np.random.default_rng(1)
    weights = {
        "w": rng.standard_normal((units, 5, 3, 3)).astype(np.float32),
        "b": rng.standard_normal(units).astype(np.float32),
        "gamma": rng.standard_normal(units).astype(np.float32),
        "v": rng.standard_normal((7, units, 3, 3)).astype(np.float32) * 20,
    }
    at = np.arange(units)
    members = (
        member("w", 0, at),
        member("b", 0, at, role="bias"),
        member("gamma", 0, at, role="scale"),
        member("v", 1, at, reads=True),
    )
    return group(units, *members), weights


def relative(values: NDArray) -> NDArray:
    return values / values.mean()


def test_the_seven_are_found_by_name() -> None:
    assert set(NAMES) >= {"random", *DATA_BASED}


@pytest.mark.parametrize(("name", "p"), [("l1", 1), ("l2", 2), ("lp", 0.5)])
def test_norms_give_each_matrix_one_vote_and_leave_vectors_out(name: str, p: float) -> None:
    one, weights = pair()
    w = (np.abs(weights["w"].astype(np.float64)) ** p).sum((1, 2, 3))
    v = (np.abs(weights["v"].astype(np.float64)) ** p).sum((0, 2, 3))
    want = relative(((relative(w) + relative(v)) / 2) ** (1 / p))
    np.testing.assert_allclose(score(name, one, weights), want, rtol=1e-5)


def test_lp_takes_its_power() -> None:
    one, weights = pair()
    lp = registry.load("onnxprune.criteria", "lp")
    rng = np.random.default_rng(0)
    for p, same in ((1, "l1"), (2, "l2")):
        np.testing.assert_allclose(lp.score(one, weights.__getitem__, rng, p=p), score(same, one, weights))
    with pytest.raises(ValueError, match="above 0; got 0"):
        lp.score(one, weights.__getitem__, rng, p=0)


def test_lamp_by_hand() -> None:
    """Squares 1, 4, 4, 16: the sums of what is at least as large are 25, 24, 24, 16."""
    weights = {"w": np.array([[2.0, 0], [0, 1], [4, 0], [0, -2]])}
    found = score("lamp", group(4, member("w", 0, range(4))), weights)
    np.testing.assert_allclose(found, [4 / 24, 1 / 25, 1, 4 / 24])


def test_fpgm_is_the_sum_of_distances_between_filters() -> None:
    one, weights = pair()
    w = weights["w"].reshape(6, -1).astype(np.float64)
    want = np.array([sum(np.linalg.norm(a - b) for b in w) for a in w])
    np.testing.assert_allclose(score("fpgm", one, weights), relative(want), rtol=1e-5)


def test_fpgm_prefers_to_drop_the_middle_where_norms_would_drop_the_small() -> None:
    weights = {"w": np.array([[1.0, 0], [5, 0], [5.1, 0], [9, 0]])}
    one = group(4, member("w", 0, range(4)))
    assert np.argmin(score("fpgm", one, weights)) in (1, 2)
    assert np.argmin(score("l2", one, weights)) == 0


def test_fpgm_in_panels_and_blocks_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    one, weights = pair()
    whole = score("fpgm", one, weights)
    fpgm = registry.load("onnxprune.criteria", "fpgm")
    monkeypatch.setattr(fpgm, "PANEL", 12)
    monkeypatch.setattr(fpgm, "BLOCK", 4)
    np.testing.assert_allclose(score("fpgm", one, weights), whole, rtol=1e-5)


def test_bn_scale_of_half_of_the_units_is_no_scale() -> None:
    """Where some units have none, as beside a branch without normalisation, all are ranked alike: by l2."""
    weights = {"w": np.arange(1, 19, dtype=np.float32).reshape(6, 3), "s": np.array([9, 8, 7], np.float32)}
    parts = member("w", 0, range(6)), member("s", 0, range(3), role="scale")
    one = group(6, *parts)
    np.testing.assert_array_equal(score("bn_scale", one, weights), score("l2", one, weights))


def test_bn_scale_is_the_absolute_scale_and_says_when_there_is_none() -> None:
    one, weights = pair()
    found = score("bn_scale", one, weights)
    np.testing.assert_allclose(found, relative(np.abs(weights["gamma"]).astype(np.float64)), rtol=1e-6)
    bare = group(6, *(m for m in one.members if m.role != "scale"))
    with pytest.warns(_norm.ScoreWarning, match="'g' have no normalisation scale.*by l2"):
        found = score("bn_scale", bare, weights, quiet=False)
    np.testing.assert_array_equal(found, score("l2", bare, weights))


def test_random_depends_on_seed_and_name_only() -> None:
    one, weights = pair()
    same = score("random", group(6, name="g"), weights)
    np.testing.assert_array_equal(score("random", one, weights), same)
    assert (score("random", one, weights, seed=1) != same).all()
    assert (score("random", group(6, name="h"), weights) != same).all()


@pytest.mark.parametrize("name", DATA_BASED)
def test_scale_of_a_tensor_does_not_matter(name: str) -> None:
    one, weights = pair()
    other = {tensor: values * (1 + 10 * at) for at, (tensor, values) in enumerate(weights.items())}
    np.testing.assert_allclose(score(name, one, other), score(name, one, weights), rtol=1e-5)


@pytest.mark.parametrize("name", DATA_BASED)
def test_a_shared_weight_counts_once(name: str) -> None:
    one, weights = pair()
    again = group(6, *one.members, *(member(m.tensor, m.axis, m.index, m.unit, m.role) for m in one.members))
    np.testing.assert_allclose(score(name, again, weights), score(name, one, weights), rtol=1e-6)


@pytest.mark.parametrize("name", DATA_BASED)
@settings(max_examples=25, deadline=None)
@given(st.permutations(range(6)))
def test_scores_follow_their_units(name: str, order: list[int]) -> None:
    """Renaming units renames scores, whatever the order in which positions are listed."""
    one, weights = pair()
    moved = group(
        6, *(member(m.tensor, m.axis, m.index, np.asarray(order), m.role, m.contracted) for m in one.members)
    )
    np.testing.assert_allclose(score(name, moved, weights)[order], score(name, one, weights), rtol=1e-5)
    listed = group(
        6,
        *(member(m.tensor, m.axis, m.index[order], m.unit[order], m.role, m.contracted) for m in one.members),
    )
    np.testing.assert_allclose(score(name, listed, weights), score(name, one, weights), rtol=1e-5)


@pytest.mark.parametrize("name", ["l1", "l2", "lp", "lamp"])
def test_a_unit_of_many_positions_and_part_of_an_axis(name: str) -> None:
    """Units 0, 1 hold positions 2, 5 and 3, 4 of a wider axis; the rest isn't the group's."""
    rng = np.random.default_rng(0)
    w = rng.standard_normal((3, 9, 2)).astype(np.float32)
    w[:, [0, 1, 6, 7, 8]] = 1e6
    one = group(2, member("w", 1, [2, 3, 4, 5], [0, 1, 1, 0]))
    flat = np.stack([w[:, [2, 5]].ravel(), w[:, [3, 4]].ravel()])
    np.testing.assert_allclose(
        score(name, one, {"w": w}), score(name, group(2, member("x", 0, [0, 1])), {"x": flat}), rtol=1e-5
    )
    far = group(2, member("w", 1, [0, 8]))  # far apart: read without what lies between
    near = np.ascontiguousarray(w[:, [0, 8]])
    np.testing.assert_allclose(
        score(name, far, {"w": w}), score(name, group(2, member("w", 1, [0, 1])), {"w": near})
    )


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", DATA_BASED)
def test_units_that_are_not_finite_are_kept_with_a_warning(name: str, bad: float) -> None:
    one, weights = pair()
    clean = score(name, one, weights)
    for tensor, at in (("w", (2, 1, 0, 0)), ("gamma", (2,))):
        weights[tensor][at] = bad
    with pytest.warns(
        _norm.ScoreWarning, match="1 of 6 units of 'g' hold NaN or infinite weights and are kept: 2"
    ):
        found = score(name, one, weights, quiet=False)
    assert found[2] == np.inf
    others = [0, 1, 3, 4, 5]
    assert np.isfinite(found[others]).all()
    if name != "fpgm":  # there the median moves
        assert (np.argsort(found[others]) == np.argsort(clean[others])).all()


@pytest.mark.parametrize("name", NAMES)
def test_units_of_zeros_and_groups_without_weights(name: str) -> None:
    one, weights = pair()
    for values in weights.values():
        values[...] = 0
    assert np.isfinite(score(name, one, weights)).all()
    assert np.isfinite(score(name, group(3), {})).all()


@pytest.mark.parametrize("scale", [1e-25, 1e25], ids=["small", "large"])
@pytest.mark.parametrize("name", ["l2", "lamp", "fpgm"])
def test_float32_squares_neither_overflow_nor_vanish(name: str, scale: float) -> None:
    one, weights = pair()
    want = score(name, one, weights)
    tiny = {tensor: values * np.float32(scale) for tensor, values in weights.items()}
    np.testing.assert_allclose(score(name, one, tiny), want, rtol=1e-4)


@pytest.mark.parametrize(
    "dtype",
    [np.float16, np.float64, np.int8, np.uint8, ml_dtypes.bfloat16, ml_dtypes.int4, ml_dtypes.float8_e4m3fn],
)
def test_every_weight_type_is_read(dtype: type) -> None:
    rng = np.random.default_rng(0)
    whole = rng.integers(-7, 8, (5, 4, 3))
    shift = 128 if dtype is np.uint8 else 0
    for name, axis in itertools.product(["l1", "l2", "lp", "fpgm", "lamp"], [0, 1, 2]):
        one = group(whole.shape[axis], member("w", axis, range(whole.shape[axis])))
        found = score(name, one, {"w": (whole + shift).astype(dtype)})
        np.testing.assert_allclose(
            found, score(name, one, {"w": whole.astype(np.float64)}), rtol=1e-5, atol=1e-6
        )


def test_vectors_judge_a_group_that_has_nothing_else() -> None:
    weights = {"b": np.array([5.0, 1, 3]), "s": np.array([[[1.0]], [[2]], [[4]]])}
    vectors = member("b", 0, range(3), role="bias"), member("s", 0, range(3), role="scale")
    np.testing.assert_allclose(score("l2", group(3, vectors[0]), weights), relative(weights["b"]))
    np.testing.assert_allclose(score("l2", group(3, *vectors), weights), relative(np.array([1.0, 2, 4])))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=4), st.data(), st.sampled_from([0.5, 1.0, 2.0, 3.0]))
def test_streamed_sums_are_plain_sums(shape: list[int], data: st.DataObject, power: float) -> None:
    axis = data.draw(st.integers(0, len(shape) - 1))
    block = data.draw(st.sampled_from([1, 3, 7, 1 << 19]))
    index = data.draw(st.lists(st.integers(0, shape[axis] - 1), min_size=1, unique=True))
    unit = data.draw(st.lists(st.integers(0, 3), min_size=len(index), max_size=len(index)))
    w = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    want = np.zeros(4)
    for at, u in zip(index, unit, strict=True):
        want[u] += (np.abs(np.take(w, at, axis).astype(np.float64)) ** power).sum()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_norm, "BLOCK", block)
        found = _norm.sums_of(member("w", axis, index, unit), w, 4, power)
    np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", ["l2", "l1", "fpgm"])
@pytest.mark.parametrize("axis", [0, 1])
def test_a_memory_mapped_weight_is_streamed(tmp_path: Path, name: str, axis: int) -> None:
    """32 MB on disk: never more than a few blocks in memory."""
    shape = (64, 64, 2048)
    mapped = np.memmap(tmp_path / "w", np.float32, "w+", shape=shape)
    mapped[...] = np.arange(64, dtype=np.float32)[:, None, None] if axis == 0 else 1
    one = group(64, member("w", axis, range(64)))
    tracemalloc.start()
    score(name, one, {"w": mapped})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < (16 if name == "fpgm" else 6) << 20


@pytest.mark.parametrize("name", NAMES)
def test_a_criterion_never_looks_at_an_op(name: str) -> None:
    module = registry.load("onnxprune.criteria", name)
    text = Path(str(module.__file__)).read_text(encoding="utf-8")
    assert "op_type" not in text
    assert "arXiv" in text  # the paper
    score_: Callable[..., object] = module.score
    assert "float64[units]" in str(score_.__doc__)


@pytest.mark.parametrize("name", registry.names("onnxprune.criteria"))
def test_each_criterion_says_what_it_reads(name: str) -> None:
    """And has the one function that goes with it."""
    criterion = criterion_of(name)
    functions = (criterion.score, criterion.measure.curve, criterion.measure.scores)
    assert sum(f is not None for f in functions) == 1
    assert criterion.measure.swaps == (name == "obs")


@pytest.mark.parametrize("reads", [None, "samples"])
def test_a_criterion_that_reads_something_else_is_refused(
    reads: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry.load("onnxprune.criteria", "l2"), "READS", reads)
    with pytest.raises(
        UsageError, match=r'READS in onnxprune/criteria/l2.py must be "weights", "moments" or'
    ):
        criterion_of("l2")
