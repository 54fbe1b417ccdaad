"""The sequential test of rows, targets that are held ahead, and ridges that are tried from the middle."""

import numpy as np
import pytest
from small_models import Builder

from onnxprune.calibration.samples import Samples
from onnxprune.graph.analysis import analyse
from onnxprune.model import Model
from onnxprune.reconstruction import enough as _enough
from onnxprune.reconstruction import room as _room
from onnxprune.reconstruction import walk as _walk
from onnxprune.reconstruction.enough import CHECKS, THIN, Enough
from onnxprune.reconstruction.evidence import Collector, Rows, typical
from onnxprune.reconstruction.layer import Settings, tried
from onnxprune.reconstruction.layers import sites
from onnxprune.reconstruction.walk import Walk


def net(channels=6):
    b = Builder(4)
    x = b.op("Relu", [b.conv("x", "a", 3, channels)], "relu")
    x = b.op("Relu", [b.conv(x, "b", channels, channels)], "relu2")
    return b.model({"x": ["n", 3, 5, 4]}, b.conv(x, "c", channels, 4))


def opened(count=80):
    analysis = analyse(Model.load(net()))
    x = np.random.default_rng(1).standard_normal((count, 3, 5, 4)).astype(np.float32)
    batches = [{"x": part} for part in np.split(x, 8)]
    return analysis, Samples(batches, [count // 8] * 8, None, "", {"x": 0})


def fed(noise):
    """Feed a layer with targets of so much noise; return the test and how many rows were added."""
    site = sites(analyse(Model.load(net())))[1]
    rng, test, collector = np.random.default_rng(0), Enough(800), Collector(site.view)
    w = rng.standard_normal((54, 6))
    for _ in range(8):
        x = rng.standard_normal((100, 6, 5, 4)).astype(np.float32)
        at = np.arange(2000)
        y = site.view.x(x, at)[0] @ w + noise * rng.standard_normal((2000, 6))
        rows, which = test.thinned(Rows(at, 1600))
        np.testing.assert_array_equal(rows.index, at[which])
        assert rows.fitting == (which < 1600).sum() > 0
        collector.add(x, y[which], rows)
        test.look(collector, 100)
    return test, collector.fitting.n + collector.aside.n


def test_rows_become_few_where_another_fit_gains_nothing(monkeypatch):
    assert not fed(0.5)[0].still  # of a narrow layer none is left out while there are few
    monkeypatch.setattr(_enough, "LEAST", 1000)
    test, rows = fed(0.5)
    assert test.still
    assert rows < 0.6 * 8 * 2000
    assert rows >= 2000 * 2 + 6 * 2000 // THIN
    monkeypatch.setattr(_enough, "STILL", -1.0)  # nothing is ever still
    assert fed(0.5)[1] == 8 * 2000
    monkeypatch.setattr(_enough, "FEWEST", 1000)  # too few rows for any test
    monkeypatch.setattr(_enough, "STILL", 1.0)
    assert not fed(0.5)[0].still
    assert len(CHECKS) == len(set(CHECKS))


@pytest.mark.parametrize("ahead", [1 << 27, 0])
def test_targets_held_ahead_are_those_of_each_layer(monkeypatch, ahead):
    """The original runs once for several layers, or once for each: the moments are the same."""
    monkeypatch.setattr(_walk, "AHEAD_BYTES", ahead)
    analysis, samples = opened()
    todo = sites(analysis)
    model, found, lengths = analysis.model.fork(), [], []
    walk = Walk.of(analysis, [model], samples, Settings(), todo)
    for site in todo:
        (evidence,) = walk.evidence(site, spread=True)
        lengths.append(len(walk.targets))
        walk.done(site)
        found.append(evidence)
    assert lengths == ([3, 2, 1] if ahead else [1, 1, 1])
    assert not walk.targets
    assert not walk.dense.keep
    for site, evidence in zip(todo, found, strict=True):
        whole = evidence.whole()[0]
        old = analysis.model.weight(site.weight)
        w = site.view.unpack(np.asarray(old, np.float64))[0]
        np.testing.assert_allclose(whole.g, whole.h @ w, rtol=1e-3, atol=1e-4)  # the model is the original
        np.testing.assert_allclose(evidence.spread, typical(whole.v), rtol=0.1)


def test_targets_last_for_other_fits_on_the_same_samples(monkeypatch):
    analysis, samples = opened()
    todo, targets = sites(analysis), {}
    grams = []
    for _ in range(2):
        walk = Walk.of(analysis, [analysis.model.fork()], samples, Settings(), todo, targets)
        if targets:
            monkeypatch.setattr(walk.dense, "run", None)  # the original isn't run again
        for site in todo:
            grams.append(walk.evidence(site)[0].fitting.gram)
            walk.done(site)
    assert len(targets) == 3
    for one, two in zip(grams[:3], grams[3:], strict=True):
        assert one.tobytes() == two.tobytes()


def test_targets_of_fits_are_taken_as_curves_are(monkeypatch):
    analysis, samples = opened()
    todo, targets = sites(analysis), {}
    walk = Walk.of(analysis, [], samples, Settings(), todo, targets)
    walk.originals(todo)
    ahead = Walk.of(analysis, [analysis.model.fork()], samples, Settings(), todo)
    for site in todo:
        ahead.evidence(site)
        for one, other in zip(targets[site.number], ahead.targets[site.number], strict=True):
            assert one.nbytes == other.nbytes > 0
            for a, b in zip(one.y, other.y, strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    monkeypatch.setattr(_room, "LASTING", 1)
    few = {}
    Walk.of(analysis, [], samples, Settings(), todo, few).originals(todo)
    assert not few


@pytest.mark.parametrize("best", range(4))
def test_ridges_are_tried_from_the_middle(best):
    names, asked = ["kept", "bias", *(f"lstsq {n}" for n in range(4))], []

    def error(name):
        asked.append(name)
        return 9.0 if not name.startswith("lstsq") else abs(int(name[-1]) - best) + 1.0

    errors = tried(error, names)
    assert min(errors, key=errors.get) == f"lstsq {best}"
    assert set(asked) == set(errors)
    assert len(asked) == len(errors) <= 6 - (best != 3) * (best != 2) * (best != 0)
    assert set(tried(error, ["kept"])) == {"kept"}
