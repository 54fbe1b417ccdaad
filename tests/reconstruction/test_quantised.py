"""Layers whose weights are quantised: what a fit sees of them is what they compute, and what it gives is stored."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from small_models import Builder

import onnxprune
from onnxprune.calibration.samples import load_samples
from onnxprune.calibration.stream import Stream
from onnxprune.graph.analysis import analyse
from onnxprune.model import Model
from onnxprune.reconstruction.evidence import Rows
from onnxprune.reconstruction.layer import weights_of, write
from onnxprune.reconstruction.layers import sites
from onnxprune.reconstruction.least_squares import Fit, Problem
from onnxprune.reconstruction.moments import Moments
from onnxprune.reconstruction.rounding import rounded
from onnxprune.reconstruction.stored import Grid
from onnxprune.reconstruction.walk import _Reached
from onnxprune.runtime.session import open_session

WIDTH, INNER, OUT = 32, 64, 8
IR = 10


class Quantiser:
    """Adds a layer in one of the forms in which quantised models are deployed."""

    def __init__(self, b: Builder, form: str) -> None:
        self.b, self.form = b, form

    def numbers(self, name: str, w: np.ndarray, axis: int | None, kind: str = "int8") -> list[str]:
        """Return the names of integers, scales and zero points of a weight."""
        low, high = {"int8": (-127, 127), "uint8": (0, 255), "int4": (-7, 7)}[kind]
        over = None if axis is None else tuple(i for i in range(w.ndim) if i != axis)
        least, most = np.minimum(w.min(over), 0), np.maximum(w.max(over), 0)
        if kind == "uint8":
            scale = (most - least) / 255
            zero = np.rint(-least / scale)
        else:
            scale, zero = np.maximum(most, -least) / high, np.zeros_like(most)
        shape = [1] * w.ndim
        if axis is not None:
            shape[axis] = -1
        q = np.clip(np.rint(w / np.reshape(scale, shape)) + np.reshape(zero, shape), low, high)
        dtype = np.uint8 if kind == "uint8" else np.int8
        return [
            self.b.constant(f"{name}_q", q.astype(dtype)),
            self.b.constant(f"{name}_scale", np.asarray(scale, np.float32)),
            self.b.constant(f"{name}_zero", np.asarray(zero).astype(dtype)),
        ]

    def linear(self, x: str, name: str, cin: int, cout: int) -> str:
        """Add ``x W + b``."""
        w = self.b.rng.normal(size=(cin, cout)).astype(np.float32) * 0.4
        y = getattr(self, self.form)(x, name, w)
        return self.b.op("Add", [y, self.b.weight(f"{name}_b", cout)], f"{name}_add")

    def qdq(self, x: str, name: str, w: np.ndarray) -> str:
        """Per channel; the input is quantised too."""
        step, zero = (
            self.b.constant(f"{name}_xs", np.float32(0.05)),
            self.b.constant(f"{name}_xz", np.uint8(120)),
        )
        x = self.b.op("QuantizeLinear", [x, step, zero], f"{name}_xq")
        x = self.b.op("DequantizeLinear", [x, step, zero], f"{name}_xdq")
        dq = self.b.op("DequantizeLinear", self.numbers(name, w, 1), f"{name}_dq", axis=1)
        return self.b.op("MatMul", [x, dq], name)

    def transposed(self, x: str, name: str, w: np.ndarray) -> str:
        """Per tensor, asymmetric, turned behind the DequantizeLinear."""
        dq = self.b.op("DequantizeLinear", self.numbers(name, w.T.copy(), None, "uint8"), f"{name}_dq")
        return self.b.op("MatMul", [x, self.b.op("Transpose", [dq], f"{name}_turn", perm=[1, 0])], name)

    def trained(self, x: str, name: str, w: np.ndarray) -> str:
        """Floats that the graph rounds."""
        _, scale, zero = self.numbers(name, w, 1)
        q = self.b.op("QuantizeLinear", [self.b.constant(f"{name}_w", w), scale, zero], f"{name}_q", axis=1)
        dq = self.b.op("DequantizeLinear", [q, scale, zero], f"{name}_dq", axis=1)
        self.b.weights = [t for t in self.b.weights if t.name != f"{name}_q"]
        return self.b.op("MatMul", [x, dq], name)

    def dynamic(self, x: str, name: str, w: np.ndarray) -> str:
        """Dynamic int8 as onnxruntime's quantiser writes it."""
        q, scale, zero = self.numbers(name, w, 1)
        self.b.nodes.append(helper.make_node("DynamicQuantizeLinear", [x], [f"{name}_{k}" for k in "xsz"]))
        y = self.b.op("MatMulInteger", [f"{name}_x", q, f"{name}_z", zero], name)
        y = self.b.op("Cast", [y], f"{name}_cast", to=TensorProto.FLOAT)
        return self.b.op("Mul", [y, self.b.op("Mul", [f"{name}_s", scale], f"{name}_scales")], f"{name}_mul")

    def fused(self, x: str, name: str, w: np.ndarray) -> str:
        """DynamicQuantizeMatMul."""
        return self.b.op(
            "DynamicQuantizeMatMul", [x, *self.numbers(name, w, None, "uint8")], name, domain="com.microsoft"
        )

    def to_float(self, x: str, name: str, w: np.ndarray) -> str:
        """MatMulIntegerToFloat."""
        q, scale, zero = self.numbers(name, w, None)
        self.b.nodes.append(helper.make_node("DynamicQuantizeLinear", [x], [f"{name}_{k}" for k in "xsz"]))
        inputs = [f"{name}_x", q, f"{name}_s", scale, f"{name}_z", zero]
        return self.b.op("MatMulIntegerToFloat", inputs, name, domain="com.microsoft")

    def blocked(self, x: str, name: str, w: np.ndarray) -> str:
        """Int4 in blocks of 16 along K."""
        blocks = w.reshape(-1, 16, w.shape[1])
        scale = np.abs(blocks).max(axis=1) / 7
        q = np.rint(blocks / scale[:, None]).reshape(w.shape).astype(np.int8)
        packed = helper.make_tensor(f"{name}_q", TensorProto.INT4, w.shape, q.ravel())
        self.b.weights.append(packed)
        scales = self.b.constant(f"{name}_scale", scale.astype(np.float32))
        dq = self.b.op("DequantizeLinear", [f"{name}_q", scales], f"{name}_dq", axis=0, block_size=16)
        return self.b.op("MatMul", [x, dq], name)

    def nbits(self, x: str, name: str, w: np.ndarray, zero: bool = False) -> str:
        """MatMulNBits, 4 bits in blocks of 16."""
        blocks = w.T.reshape(w.shape[1], -1, 16)
        scale = np.abs(blocks).max(axis=2, keepdims=True) / 7
        q = (np.rint(blocks / scale) + 8 - zero).astype(np.uint8)
        data = q[..., ::2] | (q[..., 1::2] << 4)
        inputs = [
            x,
            self.b.constant(f"{name}_q", data),
            self.b.constant(f"{name}_scale", scale[..., 0].astype(np.float32)),
        ]
        if zero:
            count = w.shape[1] * (-(-blocks.shape[1] // 2))
            inputs.append(self.b.constant(f"{name}_zero", np.full(count, 0x77, np.uint8)))
        attrs = {"K": w.shape[0], "N": w.shape[1], "bits": 4, "block_size": 16}
        return self.b.op("MatMulNBits", inputs, name, domain="com.microsoft", **attrs)

    def nbits_zero(self, x: str, name: str, w: np.ndarray) -> str:
        """The same with zero points of 7."""
        return self.nbits(x, name, w, zero=True)


FORMS = ["qdq", "transposed", "trained", "dynamic", "fused", "to_float", "blocked", "nbits", "nbits_zero"]


def net(form: str, seed: int = 0) -> onnx.ModelProto:
    """Two layers with a Relu between them, whose units are nearly sums of each other, so that a fit can make up."""
    b = Builder(seed)
    mix = b.rng.normal(size=(WIDTH, INNER // 4)) @ b.rng.normal(size=(INNER // 4, INNER)) / 8
    first = b.op("MatMul", ["x", b.constant("mix", mix.astype(np.float32))], "first")
    quantiser = Quantiser(b, form)
    y = quantiser.linear(b.op("LeakyRelu", [first], "act", alpha=0.9), "layer", INNER, OUT)
    model = b.model({"x": ["N", WIDTH]}, y, 21, "com.microsoft")
    model.ir_version = IR
    del model.graph.value_info[:]
    return model


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


@pytest.mark.parametrize("form", [f for f in FORMS if f != "nbits_zero"])  # whose K is frozen
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
        case, w = problem(150, 2000, seed)  # more than a piece
        w[::7, 2] = 0
        step = np.broadcast_to(np.abs(w).max(axis=0) / top, w.shape)
        grid = Grid(step, -(top + 1) * step, top * step)
        q = rounded(case, Fit(w, np.zeros(6)), grid)
        plain = rounded(case, Fit(w, np.zeros(6)), grid, careful=False)

        def error(fit, case=case, w=w):
            return float(np.einsum("io,ij,jo->", fit.w - w, case.h, fit.w - w))

        assert error(q) < 0.4 * error(plain)
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
    matrices, biases = weights_of(site, fork)
    write(fork, site, [Fit(matrices[0] * 0, biases[0])])
    (batch,) = stream.run(site.end + 1, [site.y])
    assert np.allclose(batch[site.y], biases, atol=1e-4)


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


def clipped_net() -> onnx.ModelProto:
    """A convolution whose units are nearly sums of each other, and a QLinearConv that stands for Conv and Relu."""
    b = Builder(5)
    mix = b.rng.normal(size=(16, 4)) @ b.rng.normal(size=(4, 8))
    x = b.op("Conv", ["x", b.constant("mix", mix.reshape(16, 8, 1, 1).astype(np.float32))], "first")
    step, zero = b.constant("xs", np.float32(0.1)), b.constant("xz", np.uint8(128))
    x = b.op("QuantizeLinear", [x, step, zero], "q")
    w = Quantiser(b, "").numbers("w", b.rng.normal(size=(6, 16, 3, 3)).astype(np.float32), 0)
    end = [b.constant("ys", np.float32(0.8)), b.constant("yz", np.uint8(0))]
    bias = b.constant("b", (b.rng.normal(size=6) * 900).astype(np.int32))
    y = b.op("QLinearConv", [x, step, zero, *w, *end, bias], "layer", pads=[1] * 4)
    return b.model({"x": ["N", 8, 6, 6]}, b.op("DequantizeLinear", [y, *end], "dq"))


def pictures(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 8, 6, 6)).astype(np.float32)


def test_what_a_layer_gave_before_it_was_clipped_is_computed():
    model = clipped_net()
    analysis = analyse(Model.load(model), input_shapes={"x": (2, 8, 6, 6)})
    site = sites(analysis)[-1]
    values = outputs(analysis.model, pictures(5, 0), [site.x, site.y])
    rows = np.arange(site.view.positions(values[site.y]))
    reached = _Reached(site, analysis.model)
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
