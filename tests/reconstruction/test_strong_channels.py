"""A stream of which one channel holds most of the variance: what goes is what the others miss least."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import onnxprune
from onnxprune.reconstruction.evidence import STRONG, Spread, emphasis, typical

CHANNELS, UNITS = 16, 6


def net() -> onnx.ModelProto:
    """Return ``x + relu(x U) V``: unit 0 writes to channel 0 alone, much; the others to all other channels."""
    rng = np.random.default_rng(1)
    u, v = rng.standard_normal((CHANNELS, UNITS)), np.zeros((UNITS, CHANNELS))
    u[0] = 0
    v[0, 0] = 8.0
    v[1:, 1:] = rng.standard_normal((UNITS - 1, CHANNELS - 1)) / 3
    nodes = [
        helper.make_node("MatMul", ["x", "u"], ["inner"]),
        helper.make_node("Relu", ["inner"], ["act"]),
        helper.make_node("MatMul", ["act", "v"], ["branch"]),
        helper.make_node("Add", ["x", "branch"], ["sum"]),
    ]
    values = [
        helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, ["batch", CHANNELS]) for n in ("x", "sum")
    ]
    weights = [numpy_helper.from_array(w.astype(np.float32), n) for n, w in (("u", u), ("v", v))]
    graph = helper.make_graph(nodes, "strong", values[:1], values[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


@pytest.mark.parametrize("strength", [1.0, 1000.0])
def test_a_unit_that_writes_to_a_strong_channel_alone_goes_first(strength: float) -> None:
    x = np.random.default_rng(2).standard_normal((400, CHANNELS)).astype(np.float32)
    x[:, 0] *= strength
    model = net()
    result = onnxprune.prune(
        model, ratio=1 / UNITS, align="none", calib={"x": x}, rotate=False, recover="lstsq"
    )
    (group,) = [g for g in result.plan.groups if g.removed_units]
    assert (list(group.removed_units) == [0]) == (strength > 1)


def test_emphasis_makes_the_sum_typical() -> None:
    variances = np.array([1.0, 2.0, 3.0, 20.0, 4000.0, 0.0])
    shares = emphasis(variances)
    np.testing.assert_allclose(shares, [1, 1, 1, 1, STRONG * 3 / 4000, 1])
    assert np.sum(shares * variances) == pytest.approx(typical(variances))
    np.testing.assert_array_equal(emphasis(np.zeros(3)), 1)
    rows = np.random.default_rng(5).standard_normal((300, 8))
    spread = Spread()
    assert spread.emphasis is None
    spread.add(rows, -1, rows, None)
    assert spread.emphasis is None
