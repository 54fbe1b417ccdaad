"""Every rule against central differences; rules that are wrong on purpose are found."""

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto

from onnxprune.errors import CalibrationError
from onnxprune.gradient.tape import RULES, vjp
from onnxprune.runtime.session import open_session
from tests.gradient.finite import (
    X,
    apart,
    disagreement,
    gradients,
    i64,
    model,
    node,
    normal,
    positive,
)

CLOSE = 2e-4
PLAIN = ["Neg", "Relu", "LeakyRelu", "Elu", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh", "Erf", "Softplus",
         "Softsign",
         "Exp", "Abs", "Sin", "Cos", "Identity", "Sinh", "Cosh", "Atan", "Asinh", "ThresholdedRelu",
         "Shrink"]  # fmt: skip


@pytest.mark.parametrize("op", PLAIN)
def test_unary(op: str) -> None:
    assert disagreement(model([node(op, "x")], X), X, ["x"]) < CLOSE


@pytest.mark.parametrize("op", ["Log", "Sqrt", "Reciprocal"])
def test_unary_of_positive_values(op: str) -> None:
    feeds = {"x": positive(3, 4)}
    assert disagreement(model([node(op, "x")], feeds), feeds, ["x"]) < CLOSE


@pytest.mark.parametrize(
    ("op", "move", "factor"), [("Asin", 0, 0.2), ("Acos", 0, 0.2), ("Atanh", 0, 0.2), ("Acosh", 1, 1)]
)
def test_unary_of_some_values(op: str, move: float, factor: float) -> None:
    feeds = {"x": positive(3, 4) * np.float32(factor) + np.float32(move)}
    assert disagreement(model([node(op, "x")], feeds), feeds, ["x"]) < CLOSE


@pytest.mark.parametrize(
    ("op", "keep"), [("ReduceL1", 0), ("ReduceL1", 1), ("ReduceLogSum", 0), ("ReduceLogSum", 1)]
)
def test_sums_of_sizes_and_their_logarithms(op: str, keep: int) -> None:
    feeds = {"x": positive(2, 3, 4)}
    proto = model([node(op, "x", axes=[1], keepdims=keep)], feeds)
    assert disagreement(proto, feeds, ["x"]) < CLOSE


@pytest.mark.parametrize("size", [1, 3, 5])
def test_local_response_normalisation(size: int) -> None:
    """Beside the formula of the operator's text: ONNX's reference takes another window."""

    def computed(x: np.ndarray) -> np.ndarray:
        far = size // 2
        near = [np.square(x[:, max(c - far, 0) : c + far + 1]).sum(axis=1) for c in range(x.shape[1])]
        return x * (1.5 + 0.5 / size * np.stack(near, axis=1)) ** -0.6

    feeds, seed = {"x": normal(2, 6, 3, 2) * np.float32(2)}, normal(2, 6, 3, 2)
    proto = model([node("LRN", "x", size=size, alpha=0.5, beta=0.6, bias=1.5)], feeds)
    np.testing.assert_allclose(open_session(proto).run(feeds)["y"], computed(feeds["x"]), rtol=1e-5)
    got, x = gradients(proto, feeds, ["x"], seed)["x"], feeds["x"].astype(np.float64)
    for along in np.random.default_rng(1).standard_normal((3, *x.shape)):
        change = (seed * (computed(x + 1e-4 * along) - computed(x - 1e-4 * along))).sum() / 2e-4
        assert float((got * along).sum()) == pytest.approx(change, abs=1e-3)


@pytest.mark.parametrize("op", ["ReduceMax", "ReduceMin"])
def test_equals_share_the_gradient_of_an_extreme(op: str) -> None:
    feeds = {"x": np.array([[1, 3, 3, 0], [2, 2, 2, 2]], np.float32)}
    proto = model([node(op, "x", axes=[1], keepdims=0)], feeds)
    found = gradients(proto, feeds, ["x"], np.array([1.0, 10.0], np.float32))["x"]
    first = [0, 0.5, 0.5, 0] if op == "ReduceMax" else [0, 0, 0, 1]
    np.testing.assert_allclose(found, [first, [2.5] * 4], rtol=1e-6)


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu(approximate: str) -> None:
    proto = model([node("Gelu", "x", approximate=approximate)], X, opset=20)
    assert disagreement(proto, X, ["x"]) < CLOSE


def test_clip_in_every_form() -> None:
    low, high = {"lo": np.float32(-0.4), "hi": np.float32(0.6)}, ["lo", "hi"]
    for proto in (
        model([node("Clip", "x", *high)], X, low),
        model([node("Clip", "x", "", "hi")], X, low),
        model([node("Clip", "x", min=-0.4, max=0.6)], X, opset=9),
    ):
        assert disagreement(proto, X, ["x"]) < CLOSE


SHAPES = st.sampled_from(
    [((3, 4, 5), (3, 4, 5)), ((3, 4, 5), (5,)), ((3, 4, 5), (4, 1)), ((3, 1, 5), (3, 4, 1)), ((3, 4), ())]
)


@settings(max_examples=12, deadline=None)
@given(SHAPES, st.sampled_from(["Add", "Sub", "Mul", "Div", "Max", "Min"]))
def test_binary_with_broadcasting(shapes: tuple[tuple[int, ...], tuple[int, ...]], op: str) -> None:
    if op in ("Max", "Min"):  # no ties near by
        feeds = {"x": apart(*shapes[0]), "z": np.asarray(apart(*shapes[1]) + np.float32(0.025))}
    else:
        feeds = {"x": normal(*shapes[0]), "z": np.asarray(positive(*shapes[1]))}
    free = shapes[0][:1] == shapes[1][:1] and len(shapes[0]) == len(shapes[1])
    proto = model([node(op, "x", "z")], feeds, free=free)
    assert disagreement(proto, feeds, ["x", "z"]) < CLOSE


@pytest.mark.parametrize("exponent", [2.0, 3.0, 0.5, -1.0])
def test_power(exponent: float) -> None:
    feeds = {"x": positive(3, 4)}
    assert (
        disagreement(model([node("Pow", "x", "p")], feeds, {"p": np.float32(exponent)}), feeds, ["x"]) < CLOSE
    )


def test_prelu_where_sum_mean() -> None:
    weights = {"s": normal(4, 1), "c": normal(3, 4, 5) < 0, "w": normal(4, 5)}
    for last in (
        node("PRelu", "x", "s"),
        node("Where", "c", "x", "w"),
        node("Where", "c", "w", "x"),
        node("Sum", "x", "w", "x"),
        node("Mean", "x", "w"),
    ):
        name = next(n for n in last.input if n in ("s", "w")) if last.op_type != "Sum" else "x"
        assert disagreement(model([last], X, weights, free=False), X, ["x", name]) < CLOSE


@settings(max_examples=16, deadline=None)
@given(st.integers(0, 1), st.integers(0, 1), st.sampled_from([1.0, 0.7]), st.sampled_from([9, 17]))
def test_gemm(turn_a: int, turn_b: int, alpha: float, opset: int) -> None:
    feeds = {"x": normal(5, 3) if turn_a else normal(3, 5)}
    weights = {"w": normal(4, 5) if turn_b else normal(5, 4), "b": normal(4)}
    proto = model(
        [node("Gemm", "x", "w", "b", transA=turn_a, transB=turn_b, alpha=alpha, beta=0.5)],
        feeds,
        weights,
        opset,
        free=False,
    )
    assert disagreement(proto, feeds, ["x", "w", "b"]) < CLOSE


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ((3, 4), (4, 5)),
        ((2, 3, 4), (4, 5)),
        ((2, 3, 4), (2, 4, 5)),
        ((2, 1, 3, 4), (5, 4, 2)),
        ((3, 4), (2, 4, 5)),
        ((2, 3, 4), (4,)),
        ((4,), (4,)),
    ],
)
def test_matmul(left: tuple[int, ...], right: tuple[int, ...]) -> None:
    feeds, weights = {"x": normal(*left)}, {"w": normal(*right)}
    proto = model([node("MatMul", "x", "w")], feeds, weights, free=False)
    assert disagreement(proto, feeds, ["x", "w"]) < CLOSE


def test_einsum() -> None:
    feeds, weights = {"x": normal(2, 3, 4)}, {"w": normal(4, 5)}
    proto = model([node("Einsum", "x", "w", equation="bij,jk->bki")], feeds, weights)
    assert disagreement(proto, feeds, ["x", "w"]) < CLOSE


@pytest.mark.parametrize("opset", [9, 17])
@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax"])
def test_softmax(op: str, opset: int) -> None:
    if opset == 9:  # the evaluator knows the new meaning only: the old one is one block of axes
        feeds = {"x": normal(3, 6)}
        assert disagreement(model([node(op, "x")], feeds, opset=9), feeds, ["x"]) < CLOSE
        return
    for axis in (-1, 1):
        assert disagreement(model([node(op, "x", axis=axis)], X), X, ["x"]) < CLOSE


def test_old_softmax_is_one_block_of_axes() -> None:
    flat = model([node("Reshape", "x", "s", out="f"), node("Softmax", "f")], X, {"s": i64(0, -1)})
    old = model([node("Softmax", "x", axis=1)], X, opset=11)
    seed = normal(3, 4, 5)
    mine = gradients(old, X, ["x"], seed)["x"]
    np.testing.assert_allclose(
        mine, gradients(flat, X, ["x"], seed.reshape(3, 20))["x"], rtol=1e-5, atol=1e-7
    )


def test_normalisations() -> None:
    feeds = {"x": normal(3, 4, 5, 2)}
    weights = {
        "s": positive(4),
        "b": normal(4),
        "m": normal(4),
        "v": positive(4),
        "ls": positive(5, 2),
        "lb": normal(5, 2),
    }
    for last, wanted in (
        (node("BatchNormalization", "x", "s", "b", "m", "v"), ["x", "s", "b"]),
        (node("InstanceNormalization", "x", "s", "b"), ["x", "s", "b"]),
        (node("LayerNormalization", "x", "ls", "lb", axis=2), ["x", "ls", "lb"]),
    ):
        assert disagreement(model([last], feeds, weights), feeds, wanted) < 5e-4, last.op_type


REDUCTIONS = [
    "ReduceSum",
    "ReduceMean",
    "ReduceMax",
    "ReduceMin",
    "ReduceSumSquare",
    "ReduceL2",
    "ReduceLogSumExp",
]


@pytest.mark.parametrize("keep", [0, 1])
@pytest.mark.parametrize("op", REDUCTIONS)
def test_reductions(op: str, keep: int) -> None:
    feeds = {"x": apart(3, 4, 5)}
    forms = [model([node(op, "x", axes=[-2], keepdims=keep)], feeds, opset=11)]
    forms += [model([node(op, "x", "a", keepdims=keep)], feeds, {"a": i64(1, -1)}, opset=18)]
    forms += [model([node(op, "x", keepdims=keep)], feeds, opset=18)]
    for proto in forms:
        assert disagreement(proto, feeds, ["x"]) < CLOSE


def test_the_batch_stays_dynamic() -> None:
    """One model, batches of several sizes."""
    weights = {"w": normal(4, 3, 3, 3), "f": normal(4 * 16, 5), "s": i64(-1, 64)}
    nodes = [
        node("Conv", "x", "w", strides=[2, 2], pads=[1, 1, 1, 1], out="a"),
        node("Reshape", "a", "s", out="b"),
        node("MatMul", "b", "f"),
    ]
    for count in (1, 2, 5):
        feeds = {"x": normal(count, 3, 8, 8)}
        assert disagreement(model(nodes, feeds, weights), feeds, ["x", "w", "f"]) < CLOSE


@pytest.mark.parametrize("count", [1, 2, 5])
def test_what_follows_the_batch_only_below_some_size_is_dynamic(count: int) -> None:
    """The lesser of the batch and two is two under both bindings of an analysis."""
    nodes = [
        node("Shape", "x", out="s"),
        node("Slice", "s", "zero", "one", out="n"),
        node("Min", "n", "two", out="m"),
        node("Sub", "m", "one", out="row"),
        node("Gather", "w", "row", out="g"),
        node("Mul", "x", "g"),
    ]
    weights = {"w": normal(5, 4), "zero": i64(0), "one": i64(1), "two": i64(2)}
    feeds = {"x": normal(count, 4)}
    assert disagreement(model(nodes, feeds, weights), feeds, ["x", "w"]) < CLOSE


def test_what_has_no_rule_is_named_only_where_it_is_on_the_way() -> None:
    nodes = [node("Relu", "x", out="a"), node("Det", "q", out="d"), node("Mul", "a", "d")]
    feeds = {"x": normal(3, 2), "q": normal(3, 2, 2)}
    proto = model(nodes, {"x": feeds["x"], "q": feeds["q"]}, free=False)
    proto.graph.node[2].input[1] = "e"
    proto.graph.node.insert(2, node("ReduceSum", "d", out="e"))
    assert set(gradients(proto, feeds, ["x"], normal(3, 2))) == {"x"}
    with pytest.raises(CalibrationError, match=r"Det '.*' has no gradient rule"):
        gradients(proto, feeds, ["q"], normal(3, 2))


def test_what_does_not_reach_the_output_has_no_gradient() -> None:
    nodes = [node("Relu", "x", out="y"), node("Neg", "x", out="z")]
    proto = model(nodes, X)
    proto.graph.output.append(onnx.ValueInfoProto(name="z"))
    proto.graph.output[-1].type.tensor_type.elem_type = TensorProto.FLOAT
    assert gradients(proto, X, ["z"], normal(3, 4, 5)) == {}


WRONG = {
    "Tanh": lambda t, n, dy, need: {0: t.mul(dy[0], n.outputs[0])},
    "Transpose": lambda t, n, dy, need: {0: t.op("Transpose", dy[0], perm=list(n.attrs["perm"]))},
    "Mul": lambda t, n, dy, need: dict.fromkeys(need, dy[0]),
    "Softmax": lambda t, n, dy, need: {0: t.mul(dy[0], n.outputs[0])},
}


@pytest.mark.parametrize("op", WRONG)
def test_a_wrong_rule_is_found(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    attrs = {"perm": [1, 2, 0]} if op == "Transpose" else {}
    feeds = {"x": normal(4, 4, 4)}
    inputs = ["x", "x"] if op == "Mul" else ["x"]
    proto = model([node(op, *inputs, **attrs)], feeds)
    assert disagreement(proto, feeds, ["x"]) < CLOSE
    monkeypatch.setitem(RULES, ("", op), WRONG[op])
    assert disagreement(proto, feeds, ["x"]) > 100 * CLOSE


def test_two_rules_for_one_op_are_refused() -> None:
    with pytest.raises(ValueError, match="two gradient rules"):
        vjp("Relu")(RULES["", "Relu"])
