"""Experts are ranked on samples by gate weight times norm of output, alone and beside channels."""

import numpy as np
import pytest
from expert_models import CHOSEN, EXPERTS, FORMS, mixture
from onnx import numpy_helper

import onnxprune
from onnxprune.calibration.samples import Samples
from onnxprune.errors import UsageError
from onnxprune.graph.analysis import analyse
from onnxprune.graph.choices import opened
from onnxprune.graph.contributions import contributions
from onnxprune.model import Model
from onnxprune.pruning.reap import ranked_experts

ROWS = np.random.default_rng(0).standard_normal((64, 5)).astype(np.float32)


def by_hand(form: str) -> np.ndarray:
    """The mean, over tokens that chose an expert, of its share of the softmax times the norm of its output."""
    weights = {
        t.name: numpy_helper.to_array(t).astype(np.float64)
        for t in mixture(form, "choice, softmax").graph.initializer
    }

    def of(kind: str, expert: int) -> np.ndarray:
        own = f"layers.0.experts.{expert}.{kind}.weight"
        return weights[own] if own in weights else weights[f"layers.0.{kind}"][expert]

    def bias(expert: int) -> np.ndarray:
        return weights.get(f"layers.0.experts.{expert}.up.bias", np.zeros(1))

    x = np.maximum(ROWS @ weights["stem.weight"] + weights["stem.bias"], 0)
    scores = x @ weights["layers.0.router.weight"] + weights["layers.0.router.bias"]
    best = np.argsort(-scores, axis=1)[:, :CHOSEN]
    top = np.exp(np.take_along_axis(scores, best, 1))
    shares = top / top.sum(1, keepdims=True)
    total, count = np.zeros(EXPERTS), np.zeros(EXPERTS)
    for t, expert in np.ndindex(best.shape):
        e = best[t, expert]
        y = np.maximum(x[t] @ of("up", e) + bias(e), 0) @ of("down", e)
        total[e] += shares[t, expert] * np.linalg.norm(y)
        count[e] += np.linalg.norm(y) > 0
    return total / np.maximum(count, 1)


@pytest.mark.parametrize("form", [form for form in FORMS if form != "fused"])
def test_ranks_are_those_of_the_paper(form: str) -> None:
    analysis = opened(analyse(Model.load(mixture(form, "choice, softmax"))))
    groups = [g for g in analysis.grouping.groups if g.kind == "experts"]
    rankings, notes = ranked_experts(
        analysis, groups, Samples([{"x": ROWS[:40]}, {"x": ROWS[40:]}], [40, 24])
    )
    (ranking,) = rankings.values()
    worth = by_hand(form)
    np.testing.assert_allclose(ranking.scores, worth / worth.mean(), rtol=1e-4)
    assert ranking.order.tolist() == np.argsort(worth, kind="stable").tolist()
    assert np.ptp(worth) > 0.1 * worth.mean()
    assert (np.diff(ranking.error[:-1]) >= 0).all()
    assert notes == ["experts of 1 layer are ranked by gate weight times norm of output (REAP)"]


@pytest.mark.parametrize("shares", ["", "shares"])
def test_a_fused_mixture_is_ranked_by_its_gates(shares: str) -> None:
    analysis = opened(analyse(Model.load(mixture("fused", shares))))
    (one,) = contributions(analysis).values()
    assert (one.form, one.shares, one.chosen) == ("scores", bool(shares), CHOSEN)
    groups = [g for g in analysis.grouping.groups if g.kind == "experts"]
    rankings, notes = ranked_experts(analysis, groups, Samples([{"x": ROWS}], [64]))
    (ranking,) = rankings.values()
    assert len(set(ranking.scores.tolist())) == EXPERTS
    assert "can't be read" in notes[0]


def test_an_expert_that_nobody_chooses_goes_first() -> None:
    model = mixture("dense", "choice, softmax")
    (bias,) = (t for t in model.graph.initializer if t.name == "layers.0.router.bias")
    bias.CopyFrom(numpy_helper.from_array(np.array([0, 0, 0, -100, 0, 0], np.float32), bias.name))
    result = onnxprune.prune(model, ratio=0.2, granularity="experts", calib={"x": ROWS})
    assert [g.removed_units for g in result.plan.groups] == [(3,)]
    assert result.report.calibration["original"]["relative_error"] < 1e-6
    half = onnxprune.prune(model, ratio=0.5, granularity="experts", calib={"x": ROWS})
    assert half.report.calibration["original"]["relative_error"] > 1e-3


@pytest.mark.parametrize("limit", [{"ratio": 0.5}, {"target": ("params=0.35",)}])
def test_channels_and_experts_share_samples_and_budgets(limit: dict[str, object]) -> None:
    model = mixture("stacked", layers=2)
    result = onnxprune.prune(model, **limit, granularity="channels,experts", calib={"x": ROWS}, align=None)
    gone = {g.name: g.removed_units for g in result.plan.groups if g.removed_units}
    kinds = {g["name"]: g["kind"] for g in result.report.groups}
    assert any(kinds[name] == "experts" for name in gone)
    assert any(kinds[name] != "experts" for name in gone)
    assert result.report.law1["max_relative_error"] < 1e-4
    assert result.report.calibration["layers"]
    for target in result.report.targets:
        assert target["holds"]
    alone = onnxprune.prune(model, ratio=0.5, granularity="channels", calib={"x": ROWS}, align=None)
    assert {g.name for g in alone.plan.groups}.isdisjoint(n for n in gone if kinds[n] == "experts")


def test_what_ranks_no_experts_says_so(tmp_path: object) -> None:
    with pytest.raises(UsageError, match="Experts go by 'prune' and 'plan' alone"):
        onnxprune.family(
            mixture(), f"{tmp_path}/out", target="params=0.9,0.8", granularity="experts", calib={"x": ROWS}
        )
