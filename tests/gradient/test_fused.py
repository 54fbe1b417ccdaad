"""Gradients of fused norms, activations and products, by differences or beside the same written in plain ops."""

import numpy as np
import onnx
import pytest

from tests.gradient.finite import X, disagreement, fused, gradients, i64, model, ms, node, normal

CLOSE = 2e-4
Nodes = list[onnx.NodeProto]


@pytest.mark.parametrize(
    ("op", "opset", "attrs"),
    [
        ("Mish", 18, {}), ("Selu", 17, {}), ("Celu", 17, {"alpha": 0.7}), ("Swish", 24, {"alpha": 1.3}),
        ("LpNormalization", 17, {"axis": 1}),
    ],
)  # fmt: skip
def test_activations(op: str, opset: int, attrs: dict[str, float]) -> None:
    assert disagreement(model([node(op, "x", **attrs)], X, opset=opset), X, ["x"]) < CLOSE


@pytest.mark.parametrize("attrs", [{}, {"reverse": 1}, {"exclusive": 1}, {"reverse": 1, "exclusive": 1}])
def test_running_sums(attrs: dict[str, int]) -> None:
    proto = model([node("CumSum", "x", "axis", **attrs)], X, {"axis": np.array(1)})
    assert disagreement(proto, X, ["x"]) < CLOSE


def test_root_mean_square() -> None:
    weights = {"s": normal(4, 5)}
    proto = model([node("RMSNormalization", "x", "s", axis=1, epsilon=1e-2)], X, weights, opset=23)
    assert disagreement(proto, X, ["x", "s"]) < CLOSE


@pytest.mark.parametrize(("opset", "scales"), [(18, 2), (21, 6)])
def test_groups_of_channels(opset: int, scales: int) -> None:
    feeds, weights = {"x": normal(3, 6, 4)}, {"s": normal(scales), "b": normal(scales)}
    proto = model([node("GroupNormalization", "x", "s", "b", num_groups=2)], feeds, weights, opset=opset)
    assert disagreement(proto, feeds, ["x", "s", "b"]) < 5 * CLOSE  # the reference computes it in float32


SUM = [node("Add", "x", "z", out="xz"), node("Add", "xz", "b", out="t")]
PLAIN: dict[str, tuple[Nodes, Nodes, list[str]]] = {
    "skip": (
        [ms("SkipLayerNormalization", "x", "z", "s", "c", "b", epsilon=1e-3)],
        [*SUM, node("LayerNormalization", "t", "s", "c", epsilon=1e-3)],
        ["x", "z", "s", "c", "b"],
    ),
    "skip, its sum read": (
        [
            ms("SkipLayerNormalization", "x", "z", "s", "c", "b", outputs=("n", "", "", "t"), epsilon=1e-3),
            node("Mul", "n", "t"),
        ],
        [*SUM, node("LayerNormalization", "t", "s", "c", out="n", epsilon=1e-3), node("Mul", "n", "t")],
        ["x", "z", "s", "c", "b"],
    ),
    "skip, simplified": (
        [ms("SkipSimplifiedLayerNormalization", "x", "z", "s", "b", epsilon=1e-3)],
        [
            *SUM, node("Mul", "t", "t", out="tt"), node("ReduceMean", "tt", "last", out="m"),
            node("Add", "m", "eps", out="e"), node("Sqrt", "e", out="r"), node("Div", "t", "r", out="u"),
            node("Mul", "u", "s"),
        ],
        ["x", "z", "s", "b"],
    ),
    "BiasGelu": ([ms("BiasGelu", "x", "b")], [node("Add", "x", "b", out="t"), node("Gelu", "t")], ["x", "b"]),
    "FastGelu": (
        [ms("FastGelu", "x", "b")],
        [node("Add", "x", "b", out="t"), node("Gelu", "t", approximate="tanh")],
        ["x", "b"],
    ),
    "Gelu": ([ms("Gelu", "x")], [node("Gelu", "x")], ["x"]),
    "QuickGelu": (
        [ms("QuickGelu", "x", alpha=1.5)],
        [node("Mul", "x", "steep", out="a"), node("Sigmoid", "a", out="g"), node("Mul", "x", "g")],
        ["x"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PLAIN)
def test_forms_of_onnxruntime(name: str) -> None:
    one, two, wanted = PLAIN[name]
    feeds = {"x": normal(3, 4, 5), "z": normal(3, 4, 5)}
    weights = {"s": normal(5), "c": normal(5), "b": normal(5), "last": i64(-1), "eps": np.float32(1e-3),
               "steep": np.float32(1.5)}  # fmt: skip
    seed, got = normal(3, 4, 5), []
    for nodes in (one, two):
        got.append(gradients(fused(nodes, feeds, weights, opset=20, free=True), feeds, wanted, seed))
    for key in wanted:
        assert np.abs(got[1][key]).max() > 1e-3
        np.testing.assert_allclose(got[0][key], got[1][key], atol=3e-5)


@pytest.mark.parametrize("turns", [(0, 0), (1, 0), (0, 1), (1, 1)])
@pytest.mark.parametrize("weight", [True, False])
def test_products_of_turned_operands(turns: tuple[int, int], weight: bool) -> None:
    left, right = [(2, 3, 4), (2, 4, 3)][turns[0]], [(4, 5), (5, 4)][turns[1]]
    feeds = {"x": normal(*left)}
    other = {"w": normal(*right) if weight else normal(2, *right)}
    feeds, weights = (feeds, other) if weight else ({**feeds, **other}, {})
    one = [ms("FusedMatMul", "x", "w", transA=turns[0], transB=turns[1], alpha=0.5)]
    two: Nodes = []
    names = ["x", "w"]
    for slot, turn in enumerate(turns):
        if turn:
            perm = [1, 0] if slot and weight else [0, 2, 1]
            two.append(node("Transpose", names[slot], out=f"{names[slot]}t", perm=perm))
            names[slot] += "t"
    two += [node("MatMul", *names, out="p"), node("Mul", "p", "half")]
    seed, got = normal(2, 3, 5), []
    for nodes in (one, two):
        proto = fused(nodes, feeds, {**weights, "half": np.float32(0.5)}, opset=20, free=True)
        got.append(gradients(proto, feeds, ["x", "w"], seed))
    for key in ("x", "w"):
        np.testing.assert_allclose(got[0][key], got[1][key], atol=2e-5)
