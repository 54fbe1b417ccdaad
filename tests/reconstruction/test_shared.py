"""Groups that calibration must be able to cut: shared weights, both axes in one group, readers that can't be fitted."""

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from shared_models import MAKERS, made

import onnxprune
from onnxprune.api import sensitivity
from onnxprune.graph.analysis import analyse
from onnxprune.model import Model
from onnxprune.options.pruning import Options
from onnxprune.pruning.curves import _by_norm
from onnxprune.reconstruction.layers import readers, sites
from onnxprune.reconstruction.least_squares import Curve

QUICK = {"calib": "synthetic", "samples": 32, "align": "none"}
#: groups that are read by what can't be fitted, and by fits alone
ALONE = {"tied": 2, "gru_both_ways": 2, "two_readers": 2}


def matrices(model: onnx.ModelProto) -> int:
    return sum(numpy_helper.to_array(t).size for t in model.graph.initializer if len(t.dims) > 1)


def error(result: onnxprune.Result) -> float:
    calibration = result.report.calibration
    assert calibration is not None
    return float(calibration["original"]["relative_error"])


@pytest.mark.parametrize("name", MAKERS)
def test_samples_keep_as_few_parameters_as_none(name):
    model = made(name)
    without = onnxprune.prune(model, ratio=0.5, align="none")
    result = onnxprune.prune(model, ratio=0.5, recover="lstsq", **QUICK)
    assert matrices(result.model) <= matrices(without.model) < 0.6 * matrices(model)
    assert result.report.law1["max_relative_error"] <= 1e-5
    assert not result.report.put_back
    notes = [n for n in result.report.notes if "cut by weights alone" in n]
    assert len(notes) == (name in ALONE)
    if notes:
        found = result.report.calibration["by_norm"]
        assert len(found) == ALONE[name]
        assert all(group in notes[0] for group in found)


@pytest.mark.parametrize("name", ["siamese", "pyramid", "updates", "complex_convs", "residual", "repvgg"])
def test_a_fit_comes_nearer_to_the_original(name):
    model = made(name)
    alone = onnxprune.prune(model, ratio=0.5, recover="none", **QUICK)
    fitted = onnxprune.prune(model, ratio=0.5, recover="lstsq", **QUICK)
    assert all(
        line["variant"][:5] in ("lstsq", "local") for line in fitted.report.calibration["layers"][1:-1]
    )
    assert error(fitted) < 0.9 * error(alone)


def test_blocks_move_shared_weights_where_all_uses_are_together():
    model = made("siamese")
    more = {**QUICK, "samples": 96}
    least = onnxprune.prune(model, ratio=0.5, recover="lstsq", **more)
    blocks = onnxprune.prune(model, ratio=0.5, recover="blocks", **more)
    assert error(blocks) < error(least)


def uses(name):
    return {s.weight: len(s.uses) for s in sites(analyse(Model.load(made(name))))}


def test_all_uses_of_a_weight_are_one_layer():
    assert uses("siamese") == {"w0": 2, "w1": 2, "wf": 2, "last.weight": 1}
    assert uses("pyramid")["tower"] == uses("pyramid")["last"] == 3
    assert uses("two_ranks") == {"w": 2, "v": 2}
    assert "w" not in uses("tied")


def test_biases_of_each_use_stay_as_they_are():
    model = made("levels")
    (shared,) = [s for s in sites(analyse(Model.load(model))) if s.weight == "w"]
    assert [use.given is None for use in shared.uses] == [False] * 3
    fitted = onnxprune.prune(model, ratio=0.5, recover="lstsq", **QUICK)
    assert {line["variant"][:5] for line in fitted.report.calibration["layers"]} <= {"lstsq", "local"}
    old, new = (
        {t.name: numpy_helper.to_array(t) for t in m.graph.initializer} for m in (model, fitted.model)
    )
    for name in ("ub0", "ub1", "ub2"):
        assert set(new[name]) < set(old[name])
    assert error(fitted) < 0.9 * error(onnxprune.prune(model, ratio=0.5, recover="none", **QUICK))


def test_a_group_with_other_readers_is_read_in_part():
    analysis = analyse(Model.load(made("two_readers")))
    found, groups = sites(analysis), analysis.grouping.groups
    whole, part = readers(found, groups), readers(found, groups, partly=True)
    assert "in.weight:1" in set(part) - set(whole)
    assert {site.weight for site, _ in part["in.weight:1"]} == {"other.weight"}


def test_what_cannot_be_fitted_no_longer_reads_what_goes():
    """The layer behind an LSTM is fitted to what the cut model gives it: then its fit holds in the result, too."""
    model = made("gru_both_ways")
    result = onnxprune.prune(model, ratio=0.5, recover="lstsq", **QUICK)
    (layer,) = result.report.calibration["layers"]
    assert layer["after"] < 0.8 * layer["before"]
    assert error(result) < 2 * layer["after"] ** 0.5


@pytest.mark.parametrize("criterion", ["l2", "wanda", "taylor", "obd", "apoz"])
@pytest.mark.parametrize("name", ["siamese", "two_readers"])
def test_every_criterion(name, criterion):
    result = onnxprune.prune(made(name), ratio=0.5, criterion=criterion, recover="lstsq", **QUICK)
    assert matrices(result.model) < 0.6 * matrices(made(name))


@pytest.mark.parametrize("name", ["pyramid", "residual", "two_readers"])
def test_a_target_is_met(name):
    result = onnxprune.prune(made(name), target="macs=0.6", recover="lstsq", **QUICK)
    assert result.report.after.macs <= 0.6 * result.report.before.macs


def test_sensitivity_says_what_was_measured():
    for name, measured in (("tied", {False}), ("siamese", {True})):
        found = sensitivity(made(name), calib="synthetic", samples=32)
        assert {line["measured"] for line in found.groups} == measured


def test_what_is_read_and_made_by_one_layer_is_not_turned():
    """Another basis for the sum would need the layer's outputs turned, too."""
    model = made("linear_residual")
    result = onnxprune.prune(model, ratio=0.5, recover="lstsq", **QUICK)
    assert result.report.calibration["rotated"] == {"groups": [], "refused": {}}


def test_a_group_that_nobody_can_measure_costs_in_each_layer_that_reads_it():
    """Half of it as much, in each, as half of the dearest group that was measured."""
    analysis = analyse(Model.load(made("two_readers")))
    groups = [g for g in analysis.grouping.groups if not g.alternative]
    several = [g for g in groups if len({m.tensor for m in g.members if m.contracted}) > 1]
    assert several
    known = {"known": Curve(np.arange(4), np.array([0.0, 0.1, 0.2, 0.4, 0.8]))}
    for group in several:
        readers = len({m.tensor for m in group.members if m.contracted})
        curve = _by_norm(analysis.model, [group], Options(ratio=0.5, criterion="l2"), known)[group.name]
        assert curve.error[(len(curve.error) - 1) // 2] == pytest.approx(0.2 * readers)
