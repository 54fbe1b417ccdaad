"""Zeros along the right axis of every kind of layer, from the front door."""

import dataclasses
import json
import typing

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper

import onnxprune
from onnxprune import cli
from onnxprune.api import inspect_sparsity
from onnxprune.errors import NothingToPrune, UsageError, VerificationError
from onnxprune.model import Model
from onnxprune.options.sparsity import SparseFields, SparseOptions
from onnxprune.sparsity import journey
from onnxprune.sparsity import sequential as sequence
from onnxprune.sparsity.inspection import patterns_of
from onnxprune.sparsity.weights import find

from . import models
from .models import READ, graph, one, run, values


def weight_of(proto, name="w"):
    return np.asarray(Model.load(proto).weight(name))


def zero_of(proto):
    points = [t for t in proto.graph.initializer if t.name == "z"]
    weight = weight_of(proto)
    if not points or weight.dtype.kind not in "iu":
        return weight == 0
    point = numpy_helper.to_array(points[0])
    nodes = {n.op_type: n for n in proto.graph.node}
    shape = [1] * weight.ndim
    shape[nodes["DequantizeLinear"].attribute[0].i] = point.size
    return weight == point.reshape(shape)


@pytest.mark.parametrize("name", READ)
def test_two_of_four_along_the_axis_that_the_layer_sums_over(name):
    proto, axis = READ[name]
    result = onnxprune.sparsify(proto, pattern="2:4")
    zero = zero_of(result.model)
    assert "2:4" in patterns_of(zero, axis)
    assert zero.mean() == 0.5
    for other in set(range(zero.ndim)) - {axis}:
        assert "2:4" not in patterns_of(zero, other), "the checker must say no along another axis"
    (line,) = result.report.lines
    assert (line.tensor, line.axis, line.zeros) == ("w", axis, zero.sum())
    (found,) = inspect_sparsity(result.model).tensors
    assert found.axis == axis
    assert "2:4" in found.holds
    assert [t.name for t in find(Model.load(proto))[0]] == ["w"]


@pytest.mark.parametrize("name", READ)
def test_what_stays_is_the_larger_half_as_the_layer_reads_it(name):
    """Against magnitudes of the values that the layer sees, taken from onnxruntime or numpy."""
    proto, axis = READ[name]
    result = onnxprune.sparsify(proto, pattern="2:4")
    before, zero = weight_of(proto), zero_of(result.model)
    if before.dtype.kind in "iu":
        nodes = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
        dq = next(n for n in proto.graph.node if n.op_type == "DequantizeLinear").attribute[0].i
        shape = [1] * before.ndim
        shape[dq] = -1
        before = (before.astype(np.float32) - nodes["z"].astype(np.float32).reshape(shape)) * nodes[
            "s"
        ].reshape(shape)
    kept = np.moveaxis(np.abs(before.astype(np.float32)), axis, -1).reshape(-1, 4)
    gone = np.moveaxis(zero, axis, -1).reshape(-1, 4)
    assert (np.where(gone, kept, 0).max(1) <= np.where(gone, np.inf, kept).min(1)).all()
    after = weight_of(result.model)
    assert np.array_equal(after[~zero], weight_of(proto)[~zero])


@pytest.mark.parametrize("name", ["int8 zero point", "uint8", "float through Q and DQ"])
def test_zeros_are_zeros_for_onnxruntime(name):
    proto, _ = READ[name]
    result = onnxprune.sparsify(proto, pattern="2:4").model
    last = next(n for n in result.graph.node if n.op_type == "DequantizeLinear").output[0]
    result.graph.output.append(helper.make_tensor_value_info(last, 1, None))
    read = run(result, values((2, 8)))[1]
    assert ((read == 0) == zero_of(result)).all()


@pytest.mark.parametrize("method", ["magnitude", "obs"])
@pytest.mark.parametrize("broken", ["rolled", "one too many", "along another axis"])
def test_a_result_that_is_not_in_the_pattern_is_refused_and_not_written(
    broken, method, monkeypatch, tmp_path
):
    """Whatever made the mask: the result itself is looked at in the end."""
    original = journey.blanked if method == "magnitude" else sequence.write

    def spoil(array):
        array = array.copy()
        if broken == "rolled":  # as many zeros, each group of four with another one's
            array[0] = np.roll(array[0], 2)
        elif broken == "one too many":
            array[array == 0] = np.where(np.arange((array == 0).sum()) == 3, 1, 0)
        else:
            array[:] = np.where(np.arange(len(array)) % 4 < 2, 0, 1)[:, None]
        return array

    def blanked(target, weight, keep):
        return spoil(original(target, weight, keep))

    def write(model, *given):
        original(model, *given)
        model.put("w", spoil(np.asarray(model.weight("w"))))

    if method == "magnitude":
        monkeypatch.setattr(journey, "blanked", blanked)
    else:
        monkeypatch.setattr(sequence, "write", write)
    given = {} if method == "magnitude" else {"calib": {"x": values((40, 8), 1)}}
    with pytest.raises(VerificationError, match="'w' isn't 2:4 along its inputs"):
        onnxprune.sparsify(READ["gemm transB"][0], tmp_path / "o.onnx", pattern="2:4", method=method, **given)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("pattern", ["unstructured", "block:2x2", "kernel", "vector"])
def test_none_is_the_same_file_and_nearly_all_is_nearly_all(pattern, tmp_path):
    proto, _ = READ["conv"]
    onnx.save(proto, tmp_path / "m.onnx")
    result = onnxprune.sparsify(tmp_path / "m.onnx", tmp_path / "o.onnx", pattern=pattern, sparsity=0)
    assert (tmp_path / "o.onnx").read_bytes() == (tmp_path / "m.onnx").read_bytes()
    assert result.report.zeros == 0
    for scope in ("local", "global"):
        full = onnxprune.sparsify(proto, pattern=pattern, sparsity=0.999, scope=scope)
        assert np.count_nonzero(weight_of(full.model)) < 10


@pytest.mark.parametrize("scope", ["local", "global"])
@pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.9])
def test_unstructured_shares(scope, sparsity):
    nodes = [
        helper.make_node("Conv", ["x", "a"], ["h"], name="first"),
        helper.make_node("Conv", ["h", "b"], ["y"], name="second"),
    ]
    weights = {"a": values((8, 8, 3, 3)), "b": 3 * values((8, 8, 3, 3), 1)}
    result = onnxprune.sparsify(graph(nodes, weights, ["N", 8, 9, 9]), pattern="unstructured", sparsity=sparsity,
                                scope=scope)  # fmt: skip
    shares = [line.zeros / line.weights for line in result.report.lines]
    assert abs(np.mean(shares) - sparsity) < 1e-3
    assert (abs(shares[0] - shares[1]) < 2e-3) == (scope == "local")
    if scope == "global":
        assert shares[0] > shares[1]
        assert max(shares) < 1
        after = {n: weight_of(result.model, n) for n in weights}
        gone = np.concatenate([np.abs(weights[n][after[n] == 0]) for n in weights])
        stays = np.concatenate([np.abs(after[n][after[n] != 0]) for n in weights])
        if sparsity < 0.9:  # where no tensor is at its floor
            assert gone.max() <= stays.min()


def test_a_tail_stays_dense_and_is_named():
    result = onnxprune.sparsify(one("MatMul", values((10, 6)), ["N", 10]), pattern="2:4")
    zero = weight_of(result.model) == 0
    assert zero[:8].mean() == 0.5
    assert not zero[8:].any()
    assert result.report.lines[0].tail == "the last 2 of 10 inputs"
    assert any("the last 2 of 10 inputs" in line for line in result.report.text())
    grouped = one("ConvTranspose", values((12, 6, 2, 2)), ["N", 12, 5, 5], group=2)  # 6 inputs in each group
    zero = weight_of(onnxprune.sparsify(grouped, pattern="2:4").model) == 0
    assert [zero[first : first + 6].any((1, 2, 3)).tolist() for first in (0, 6)] == [
        [True] * 4 + [False] * 2
    ] * 2


def left_of(proto, **more):
    result = onnxprune.sparsify(proto, pattern="2:4", **more)
    return {one.name: one.reason for one in result.report.left}


def test_what_stays_dense_has_a_reason():
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["e"]),
        helper.make_node("Gather", ["tied", "ids"], ["f"], name="look"),
        helper.make_node("Add", ["e", "f"], ["s"]),
        helper.make_node("MatMul", ["s", "w"], ["h"], name="layer"),
        helper.make_node("Transpose", ["tied"], ["turned"]),
        helper.make_node("MatMul", ["h", "turned"], ["y0"], name="head"),
        helper.make_node("MatMul", ["h", "both"], ["b1"]),
        helper.make_node("Gemm", ["b1", "both"], ["b2"], transB=1),
        helper.make_node("Concat", ["y0", "b2"], ["y"], axis=-1),
    ]
    weights = {"table": values((50, 8)), "tied": values((50, 8)), "w": values((8, 8)), "both": values((8, 8)),
               "ids": np.arange(4)}  # fmt: skip
    left = left_of(graph(nodes, weights, ["N"]))
    assert "embedding table" in left["table"]
    assert "Gather 'look' looks rows up in it too" in left["tied"]
    assert "different axes" in left["both"]
    assert "w" not in left
    deep = [helper.make_node("Conv", ["x", "d"], ["h"], group=8), helper.make_node("Conv", ["h", "w"], ["y"])]
    left = left_of(graph(deep, {"d": values((8, 1, 3, 3)), "w": values((8, 8, 1, 1))}, ["N", 8, 5, 5]))
    assert "depthwise" in left["d"]
    proto, _ = READ["gemm"]
    proto = onnx.ModelProto.FromString(proto.SerializeToString())
    proto.graph.input.append(helper.make_tensor_value_info("w", 1, [8, 6]))
    with pytest.raises(NothingToPrune):
        onnxprune.sparsify(proto, pattern="2:4")
    proto.ir_version = 3  # there it has to be one
    proto.opset_import[0].version = 8
    assert onnxprune.sparsify(proto, pattern="2:4").report.zeros == 24


def test_a_weight_that_two_layers_read_alike_is_treated_once():
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="one"),
        helper.make_node("MatMul", ["h", "w"], ["y"]),
    ]
    result = onnxprune.sparsify(graph(nodes, {"w": values((8, 8))}, ["N", 8]), pattern="2:4")
    (line,) = result.report.lines
    assert len(line.layers) == 2
    assert line.zeros == 32


def test_only_and_ignore():
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["h"], name="first"),
        helper.make_node("MatMul", ["h", "b"], ["y"], name="second"),
    ]
    proto = graph(nodes, {"a": values((8, 8)), "b": values((8, 8))}, ["N", 8])

    def treated(**more):
        return [line.tensor for line in onnxprune.sparsify(proto, pattern="2:4", **more).report.lines]

    assert treated(ignore=("^first$",)) == ["b"]
    assert treated(only=("a",)) == ["a"]
    with pytest.raises(UsageError, match="nothing_like_it"):
        treated(only=("nothing_like_it",))
    with pytest.raises(NothingToPrune):
        treated(ignore=(".",))


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"pattern": "2:4", "sparsity": 0.5}, "--sparsity out"),
        ({"pattern": "unstructured"}, "needs --sparsity"),
        ({"pattern": "unstructured", "sparsity": 1.5}, "at least 0 and below 1"),
        ({"pattern": "vector", "sparsity": 1}, "at least 0 and below 1"),
        ({"pattern": "unstructured", "sparsity": float("nan")}, "at least 0 and below 1"),
        ({"pattern": "0:4"}, r"more than 0 of 4 .* \(no weight would stay\)"),
        ({"pattern": "4:4"}, r"\(no weight would become zero\)"),
        ({"pattern": "1:1"}, "no weight would become zero"),
        ({"pattern": "2:4", "scope": "global"}, "--scope global"),
        ({"pattern": "2:4", "store": "zip"}, "--store"),
        ({"pattern": "2:4", "method": "magnitudes"}, "Did you mean"),
        ({}, "pattern"),
        ({"pattern": "2:4", "patern": 1}, "patern"),
    ],
)
def test_wrong_options(more, says):
    with pytest.raises(UsageError, match=says):
        onnxprune.sparsify(READ["gemm"][0], **more)


def test_options_are_declared_once():
    fields = typing.get_type_hints(SparseFields) | {"pattern": str}
    assert fields == {
        f.name: typing.get_type_hints(SparseOptions)[f.name] for f in dataclasses.fields(SparseOptions)
    }


def test_stored_sparse_where_that_is_smaller(tmp_path):
    proto = one("MatMul", values((64, 64)), ["N", 64])
    onnx.save(proto, tmp_path / "m.onnx")
    size = (tmp_path / "m.onnx").stat().st_size
    x, found = values((4, 64)), {}
    for sparsity in (0.5, 0.9):
        for store in ("dense", "sparse"):
            path = tmp_path / f"{store}{sparsity}.onnx"
            result = onnxprune.sparsify(
                tmp_path / "m.onnx", path, pattern="unstructured", sparsity=sparsity, store=store
            )
            assert path.stat().st_size <= size
            (found[store],) = ort.InferenceSession(path).run(None, {"x": x})
            assert result.report.sparse == (["w"] if store == "sparse" and sparsity == 0.9 else [])
        assert np.array_equal(found["dense"], found["sparse"])
    assert path.stat().st_size < 0.4 * size
    assert abs(path.stat().st_size - result.report.bytes_in("sparse")) < 200
    assert "can't read" in result.report.notes[0]
    (weight,) = onnx.load(path).graph.sparse_initializer
    assert len(weight.dims) == 2


def test_no_file_is_larger_and_no_name_is_new(tmp_path):
    for name, (proto, _) in READ.items():
        onnx.save(proto, tmp_path / "m.onnx")
        onnxprune.sparsify(tmp_path / "m.onnx", tmp_path / "o.onnx", pattern="1:4")
        after = onnx.load(tmp_path / "o.onnx")
        assert (tmp_path / "o.onnx").stat().st_size <= (tmp_path / "m.onnx").stat().st_size, name
        assert [t.name for t in after.graph.initializer] == [t.name for t in proto.graph.initializer]


def test_bytes_in_memory_are_those_of_the_result(tmp_path):
    onnx.save(READ["conv"][0], tmp_path / "m.onnx")
    result = onnxprune.sparsify(tmp_path / "m.onnx", pattern="unstructured", sparsity=0.95, store="sparse")
    assert result.report.bytes_before == (tmp_path / "m.onnx").stat().st_size
    assert result.report.bytes_after == len(result.model.SerializeToString())
    assert result.report.bytes_after < result.report.bytes_before


def test_the_command(tmp_path, capsys):
    onnx.save(READ["conv"][0], tmp_path / "m.onnx")
    paths = [str(tmp_path / "m.onnx"), str(tmp_path / "o.onnx")]
    assert cli.main(["sparsify", *paths, "--pattern", "2:4", "--report", str(tmp_path / "r.json")]) == 0
    out = capsys.readouterr().out
    assert "onnxruntime on the CPU gets no speed-up" in out
    assert "too small to gain" in out
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["zeros"] == 216
    assert report["tensors"][0]["tensor_cores"] == {"eligible": True, "why_not": ""}
    assert report["bytes_in"]["two_four"] < report["bytes"]["after"]
    assert cli.main(["inspect", "--sparsity", paths[1], "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["tensors"][0]["patterns"]["1"] == ["4:8", "2:4"]
    assert cli.main(["inspect", "--sparsity", paths[0]]) == 0
    assert "2:4" not in capsys.readouterr().out.replace("2:4 doesn't hold", "")
    assert cli.main(["sparsify", *paths[:1], paths[0], "--pattern", "2:4"]) == 7
    assert cli.main(["sparsify", *paths, "--pattern", "2:3:4"]) == 2


def test_large_layers_are_worth_it_and_small_ones_are_not():
    proto = one("MatMul", values((256, 256)), ["N", 256])
    assert onnxprune.sparsify(proto, pattern="2:4").report.lines[0].useful
    grouped, _ = models.READ["conv grouped"]
    line = onnxprune.sparsify(grouped, pattern="2:4").report.lines[0]
    assert line.tensor_cores == "a grouped convolution"
    assert not line.useful
