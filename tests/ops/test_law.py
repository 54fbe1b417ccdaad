"""Law 2: cutting commutes with the op. Over onnx's node models, over fused ops, and the controls that must fail."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnxprune.model import Model
from onnxprune.ops import TABLE
from onnxprune.testing.op_law import check_op

from .contrib_cases import Case as Fused
from .contrib_cases import cases
from .engine import difference, law
from .node_models import Case, survey

OPSETS = {"": 21, "com.microsoft": 1}


def sample(models: list[Case], share: int) -> list[Case]:
    """Return every ``share``-th model, and the first one of each op type."""
    seen: set[str] = set()
    found = []
    for n, case in enumerate(models):
        ops = {node.op_type for node in case.model.graph.node[:1]}
        if n % share == 0 or not ops <= seen:
            found.append(case)
        seen |= ops
    return found


def test_law_2_over_a_sample_of_the_node_models(all_node_models: list[Case]) -> None:
    found = survey(sample(all_node_models, 8), cuts=2)
    assert found.violations == []
    assert len(found.total.exercised) >= 145
    assert found.total.cuts > 500


@pytest.mark.long
@pytest.mark.parametrize("seed", [0, 1])
def test_law_2_over_all_node_models(all_node_models: list[Case], seed: int) -> None:
    found = survey(all_node_models, cuts=8, seed=seed)
    assert found.violations == []
    assert found.models >= 1884
    assert found.cut >= 1400
    assert len(found.total.exercised) >= 150


def test_all_node_models_come_back_byte_by_byte(all_node_models: list[Case], tmp_path: Any) -> None:
    source, target = tmp_path / "in.onnx", tmp_path / "out.onnx"
    for case in all_node_models:
        data = case.model.SerializeToString(deterministic=True)
        source.write_bytes(data)
        Model.load(source).save(target)
        assert target.read_bytes() == data, case.name


@pytest.mark.parametrize("fused", cases(), ids=lambda case: case[0])
def test_law_2_over_fused_and_large_nodes(fused: Fused) -> None:
    _, node, inputs = fused
    found = law(node, inputs, cuts=12)
    assert found.violations == []
    assert found.cuts > 0
    arrays = [inputs.get(name) for name in node.input]
    verdicts = [check_op(node, arrays, OPSETS, known=known) for known in (False, True)]
    assert [v.violations for v in verdicts] == [[], []]
    assert sum(v.cuts for v in verdicts) > 0


def test_the_cases_reach_most_of_the_fused_ops() -> None:
    ours = {node.op_type for _, node, _ in cases() if node.domain}
    have = {name for domain, name in TABLE if domain}
    assert len(ours & have) >= 33
    assert ours <= have


@pytest.mark.parametrize(
    ("want", "have", "same"),
    [
        (np.ones(3), np.ones(3), True),
        (np.ones(3), np.ones(2), False),
        (np.ones(3), np.ones(3, np.float32), False),
        (np.ones(3, np.int64), np.array([1, 1, 2]), False),
        (np.array([np.nan, 1]), np.array([np.nan, 1]), True),
        (np.array([np.nan, 1]), np.array([1, np.nan]), False),
        (np.array([np.inf, 1]), np.array([-np.inf, 1]), False),
        (np.float32([1, 1e-3]), np.float32([1, 1.001e-3]), True),
        (np.float32([1, 1e-3]), np.float32([1, 1.1e-3]), False),
        (np.array(["a", "b"], object), np.array(["a", "c"], object), False),
    ],
)
def test_results_are_compared_strictly(want: np.ndarray, have: np.ndarray, same: bool) -> None:
    assert (difference(want, have) == "") == same


def test_movement_is_compared_to_the_last_bit() -> None:
    one = np.float32([1, 2])
    assert difference(one, np.nextafter(one, np.float32(9)), exact=True)
    assert not difference(one, np.nextafter(one, np.float32(9)))
