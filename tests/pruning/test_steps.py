"""Pruning in steps, and trial fits: what they share with one step, and what they must not change."""

import numpy as np
import pytest

import onnxprune
from onnxprune.calibration.samples import load_samples
from onnxprune.errors import UsageError
from onnxprune.graph.analysis import analyse
from onnxprune.journey.run import Run
from onnxprune.model import Model
from onnxprune.options.pruning import Options
from onnxprune.pruning.decision import limit_of
from onnxprune.pruning.journey import analysis_of
from onnxprune.pruning.on_samples import FromSamples
from onnxprune.pruning.saliency import criterion_of
from onnxprune.pruning.schedule import decide_in_steps, schedule
from onnxprune.reconstruction.sequential import Calibration
from pruning.test_calibrated import images, residual, run


def calibration(model):
    found = analyse(Model.load(model))
    samples = load_samples(model.graph, {"x": images()}, types=found.inputs)
    made = Calibration(found, samples, list(found.grouping.groups), criterion_of("obs").measure)
    made.measure_curves()
    return made


def test_curves_taken_again_are_those_of_the_original_while_nothing_is_cut_and_others_after_a_cut():
    made = calibration(residual(redundant=False))
    same = made.fit({}, measure=True).curves
    for name, curve in made.curves.items():
        np.testing.assert_allclose(same[name].error, curve.error, rtol=0.05)
    group = next(n for n, places in made.places.items() if len(places) == 1)
    cut = made.fit({group: made.curves[group].order[:6]}, measure=True).curves
    changed = [n for n in made.curves if not np.allclose(cut[n].error, made.curves[n].error, rtol=0.05)]
    assert changed
    assert group not in changed  # what comes before the cut has the same inputs as ever


def test_steps_meet_the_budget_and_are_no_worse_than_cutting_blindly():
    model, fresh = residual(redundant=False), images(128, seed=9)
    before = run(model, fresh)

    def error(**more):
        result = onnxprune.prune(model, target="macs=0.6", align=None, calib={"x": images(320)}, **more)
        assert result.report.after.macs <= 0.6 * result.report.before.macs * 1.001
        return np.linalg.norm(run(result.model, fresh) - before)

    one, three, blind = (
        error(steps=1),
        error(steps=3),
        error(steps=1, criterion="wanda", recover="none", trials=0),
    )
    assert three < 1.2 * one
    assert max(one, three) < blind


def test_the_memory_of_statistics_is_said():
    made = calibration(residual())
    wide = max(s.view.width * (s.view.width + s.view.outputs) for s in made.sites)
    assert made.gram_bytes == 2 * 8 * wide  # one block each; two float64 matrices


def test_steps_work_with_a_ratio_and_give_the_same_bytes_twice(tmp_path):
    for name in ("a", "b"):
        onnxprune.prune(residual(), tmp_path / name, ratio=0.5, align=None, calib={"x": images()}, steps=2)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_members_of_a_family_in_steps_do_not_see_each_other():
    """Each begins from the original's loss curves, whatever steps the one before it has gone."""
    options = Options(target=("macs=0.6",), align="none", calib={"x": images()}, steps=2, trials=0)
    run_ = Run.open(residual(redundant=False), options)
    first = FromSamples.open(run_, analysis_of(run_))
    measured = first.calibration.curves
    decide_in_steps(run_, first, limit_of(run_, first.analysis, first.groups))
    gone = first.calibration.curves
    assert any(not np.allclose(gone[n].error, measured[n].error, rtol=0.05) for n in measured)
    second = first.again(run_)
    assert second.calibration.curves is measured
    assert first.calibration.curves is gone


@pytest.mark.parametrize(("option", "value"), [("steps", 0), ("trials", -1)])
def test_counts_below_the_least_are_refused(option, value):
    with pytest.raises(UsageError, match=f"--{option} must be at least"):
        onnxprune.prune(residual(), ratio=0.5, calib={"x": images()}, **{option: value})


@pytest.mark.parametrize("asked", [{"ratio": 0.84}, {"target": ("macs=0.16",)}])
def test_each_step_takes_the_same_share_of_what_the_one_before_left(asked):
    run_ = Run.open(residual(), Options(align=None, check_speed=True, **asked))
    analysis = analysis_of(run_)
    last = limit_of(run_, analysis, analysis.grouping.groups)
    (half,) = schedule(last, 2)
    left = half.targets[0].value if half.targets else 1 - half.ratio
    assert left == pytest.approx(0.4)  # 0.4 of 0.4 is 0.16
    assert (last.timed, half.timed) == (True, False)  # only what holds in the end is timed
    assert list(schedule(last, 1)) == []
