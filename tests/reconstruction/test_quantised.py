"""Layers whose weights are quantised: what a fit sees of them is what they compute, and what it gives is stored."""

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from quantised_models import FORMS, WIDTH, Quantiser, clipped_net, convolved, net
from small_models import Builder

import onnxprune
from onnxprune.calibration.samples import load_samples
from onnxprune.calibration.stream import Stream
from onnxprune.errors import CalibrationError
from onnxprune.graph.analysis import analyse
from onnxprune.model import Model
from onnxprune.reconstruction import layer as _layer
from onnxprune.reconstruction.evidence import Rows
from onnxprune.reconstruction.layer import weights_of, write
from onnxprune.reconstruction.layers import sites
from onnxprune.reconstruction.least_squares import Fit, Problem
from onnxprune.reconstruction.moments import Moments
from onnxprune.reconstruction.rounding import _fed_back, rounded
from onnxprune.reconstruction.stored import Grid
from onnxprune.reconstruction.taker import DenseOutput
from onnxprune.runtime.session import open_session


def samples(count: int = 400, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, WIDTH)).astype(np.float32)


def outputs(model, x, wanted=()):
    return open_session(model, wanted).run({"x": x})


def layer_of(model):
    analysis = analyse(Model.load(model), input_shapes={"x": (4, WIDTH)})
    (site,) = [s for s in sites(analysis) if s.weight != "mix"]
    return analysis, site


def off(analysis, site, matrices) -> float:
    """Return how far matrices are from what a layer computes, relative to the size of it."""
    x = samples(40)
    values = outputs(analysis.model, x, [site.x, site.y])
    rows = np.arange(len(x))
    made = (
        site.view.x(values[site.x].astype(np.float64), rows) @ matrices
        + weights_of(site, analysis.model)[1][:, None]
    )
    wanted = site.view.y(values[site.y], rows)
    return float(np.abs(made[0] - wanted).max() / np.abs(wanted).max())


@pytest.mark.parametrize("form", FORMS)
def test_a_fit_sees_what_the_layer_computes(form):
    analysis, site = layer_of(net(form))
    assert not site.exact
    matrices, _ = weights_of(site, analysis.model)
    assert off(analysis, site, matrices) < 1e-3
    matrices[0, 5, 3] += np.abs(matrices).mean()
    assert off(analysis, site, matrices) > 5e-3


@pytest.mark.parametrize("form", FORMS)
def test_what_lies_on_the_grid_is_stored_as_it_is(form):
    analysis, site = layer_of(net(form))
    matrices, biases = weights_of(site, analysis.model)
    before = {n: np.array(analysis.model.weight(n)) for n in site.codec.tensors}
    step = site.view.unpack(site.codec.grid(analysis.model).step)
    for turn in (1.0, 0.45, -0.3):
        fork = analysis.model.fork()
        write(fork, site, [Fit(m * turn, b) for m, b in zip(matrices, biases, strict=True)])
        assert (np.abs(weights_of(site, fork)[0] - matrices * turn) <= 0.51 * step).all()
        for name, value in before.items():
            if name != site.weight:  # scales and zero points stay
                assert np.array_equal(value, fork.weight(name))
        stored, old = fork.weight(site.weight), before[site.weight]
        assert stored.dtype == old.dtype
        if form != "trained":  # where what is stored is rounded only by the graph
            assert np.array_equal(stored, old) == (turn == 1.0)


@pytest.mark.parametrize("form", FORMS)
def test_a_cut_is_made_up_for(form, tmp_path):
    """Half of the units go: refitted on the grid, the layer is much nearer to what it was than with its old weights."""
    path = tmp_path / "m.onnx"
    onnx.save(net(form), path)
    errors = {}
    fresh = samples(500, 9)
    for recover in ("none", "lstsq"):
        out = tmp_path / f"{recover}.onnx"
        onnxprune.prune(
            path, out, ratio=0.5, align=1, calib={"x": samples()}, recover=recover, criterion="obs"
        )
        made, wanted = (next(iter(outputs(onnx.load(p), fresh).values())) for p in (out, path))
        errors[recover] = float(np.square(made - wanted).mean() / wanted.var())
    assert errors["none"] > 0.05
    assert errors["lstsq"] < 0.25 * errors["none"]


def problem(width: int, rows: int, seed: int) -> tuple[Problem, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = (
        rng.normal(size=(rows, width))
        @ (rng.normal(size=(width, width)) * np.exp(-np.arange(width) / width * 4))
        + 0.3
    )
    w = rng.normal(size=(width, 6))
    moments = Moments.empty(width, 6)
    moments.add(x, x @ w)
    return Problem.of(moments), w


@pytest.mark.parametrize("bits", [4, 8])
def test_rounding_that_heeds_the_moments_loses_less(bits):
    top = 2 ** (bits - 1) - 1
    for seed in range(3):
        case, w = problem(300, 4000, seed)  # several pieces
        w[::7, 2] = 0
        step = np.broadcast_to(np.abs(w).max(axis=0) / top, w.shape)
        grid = Grid(step, -(top + 1) * step, top * step)
        q = rounded(case, Fit(w, np.zeros(6)), grid)
        plain = rounded(case, Fit(w, np.zeros(6)), grid, careful=False)

        def error(fit, case=case, w=w):
            return float(np.einsum("io,ij,jo->", fit.w - w, case.h, fit.w - w))

        back = Fit(_fed_back(case.h + 1e-2 * np.diag(case.h).mean() * np.eye(300), w, grid), q.b)
        assert error(back) < 0.5 * error(plain)
        assert error(q) < 0.99 * error(back)
        assert (back.w[w == 0] == 0).all()
        assert np.allclose(grid.nearest(q.w), q.w, atol=1e-12)
        assert (q.w[w == 0] == 0).all()
        assert np.allclose(case.mx @ q.w + q.b, case.mx @ w)  # the mean output stays


def test_ends_of_the_grid_hold():
    case, w = problem(20, 500, 0)
    step = np.full(w.shape, 0.1)
    q = rounded(case, Fit(w * 3, np.zeros(6)), Grid(step, -5 * step, 4 * step))
    assert q.w.min() >= -0.5 - 1e-12
    assert q.w.max() <= 0.4 + 1e-12
    assert not np.allclose(q.w, np.clip(np.rint(w * 3 / 0.1) * 0.1, -0.5, 0.4))


def test_a_stream_reads_weights_that_were_edited_behind_it():
    """DequantizeLinear stands at the head of the graph: what it made before an edit is not what the layer reads."""
    model = net("qdq")
    nodes = sorted(model.graph.node, key=lambda n: not n.name.endswith("layer_dq"))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    loaded = Model.load(model)
    analysis = analyse(loaded, input_shapes={"x": (4, WIDTH)})
    (site,) = [s for s in sites(analysis) if s.weight != "mix"]
    fork = loaded.fork()
    stream = Stream(fork, load_samples(model.graph, {"x": samples(8)}), analysis.types)
    list(stream.run(site.number, [site.x]))
    assert not [n for batch in stream.batches for n in batch if "layer_dq" in n]
    matrices, biases = weights_of(site, fork)
    write(fork, site, [Fit(matrices[0] * 0, biases[0])])
    (batch,) = stream.run(site.end + 1, [site.y])
    assert np.allclose(batch[site.y], biases, atol=1e-4)


def test_a_stream_reads_scales_that_were_edited_behind_it():
    """The product of both scales stands in front of the layer: what it was before an edit scales nothing."""
    model = net("dynamic")
    loaded = Model.load(model)
    analysis = analyse(loaded, input_shapes={"x": (4, WIDTH)})
    (site,) = [s for s in sites(analysis) if s.weight != "mix"]
    nodes = [a.node for a in analysis.coupling.nodes]
    assert any(site.codec.scale in node.inputs for node in nodes[: site.number])
    fork = loaded.fork()
    stream = Stream(fork, load_samples(model.graph, {"x": samples(8)}), analysis.types)
    list(stream.run(site.number, [site.x]))
    (before,) = (batch[site.y] for batch in stream.run(site.end + 1, [site.y], stay=True))
    fork.put(site.codec.scale, 2 * fork.weight(site.codec.scale))
    list(stream.run(site.number + 1, []))
    (batch,) = stream.run(site.end + 1, [site.y])
    bias = weights_of(site, fork)[1]
    assert np.allclose(batch[site.y] - bias, 2 * (before - bias), atol=1e-4)


def test_a_bias_of_integers_follows():
    """Conv with an int8 weight and an int32 bias, each behind a DequantizeLinear."""
    b = Builder(3)
    x = b.op("Relu", [b.conv("x", "first", 3, 16)], "relu")
    q = Quantiser(b, "qdq")
    w = b.rng.normal(size=(6, 16, 3, 3)).astype(np.float32)
    dq = b.op("DequantizeLinear", q.numbers("w", w, 0), "w_dq", axis=0)
    scale = numpy_helper.to_array(next(t for t in b.weights if t.name == "w_scale"))
    bias = [
        b.constant("b_q", np.arange(6, dtype=np.int32) * 900),
        b.constant("b_scale", (scale * 0.01).astype(np.float32)),
    ]
    bias_dq = b.op("DequantizeLinear", [*bias, b.constant("b_zero", np.zeros(6, np.int32))], "b_dq", axis=0)
    y = b.op("Conv", [x, dq, bias_dq], "layer", pads=[1] * 4)
    model = b.model({"x": ["N", 3, 8, 8]}, y)
    analysis = analyse(Model.load(model), input_shapes={"x": (2, 3, 8, 8)})
    site = sites(analysis)[-1]
    matrices, biases = weights_of(site, analysis.model)
    assert np.allclose(biases, np.arange(6) * 900 * scale * 0.01)
    fork = analysis.model.fork()
    write(fork, site, [Fit(matrices[0], biases[0] + 1.0)])
    moved = weights_of(site, fork)[1] - biases
    assert np.abs(moved - 1.0).max() < 0.01 * scale.max()
    assert np.asarray(fork.weight("b_q")).dtype == np.int32
    assert len(fork.proto.graph.initializer) == len(model.graph.initializer)  # no bias of floats beside it
    given = {"x": np.random.default_rng(0).normal(size=(64, 3, 8, 8)).astype(np.float32)}
    result = onnxprune.prune(model, ratio=0.5, align=1, calib=given, recover="lstsq", criterion="obs")
    fit = next(line for line in result.report.calibration["layers"] if line["layer"] == "layer")
    assert fit["after"] < 0.9 * fit["before"]


def pictures(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 8, 6, 6)).astype(np.float32)


def test_what_a_layer_gave_before_it_was_clipped_is_computed():
    model = clipped_net()
    analysis = analyse(Model.load(model), input_shapes={"x": (2, 8, 6, 6)})
    site = sites(analysis)[-1]
    values = outputs(analysis.model, pictures(5, 0), [site.x, site.y])
    rows = np.arange(site.view.positions(values[site.y]))
    reached = DenseOutput(site, analysis.model)
    assert {site.x, site.y} == set(reached.wanted)
    computed = reached.rows(values, site.y, Rows(rows, len(rows)))
    given = site.view.y(values[site.y], rows).astype(np.float64)
    assert np.abs(np.clip(computed, 0, 255) - given).max() < 0.51
    assert (computed[given == 0] < 0.51).all()
    assert computed.min() < -20  # what a regression on the tensor would not know


def test_layers_that_clip_are_fitted(tmp_path):
    onnx.save(clipped_net(), tmp_path / "m.onnx")
    errors, fresh = {}, pictures(60, 9)
    for recover in ("none", "lstsq"):
        out = tmp_path / f"{recover}.onnx"
        given = {"x": pictures(80, 1)}
        onnxprune.prune(
            tmp_path / "m.onnx", out, ratio=0.5, align=1, calib=given, recover=recover, criterion="obs"
        )
        made, wanted = (next(iter(outputs(onnx.load(p), fresh).values())) for p in (out, tmp_path / "m.onnx"))
        errors[recover] = float(np.square(made - wanted).mean() / wanted.var())
    assert errors["lstsq"] < 0.25 * errors["none"]
    for name in ("ws", "w_scale", "w_zero", "ys", "yz"):
        before, after = (Model.load(tmp_path / f) for f in ("m.onnx", "lstsq.onnx"))
        assert name not in before or np.array_equal(before.weight(name), after.weight(name))


def test_criteria_that_ask_for_gradients_refuse_what_is_rounded():
    """No gradient passes QuantizeLinear: all units before it would be worth nothing, and the first ones would go."""
    for form in ("qdq", "dynamic"):
        with pytest.raises(CalibrationError, match="rounds what a layer reads"):
            onnxprune.prune(
                net(form), ratio=0.5, calib={"x": samples(40)}, criterion="taylor", recover="none"
            )
    result = onnxprune.prune(
        net("blocked"), ratio=0.5, calib={"x": samples(40)}, criterion="taylor", recover="none"
    )
    assert result.report.calibration


@pytest.mark.parametrize("form", ["qdq", "dynamic", "blocked", "nbits"])
def test_a_fit_gets_new_scales_where_they_are_better(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights that make up for others lie beyond the ends of the old grid, and one of it is coarser than it must be."""
    x = np.random.default_rng(1).normal(size=(600, WIDTH)).astype(np.float32)

    def cut() -> tuple[float, str]:
        found = onnxprune.prune(
            net(form, 3), ratio=0.6, calib={"x": x}, align=1, recover="lstsq"
        ).report.to_json()
        (line,) = found["calibration"]["layers"]
        return found["calibration"]["original"]["relative_error"], line["variant"]

    new, variant = cut()
    assert variant.endswith(", new scales")
    monkeypatch.setattr(_layer, "stretchable", lambda *_: False)
    old, variant = cut()
    assert not variant.endswith("scales")
    assert new < 0.9 * old


def test_the_scales_of_a_bias_go_with_those_of_its_weight() -> None:
    """A runtime that fuses the two takes the products for granted."""
    x = np.random.default_rng(1).normal(size=(200, 8, 6, 6)).astype(np.float32)
    result = onnxprune.prune(convolved(), ratio=0.5, calib={"x": x}, align=1, recover="lstsq")
    (line,) = result.report.to_json()["calibration"]["layers"]
    assert line["variant"].endswith(", new scales")
    made = {t.name: onnx.numpy_helper.to_array(t) for t in result.model.graph.initializer}
    np.testing.assert_allclose(made["b_scale"], made["xs"] * made["w_scale"], rtol=1e-6)
    assert line["after"] < line["before"]
