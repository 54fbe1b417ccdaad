"""Criteria that watch the whole model: what they measure, against the same by hand."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from pruning.test_calibrated import residual

from onnxprune import registry
from onnxprune.calibration.samples import load_samples
from onnxprune.gradient.seeds import Seeds
from onnxprune.graph.analysis import analyse
from onnxprune.model import Model
from onnxprune.reconstruction.layers import readers, sites
from onnxprune.reconstruction.probe import Probe
from onnxprune.runtime.session import open_session

ROOT = Path(__file__).resolve().parents[2]
DIGITS = ROOT / "samples" / "01_digits_cnn" / "digits_cnn.onnx"


def probe_of(proto, x, seed=0):
    analysis = analyse(Model.load(proto))
    groups = list(analysis.grouping.groups)
    name = analysis.model.proto.graph.input[0].name
    samples = load_samples(analysis.model.proto.graph, {name: x})
    return Probe(analysis, samples, readers(sites(analysis), groups), seed)


def small(seed=1, count=12):
    return np.random.default_rng(seed).standard_normal((count, 3, 6, 6)).astype(np.float32)


def scaled(proto, probe, group, unit, factor):
    """The model with one unit scaled where it is read: its rows in the weights of the readers."""
    twin = onnx.ModelProto.FromString(proto.SerializeToString())
    weights = {t.name: t for t in twin.graph.initializer}
    for site, blocks in probe.readers[group]:
        array = np.array(numpy_helper.to_array(weights[site.weight]))
        matrices = site.view.unpack(array).copy()
        for block, rows in enumerate(blocks):
            matrices[block][rows[unit]] *= factor
        weights[site.weight].CopyFrom(
            numpy_helper.from_array(
                np.ascontiguousarray(site.view.pack(matrices)).reshape(array.shape), site.weight
            )
        )
    return twin


def losses(proto, x, chosen):
    """-log p of the chosen classes, float64[samples]."""
    name = proto.graph.input[0].name
    z = next(iter(open_session(proto).run({name: x}).values())).astype(np.float64)
    z = z - z.max(axis=1, keepdims=True)
    logs = z - np.log(np.exp(z).sum(axis=1, keepdims=True))
    return -logs[np.arange(len(x)), chosen]


def drawn(proto, x, seed):
    """The classes that the probe draws for one batch of logits."""
    name = proto.graph.input[0].name
    z = next(iter(open_session(proto).run({name: x}).values()))
    return np.argmin(Seeds.of([z], seed).draw(z), axis=1)


def test_the_first_order_change_is_the_derivative_of_the_loss():
    """Of every unit, also of those of the residual stream, which several layers read."""
    proto, x = residual(redundant=False), small()
    probe = probe_of(proto, x)
    chosen = drawn(proto, x, 0)
    (changes,) = probe.first_order()
    seen = 0
    assert max(len(mine) for mine in probe.readers.values()) >= 2
    for group in probe.readers:
        found = probe.units(group, changes)
        for unit in range(0, found.shape[1], 4):
            step = 1e-3
            ends = [losses(scaled(proto, probe, group, unit, 1 + s * step), x, chosen) for s in (-1, 1)]
            true = (ends[0] - ends[1]) / (2 * step)  # the unit grows weaker
            np.testing.assert_allclose(found[:, unit], true, atol=1e-2 * np.abs(true).max() + 2e-3)
            seen += 1
    assert seen > 5


def test_taylor_is_their_mean_magnitude():
    probe = probe_of(residual(redundant=False), small())
    scores = registry.load("onnxprune.criteria", "taylor").measure(probe)
    (changes,) = probe.first_order()
    for group, found in scores.items():
        np.testing.assert_allclose(found, np.abs(probe.units(group, changes)).mean(axis=0))
        assert (found > 0).all()


def rank_correlation(a, b):
    ranks = [np.argsort(np.argsort(v)) for v in (a, b)]
    return float(np.corrcoef(*ranks)[0, 1])


def test_taylor_agrees_with_what_removing_a_unit_does_to_a_trained_net():
    """Rank correlation with the true mean change of the loss; weights alone say less on the same net."""
    proto = onnx.load(DIGITS)
    with np.load(ROOT / "samples" / "data" / "digits.npz") as data:
        x = (data["train_x"][:128, None] / 16).astype(np.float32)
    probe = probe_of(proto, x)
    batches, classes = probe.samples.batches, []
    name = proto.graph.input[0].name
    outputs = [next(iter(open_session(proto).run(b).values())) for b in batches]
    seeds = Seeds.of(outputs, 0)
    for z in outputs:
        classes.append(np.argmin(seeds.draw(z), axis=1))
    x, chosen = np.concatenate([b[name] for b in batches]), np.concatenate(classes)
    scores = registry.load("onnxprune.criteria", "taylor").measure(probe)
    before, agreement = losses(proto, x, chosen), []
    for group, found in scores.items():
        units = np.arange(0, len(found), max(len(found) // 8, 1))
        true = [
            np.abs(losses(scaled(proto, probe, group, int(u), 0.0), x, chosen) - before).mean() for u in units
        ]
        agreement.append(rank_correlation(found[units], np.array(true)))
    assert np.mean(agreement) > 0.8, agreement


def test_apoz_counts_what_is_silent():
    proto, x = residual(redundant=False), small()
    probe = probe_of(proto, x)
    scores = registry.load("onnxprune.criteria", "apoz").measure(probe)
    inner = next(g for g, mine in probe.readers.items() if mine[0][0].x == "r0")
    values = open_session(proto, ["r0"]).run({"x": x}, ["r0"])["r0"]
    np.testing.assert_allclose(scores[inner], (values != 0).mean(axis=(0, 2, 3)), atol=2e-6)
    assert 0.1 < scores[inner].mean() < 0.9


@pytest.mark.parametrize("criterion", ["taylor", "apoz"])
def test_the_same_samples_give_the_same_scores(criterion):
    measure = registry.load("onnxprune.criteria", criterion).measure
    proto, x = residual(), small()
    one, two = measure(probe_of(proto, x, 5)), measure(probe_of(proto, x, 5))
    for group in one:
        np.testing.assert_array_equal(one[group], two[group])
