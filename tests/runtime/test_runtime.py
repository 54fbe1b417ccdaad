"""Sessions without copies, random inputs, types found by running."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxprune.errors import UsageError
from onnxprune.graph.probe import probe_types
from onnxprune.graph.widen import widen
from onnxprune.model import Model
from onnxprune.runtime import session as runtime
from onnxprune.runtime.inputs import random_inputs, verdict
from onnxprune.runtime.session import RunError, open_session, provider_of

RNG = np.random.default_rng(5)
LARGE = RNG.standard_normal((40, 30)).astype(np.float32)  # more than 1 KiB: left out of light protos


def model_of(nodes, inputs, outputs, weights=(), opset=17) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(*i) for i in inputs],
        [helper.make_tensor_value_info(*o) for o in outputs],
        [numpy_helper.from_array(a, n) for n, a in dict(weights).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


def matmul(constant: bool = False) -> onnx.ModelProto:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    if constant:
        nodes.insert(0, helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(LARGE)))
    weights = {} if constant else {"w": LARGE}
    return model_of(nodes, [("x", 1, [2, 40])], [("y", 1, [2, 30])], weights)


@pytest.mark.parametrize("constant", [False, True])
def test_weights_are_read_where_they_lie(constant: bool) -> None:
    x = RNG.standard_normal((2, 40)).astype(np.float32)
    y = open_session(matmul(constant)).run({"x": x})["y"]
    np.testing.assert_allclose(y, x @ LARGE, rtol=1e-5, atol=1e-5)


def test_external_data_and_cuts_in_memory(tmp_path: Path) -> None:
    onnx.save(matmul(), tmp_path / "m.onnx", save_as_external_data=True, size_threshold=0)
    model = Model.load(tmp_path / "m.onnx")
    x = RNG.standard_normal((2, 40)).astype(np.float32)
    np.testing.assert_allclose(open_session(model).run({"x": x})["y"], x @ LARGE, rtol=1e-5, atol=1e-5)
    keep = np.array([0, 3, 4, 20])
    fork = model.fork()
    fork.take("w", {1: keep})
    fork.proto.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 4
    np.testing.assert_allclose(
        open_session(fork).run({"x": x})["y"], x @ LARGE[:, keep], rtol=1e-5, atol=1e-5
    )
    assert open_session(model).run({"x": x})["y"].shape == (2, 30)


def test_weights_are_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("onnxruntime was given copies")

    monkeypatch.setattr(runtime, "_copying", refuse)
    for constant in (False, True):
        test_weights_are_read_where_they_lie(constant)


def test_extra_outputs_come_after_the_graphs_own() -> None:
    proto = model_of(
        [helper.make_node("Relu", ["x"], ["r"]), helper.make_node("Neg", ["r"], ["y"])],
        [("x", 1, [3])],
        [("y", 1, [3])],
    )
    session = open_session(proto, ["r", "y"])
    assert session.outputs == ("y", "r")
    found = session.run({"x": np.array([-1, 0, 2], np.float32)})
    assert found["r"].tolist() == [0, 0, 2]
    assert found["y"].tolist() == [0, 0, -2]


def test_what_onnxruntime_refuses_is_one_error() -> None:
    bad = model_of(
        [helper.make_node("Nonsense", ["x"], ["y"], domain="nowhere")], [("x", 1, [3])], [("y", 1, [3])]
    )
    bad.opset_import.append(helper.make_opsetid("nowhere", 1))
    with pytest.raises(RunError, match="Nonsense"):
        open_session(bad)
    session = open_session(matmul())
    with pytest.raises(RunError):
        session.run({"x": np.zeros((2, 41), np.float32)})


def embedding() -> onnx.ModelProto:
    return model_of(
        [
            helper.make_node("Gather", ["table", "ids"], ["e"]),
            helper.make_node("ReduceSum", ["e"], ["s"], keepdims=0),
            helper.make_node("Cast", ["attention_mask"], ["m"], to=1),
            helper.make_node("Cast", ["flag"], ["f"], to=1),
            helper.make_node("ReduceSum", ["m"], ["n"], keepdims=0),
            helper.make_node("Sum", ["s", "n", "f", "h"], ["y"]),
        ],
        [
            ("ids", 7, ["b", 9]),
            ("attention_mask", 7, ["b", 9]),
            ("flag", 9, []),
            ("h", 1, []),
            ("bias", 1, [1]),
        ],
        [("y", 1, None)],
        {"table": RNG.standard_normal((50, 8)).astype(np.float32), "bias": np.zeros(1, np.float32)},
    )


def test_random_inputs_fit_what_reads_them() -> None:
    shapes = {"ids": (200, 9), "attention_mask": (200, 9), "flag": (), "h": ()}
    found = random_inputs(Model.load(embedding()), shapes, np.random.default_rng(0))
    assert set(found) == set(shapes), "'bias' has an initializer"
    assert all(isinstance(a, np.ndarray) for a in found.values()), "onnxruntime takes no numpy scalars"
    assert found["ids"].dtype == np.int64
    assert found["ids"].min() >= 0
    assert 20 <= found["ids"].max() < 50
    assert (found["attention_mask"] == 1).all()
    assert found["flag"].dtype == np.bool_
    assert found["h"].dtype == np.float32
    open_session(embedding()).run(found)


@pytest.mark.parametrize(("elem", "name"), [(10, "float16"), (11, "float64"), (16, "bfloat16")])
def test_random_floats_have_the_inputs_type(elem: int, name: str) -> None:
    proto = model_of(
        [helper.make_node("Identity", ["x"], ["y"])], [("x", elem, [4, 5])], [("y", elem, [4, 5])]
    )
    found = random_inputs(Model.load(proto), {"x": (4, 5)}, np.random.default_rng(0))
    assert found["x"].dtype.name == name
    assert found["x"].shape == (4, 5)
    small = random_inputs(Model.load(proto), {"x": (4, 5)}, np.random.default_rng(0), scale=0.01)
    assert 0 < np.abs(small["x"].astype(float)).max() < 0.1


def test_text_can_not_be_drawn() -> None:
    proto = model_of([helper.make_node("Identity", ["x"], ["y"])], [("x", 8, [4])], [("y", 8, [4])])
    with pytest.raises(RunError, match="'x'"):
        random_inputs(Model.load(proto), {"x": (4,)}, np.random.default_rng(0))


def test_types_are_found_by_running() -> None:
    proto = model_of(
        [
            helper.make_node("NonZero", ["x"], ["at"]),
            helper.make_node("Cast", ["at"], ["f"], to=TensorProto.DOUBLE),
            helper.make_node("SequenceConstruct", ["x"], ["seq"]),
            helper.make_node("SequenceLength", ["seq"], ["n"]),
        ],
        [("x", 1, [3, 4])],
        [("f", 11, None), ("n", 7, [])],
    )
    found = probe_types(Model.load(proto), {"x": (3, 4)}, ["at", "f", "seq", "n"])
    assert found == {"at": (7, (2, 12)), "f": (11, (2, 12)), "n": (7, ())}


def test_a_model_that_does_not_run_gives_no_types() -> None:
    proto = model_of(
        [helper.make_node("MatMul", ["x", "z"], ["y"])], [("x", 1, None), ("z", 1, None)], [("y", 1, None)]
    )
    assert probe_types(Model.load(proto), {"x": (3, 4), "z": (3, 4)}, ["y"]) == {}


def test_half_floats_are_widened() -> None:
    proto = model_of(
        [
            helper.make_node("MatMul", ["x", "w"], ["a"]),
            helper.make_node("Cast", ["a"], ["b"], to=TensorProto.BFLOAT16),
            helper.make_node("Softplus", ["b"], ["y"]),
        ],
        [("x", 16, [2, 40])],
        [("y", 16, [2, 30])],
    )
    proto.graph.initializer.append(helper.make_tensor("w", 16, [40, 30], LARGE.ravel()))
    wide = widen(Model.load(proto))
    onnx.checker.check_model(wide.to_proto(), full_check=True)
    x = RNG.standard_normal((2, 40)).astype(np.float32)
    y = open_session(wide).run({"x": x})["y"]
    assert y.dtype == np.float32
    np.testing.assert_allclose(y, np.log1p(np.exp(x @ LARGE)), rtol=0.05, atol=0.05)


def test_a_provider_that_does_not_start_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """onnxruntime goes on with the CPU where a provider can't start, and would have its times told as the other's."""
    import onnxruntime as ort

    known = ["OddExecutionProvider", *ort.get_available_providers()]
    monkeypatch.setattr(ort, "get_available_providers", lambda: known)
    real = ort.InferenceSession
    monkeypatch.setattr(ort, "InferenceSession", lambda data, options, **_: real(data, options))
    with pytest.raises(UsageError, match=r"--calib-provider 'odd' doesn't start on this machine"):
        provider_of("odd", "--calib-provider")
    with pytest.raises(RunError, match="can't start OddExecutionProvider"):
        open_session(matmul(), provider="OddExecutionProvider")
    assert provider_of("CPU") == runtime.CPU


VERDICTS = {
    "whole": ("Reshape", (3, 5), "though onnxruntime runs it"),
    "other sizes": ("Reshape", (2, 4), "and onnxruntime doesn't run it on random inputs either"),
    "no such op": ("Strange", (3, 5), "and onnxruntime doesn't load it either"),
}


@pytest.mark.parametrize("name", VERDICTS)
def test_what_is_said_of_onnxruntime_was_seen(name: str) -> None:
    op, shape, words = VERDICTS[name]
    node, weights = helper.make_node(op, ["x", "s"], ["y"]), {"s": np.array([3, 5], np.int64)}
    proto = model_of(
        [node], [("x", TensorProto.FLOAT, ["N", "M"])], [("y", TensorProto.FLOAT, None)], weights
    )
    assert verdict(Model.load(proto), {"x": shape}) == words


def test_a_model_that_no_inputs_can_be_drawn_for_is_not_said_to_fail() -> None:
    node = helper.make_node("StringNormalizer", ["x"], ["y"])
    proto = model_of([node], [("x", TensorProto.STRING, ["N"])], [("y", TensorProto.STRING, None)])
    assert "whether onnxruntime runs it can't be seen" in verdict(Model.load(proto), {"x": (3,)})


def integer_chain(form: str) -> onnx.ModelProto:
    """Two products with one weight of 8 bits between them, of values whose sums of two don't fit 16 bits."""
    zero = {"w": np.full((40, 40), 127, np.int8), "z": np.int8(0), "one": np.float32(1), "xz": np.uint8(0)}
    nodes, x = [], "x"
    for i in ("1", "2"):
        if form == "integer":
            nodes += [
                helper.make_node("MatMulInteger", [x, "w", "xz", "z"], ["i" + i]),
                helper.make_node("Clip", ["i" + i, "", "top"], ["c" + i]),
                helper.make_node("Cast", ["c" + i], ["y" + i], to=TensorProto.UINT8),
            ]
        else:
            nodes += [
                helper.make_node("DequantizeLinear", [x, "one", "xz"], ["d" + i]),
                helper.make_node("DequantizeLinear", ["w", "small", "z"], ["v" + i]),
                helper.make_node("MatMul", ["d" + i, "v" + i], ["m" + i]),
                helper.make_node("QuantizeLinear", ["m" + i, "one", "xz"], ["y" + i]),
            ]
        x = "y" + i
    zero |= {"top": np.int32(255)} if form == "integer" else {"small": np.float32(255 / (40 * 255 * 127))}
    kind = TensorProto.UINT8
    return model_of(nodes, [("x", kind, ["N", 40])], [("y1", kind, ["N", 40]), ("y2", kind, ["N", 40])], zero)


@pytest.mark.parametrize("form", ["integer", "dequantised"])
@pytest.mark.parametrize("optimise", [False, True])
def test_weights_of_8_bits_that_nodes_share_are_optimised_too(form: str, optimise: bool) -> None:
    """onnxruntime writes them anew for sums that don't saturate, and fails on the second node."""
    x = np.full((2, 40), 255, np.uint8)
    got = open_session(integer_chain(form), ["i1"] if form == "integer" else (), optimise=optimise).run(
        {"x": x}
    )
    assert (got["y2"] == 255).all()
    if form == "integer":
        assert (got["i1"] == 40 * 255 * 127).all(), "sums were cut at 16 bits"


def test_what_is_timed_is_what_users_have() -> None:
    """Sums that don't saturate take longer where the processor has no VNNI, and are no default of onnxruntime."""
    entry = "session.x64quantprecision"
    exact = open_session(matmul(), optimise=True)._raw.get_session_options()
    assert exact.get_session_config_entry(entry) == "1"
    for mode in ("timed", "served"):
        theirs = open_session(matmul(), optimise=True, mode=mode)._raw.get_session_options()
        with pytest.raises(RuntimeError):  # it isn't there
            theirs.get_session_config_entry(entry)
    with pytest.raises(RunError):  # and a model that users can't open isn't timed in another form
        open_session(model_of([helper.make_node("Strange", ["x"], ["y"])], [("x", 1, [2])], [("y", 1, [2])]),
                     optimise=True, mode="timed")  # fmt: skip


def requantised(kind: str) -> onnx.ModelProto:
    """Give a graph that onnxruntime's optimiser computes in another way than it says."""
    weights = {"s": np.float32(0.1), "z": np.uint8(100), "t": np.float32(0.037), "u": np.uint8(130)}
    first = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "s", "z"], ["xd"]),
    ]
    last = [
        helper.make_node("QuantizeLinear", ["xd", "t", "u"], ["xt"]),
        helper.make_node("DequantizeLinear", ["xt", "t", "u"], ["y"]),
    ]
    if kind == "floats":
        weights["w"] = LARGE[:, :16]
        last[0].input[0] = "m"
        last.insert(0, helper.make_node("Gemm", ["xd", "w"], ["m"]))
    elif kind == "4 bits":
        weights["ws"] = np.abs(LARGE[:2, :16])
        first = [helper.make_node("DequantizeLinear", ["w", "ws"], ["v"], axis=0, block_size=16)]
        last = [helper.make_node("MatMul", ["x", "v"], ["y"])]
    wide, out = (40, 40 if kind == "double" else 16) if kind != "4 bits" else (32, 16)
    model = model_of([*first, *last], [("x", 1, [4, wide])], [("y", 1, [4, out])], weights, opset=21)
    if kind == "4 bits":
        values = RNG.integers(-8, 8, wide * out)
        model.graph.initializer.append(helper.make_tensor("w", TensorProto.INT4, [wide, out], values))
    model.ir_version = 10
    return model


@pytest.mark.parametrize("kind", ["double", "floats", "4 bits"])
def test_exact_sessions_are_optimised_without_changing_values(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two models that are compared, one may have the pattern and the other a mask within it."""
    model = requantised(kind)
    x = {"x": RNG.standard_normal((4, 32 if kind == "4 bits" else 40)).astype(np.float32)}
    wanted = ["m"] if kind == "floats" else []
    plain = open_session(model, wanted).run(x)
    found = open_session(model, wanted, prepack=True, optimise=True).run(x)
    for name, value in plain.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-5)
    # a name that this onnxruntime doesn't have does no harm
    monkeypatch.setattr(runtime, "INEXACT", {*runtime.INEXACT, "OptimiserOfTomorrow"})
    np.testing.assert_array_equal(
        open_session(model, wanted, prepack=True, optimise=True).run(x)["y"], found["y"]
    )
