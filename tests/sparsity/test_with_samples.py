"""The journey with samples, on small nets."""

import json

import numpy as np
import onnx
import pytest
from onnx import helper
from small_models import Builder

import onnxprune
from onnxprune import cli
from onnxprune.errors import CalibrationError, UsageError
from onnxprune.model import Model
from onnxprune.options.pattern import parse_pattern
from onnxprune.sparsity import sequential
from onnxprune.sparsity.sequential import cubic, nearer

from .models import graph, quantised, run, values

RNG = np.random.default_rng


def net(seed=0):
    """Two residual blocks with correlated channels, a grouped convolution and a classifier."""
    rng = RNG(seed)
    weights = {"w0": 0.3 * rng.standard_normal((8, 3, 3, 3)), "b0": 0.1 * rng.standard_normal(8)}
    nodes = [helper.make_node("Conv", ["x", "w0", "b0"], ["s0"], pads=[1] * 4, name="stem")]
    for i in range(2):
        mix = rng.standard_normal((4, 12)) / 2
        weights |= {
            f"w{i}a": np.einsum("ro,rikl->oikl", mix, 0.3 * rng.standard_normal((4, 8, 3, 3))),
            f"b{i}a": 0.1 * rng.standard_normal(12),
            f"w{i}b": 0.2 * rng.standard_normal((8, 12, 1, 1)),
        }
        nodes += [
            helper.make_node(
                "Conv", [f"s{i}", f"w{i}a", f"b{i}a"], [f"h{i}"], pads=[1] * 4, name=f"block{i}.a"
            ),
            helper.make_node("Relu", [f"h{i}"], [f"r{i}"]),
            helper.make_node("Conv", [f"r{i}", f"w{i}b"], [f"o{i}"], name=f"block{i}.b"),
            helper.make_node("Add", [f"s{i}", f"o{i}"], [f"s{i + 1}"]),
        ]
    weights |= {"wg": 0.3 * rng.standard_normal((8, 4, 1, 1)), "wf": rng.standard_normal((8, 5))}
    nodes += [
        helper.make_node("Conv", ["s2", "wg"], ["g"], group=2, name="grouped"),
        helper.make_node("GlobalAveragePool", ["g"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("MatMul", ["f", "wf"], ["y"], name="head"),
    ]
    return graph(nodes, {n: np.asarray(w, np.float32) for n, w in weights.items()}, ["N", 3, 6, 6], opset=17)


def images(n=120, seed=1):
    return RNG(seed).standard_normal((n, 3, 6, 6)).astype(np.float32)


def distance(before, after):
    fresh = images(100, seed=9)
    a, b = run(before, fresh)[0], run(after, fresh)[0]
    return float(np.linalg.norm(a - b) / np.linalg.norm(a))


def weight(proto, name):
    return np.asarray(Model.load(proto).weight(name))


@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt", "obs"])
@pytest.mark.parametrize("pattern", ["2:4", "unstructured"])
def test_samples_bring_the_result_nearer(method, pattern):
    model = net()
    more = {} if pattern == "2:4" else {"sparsity": 0.5}
    plain = onnxprune.sparsify(model, pattern=pattern, **more)
    result = onnxprune.sparsify(model, pattern=pattern, method=method, calib={"x": images()}, **more)
    assert distance(model, result.model) < 0.6 * distance(model, plain.model)
    report = result.report
    found = report.calibration["original"]
    assert found["samples"] == 12
    assert 0 < found["relative_error"] < 1
    assert abs(report.zeros / report.weights - 0.5) < 0.02
    fits = [line.fit for line in report.lines]
    assert all(fit["after"] <= fit["before"] for fit in fits)
    assert {line.method for line in report.lines} == {method}
    if pattern == "2:4":
        assert all(line.two_four and line.zeros == line.weights // 2 for line in report.lines)


def test_levels_come_from_one_allocation():
    model, calib = net(), {"x": images()}
    one = onnxprune.sparsify(model, pattern="unstructured", sparsity=0.6, calib=calib)
    shares = [line.zeros / line.weights for line in one.report.lines]
    assert max(shares) - min(shares) > 0.1
    assert abs(one.report.zeros / one.report.weights - 0.6) < 0.02
    each = onnxprune.sparsify(model, pattern="unstructured", sparsity=0.6, calib=calib, scope="local")
    # a refit gives inputs that never vary no weight, on top of what was asked
    assert max(abs(line.zeros / line.weights - 0.6) for line in each.report.lines) < 0.06
    assert distance(model, one.model) < distance(model, each.model)


@pytest.mark.parametrize("pattern", ["block:2x2", "kernel", "vector"])
def test_tiles_with_samples(pattern):
    result = onnxprune.sparsify(net(), pattern=pattern, sparsity=0.5, calib={"x": images(60)}, scope="local")
    assert abs(result.report.zeros / result.report.weights - 0.5) < 0.1
    w = weight(result.model, "w0a").reshape(12, 8, 9)
    zero = w == 0
    if pattern == "kernel":
        assert (zero.all(2) | ~zero.any(2)).all()
    if pattern == "vector":
        assert (zero.all(0) | ~zero.any(0)).all()


def test_without_refit_the_weights_are_the_methods():
    model, calib = net(), {"x": images()}
    plain = onnxprune.sparsify(model, pattern="2:4", method="wanda", calib=calib, refit=False)
    refitted = onnxprune.sparsify(model, pattern="2:4", method="wanda", calib=calib)
    old, new = weight(model, "w0a"), weight(plain.model, "w0a")
    assert np.array_equal(new[new != 0], old[new != 0])
    assert distance(model, refitted.model) < distance(model, plain.model)


def test_what_takes_longest_goes_by_another_method_where_all_would_take_too_long(monkeypatch):
    def made(most, method="obs"):
        monkeypatch.setattr(sequential, "MOST", most)
        result = onnxprune.sparsify(net(), pattern="2:4", method=method, calib={"x": images()})
        weights = {n: result.sparse.weight(n) for n in ("w0", "w0a", "w0b", "w1a", "w1b", "wg", "wf")}
        return weights, [note for note in result.report.notes if "too long" in note]

    whole, notes = made(np.inf)
    assert notes == []
    other, _ = made(np.inf, "sparsegpt")
    some, notes = made(8 * 27.0**3 + 2 * 8 * 12**3 + 2 * 4 * 4**3 + 5 * 8**3)
    assert notes == [
        "2 weights ('w0a' first) got zeros by sparsegpt: by obs all would take too long together."
    ]
    assert np.array_equal(some["w0a"], other["w0a"])
    assert not np.array_equal(some["w0a"], whole["w0a"])
    assert [(w != 0).sum() for w in some.values()] == [(w != 0).sum() for w in whole.values()]


def test_a_schedule():
    assert [round(cubic(k, 3), 3) for k in (1, 2, 3)] == [0.704, 0.963, 1.0]
    assert [nearer(parse_pattern("1:8"), s).text for s in (0.3, 0.9, 1.0)] == ["6:8", "2:8", "1:8"]
    model, calib = net(), {"x": images()}
    result = onnxprune.sparsify(
        model, pattern="2:4", method="magnitude", calib=calib, schedule="cubic", steps=2
    )
    assert all(line.two_four for line in result.report.lines)
    once = onnxprune.sparsify(model, pattern="2:4", method="magnitude", calib=calib)
    assert distance(model, result.model) < 1.2 * distance(model, once.model)


def test_what_is_ignored_is_not_touched():
    model = net()
    result = onnxprune.sparsify(model, pattern="2:4", calib={"x": images()}, ignore=("block1",))
    for name in ("w1a", "w1b"):
        assert np.array_equal(weight(result.model, name), weight(model, name))
    assert not np.array_equal(weight(result.model, "w0b"), weight(model, "w0b"))


def test_what_cannot_be_fitted_goes_by_magnitude():
    b = Builder()
    turned = b.op("Transpose", ["x"], "turn", perm=[1, 0])
    made = b.op("MatMul", [b.weight("w", 8, 8), turned], "left")  # a product from the left is no regression
    back = b.op("Transpose", [made], "back", perm=[1, 0])
    proto = b.model({"x": ["N", 8]}, b.op("MatMul", [back, b.weight("v", 8, 8)], "last"))
    result = onnxprune.sparsify(proto, pattern="2:4", calib={"x": values((40, 8), 3)})
    assert {line.tensor: line.method for line in result.report.lines} == {"w": "magnitude", "v": "obs"}
    assert "1 weight can't be fitted ('w' first)" in result.report.notes[0]


@pytest.mark.parametrize(("dtype", "zero"), [(np.int8, 3), (np.uint8, 120)])
def test_quantised_weights_are_refitted_on_their_grid(dtype, zero):
    """Zeros are zero points, and what stays makes up for them, with the scale that is there."""
    proto = quantised(values((12, 16)), 0, zero, dtype)
    mix = values((6, 16), 4)
    given, fresh, errors = values((300, 6), 3) @ mix, values((50, 6), 8) @ mix, {}
    for method in ("magnitude", "obs"):
        more = {"calib": {"x": given}} if method == "obs" else {}
        result = onnxprune.sparsify(proto, pattern="2:4", method=method, **more)
        errors[method] = np.square(run(result.model, fresh)[0] - run(proto, fresh)[0]).mean()
        w = weight(result.model, "w")
        assert w.dtype == dtype
        assert ((w == zero).reshape(12, 4, 4).sum(axis=2) >= 2).all()
        assert np.array_equal(weight(result.model, "s"), weight(proto, "s"))
    assert errors["obs"] < 0.3 * errors["magnitude"]


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"method": "obs"}, "needs samples"),
        ({"samples": 5}, "--samples needs samples"),
        ({"schedule": "cubic", "steps": 3}, "--schedule needs samples"),
        ({"refit": False}, "--no-refit needs samples"),
        ({"calib": {"x": images(8)}, "steps": 3}, "--steps"),
        ({"calib": {"x": images(8)}, "schedule": "linear"}, "--schedule"),
    ],
)
def test_wrong_options(more, says):
    with pytest.raises(UsageError, match=says):
        onnxprune.sparsify(net(), pattern="2:4", **more)


def test_too_few_samples():
    with pytest.raises(CalibrationError, match="3 samples only"):
        onnxprune.sparsify(net(), pattern="2:4", calib={"x": images(3)})


def test_the_command(tmp_path, capsys):
    onnx.save(net(), tmp_path / "m.onnx")
    labels = RNG(0).integers(0, 5, 60)
    np.savez(tmp_path / "c.npz", x=images(60), labels=labels)
    paths = [str(tmp_path / "m.onnx"), str(tmp_path / "o.onnx")]
    given = ["--calib", str(tmp_path / "c.npz"), "--labels", "labels", "--method", "sparsegpt"]
    report = str(tmp_path / "r.json")
    assert cli.main(["sparsify", *paths, "--pattern", "2:4", *given, "--report", report]) == 0
    out = capsys.readouterr().out
    assert "on 6 samples set aside" in out
    assert "accuracy" in out
    found = json.loads((tmp_path / "r.json").read_text())
    assert found["options"]["method"] == "sparsegpt"
    assert found["tensors"][0]["fit"]["variant"]
    assert (tmp_path / "o.onnx").stat().st_size <= (tmp_path / "m.onnx").stat().st_size + 400  # biases


def test_the_file_does_not_grow(tmp_path):
    """Layers without a bias get none, or their file would be larger than the one that came in."""
    onnx.save(net(), tmp_path / "in.onnx")
    np.savez(tmp_path / "s.npz", x=images())
    given = ["sparsify", str(tmp_path / "in.onnx"), str(tmp_path / "out.onnx"), "--pattern", "2:4"]
    assert cli.main([*given, "--calib", str(tmp_path / "s.npz"), "-q"]) == 0
    assert (tmp_path / "out.onnx").stat().st_size <= (tmp_path / "in.onnx").stat().st_size
    assert [len(n.input) for n in onnx.load(tmp_path / "out.onnx").graph.node if n.name == "block0.b"] == [2]
