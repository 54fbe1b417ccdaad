"""Gradients through onnxruntime against central differences of ONNX's reference evaluator in float64."""

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from onnxprune.gradient.build import SEED, gradient_model
from onnxprune.graph.analysis import analyse
from onnxprune.model import Model
from onnxprune.runtime.session import open_session

STEP = 3e-4
MS = "com.microsoft"


def model(
    nodes: list[onnx.NodeProto],
    inputs: Mapping[str, np.ndarray],
    weights: Mapping[str, np.ndarray] | None = None,
    opset: int = 17,
    free: bool = True,
) -> onnx.ModelProto:
    """Nodes from inputs to ``y``; the first axis of float inputs is dynamic where ``free``."""
    given = [
        helper.make_tensor_value_info(
            n,
            helper.np_dtype_to_tensor_dtype(a.dtype),
            ["N" if free and a.ndim else a.shape[0], *a.shape[1:]] if a.ndim else [],
        )
        for n, a in inputs.items()
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        given,
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(a, n) for n, a in (weights or {}).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def wide(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The same model in float64."""
    twin = onnx.ModelProto.FromString(proto.SerializeToString())
    for tensor in twin.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.dtype == np.float32:
            tensor.CopyFrom(numpy_helper.from_array(array.astype(np.float64), tensor.name))
    for value in (*twin.graph.input, *twin.graph.output):
        if value.type.tensor_type.elem_type == TensorProto.FLOAT:
            value.type.tensor_type.elem_type = TensorProto.DOUBLE
    return twin


def gradients(
    proto: onnx.ModelProto, feeds: Mapping[str, np.ndarray], wanted: list[str], seed: np.ndarray
) -> dict[str, np.ndarray]:
    found = gradient_model(analyse(Model.load(proto)), wanted, "y")
    got = open_session(found.model).run({**feeds, SEED: seed})
    return {n: got[o] for n, o in found.gradients.items()}


def by_differences(
    proto: onnx.ModelProto, feeds: Mapping[str, np.ndarray], name: str, seed: np.ndarray, along: np.ndarray
) -> float:
    """The change of <seed, y> along a direction in one input or weight."""
    twin, values = (
        wide(proto),
        {n: a.astype(np.float64) if a.dtype == np.float32 else a for n, a in feeds.items()},
    )
    inside = {t.name: t for t in twin.graph.initializer}
    ends = []
    for sign in (1, -1):
        if name in values:
            moved = {**values, name: values[name] + sign * STEP * along}
            ends.append(np.asarray(ReferenceEvaluator(twin).run(["y"], moved)[0], np.float64))
        else:
            old = numpy_helper.to_array(inside[name])
            inside[name].CopyFrom(numpy_helper.from_array(old + sign * STEP * along, name))
            ends.append(np.asarray(ReferenceEvaluator(twin).run(["y"], values)[0], np.float64))
            inside[name].CopyFrom(numpy_helper.from_array(old, name))
    return float((seed * (ends[0] - ends[1])).sum() / (2 * STEP))


def disagreement(
    proto: onnx.ModelProto, feeds: Mapping[str, np.ndarray], wanted: list[str], draws: int = 3
) -> float:
    """Largest difference between gradients and central differences, relative to their size, over directions."""
    rng = np.random.default_rng(0)
    y = np.asarray(ReferenceEvaluator(wide(proto)).run(["y"], {
        n: a.astype(np.float64) if a.dtype == np.float32 else a for n, a in feeds.items()
    })[0])  # fmt: skip
    seed = rng.standard_normal(y.shape).astype(np.float32)
    found = gradients(proto, feeds, wanted, seed)
    weights = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
    worst = 0.0
    for name in wanted:
        shape = (feeds[name] if name in feeds else weights[name]).shape
        got = found[name]
        assert got.shape == shape, (name, got.shape, shape)
        assert np.isfinite(got).all()
        for _ in range(draws):
            along = rng.standard_normal(shape)
            true = by_differences(proto, feeds, name, seed.astype(np.float64), along)
            scale = float(np.sqrt((got.astype(np.float64) ** 2).sum())) + 1e-3
            worst = max(worst, abs(float((got * along).sum()) - true) / scale)
    return worst


_rng = np.random.default_rng(7)
Nodes = list[onnx.NodeProto]


def normal(*shape: int) -> np.ndarray:
    return _rng.standard_normal(shape).astype(np.float32)


def apart(*shape: int) -> np.ndarray:
    """Values that differ from each other by far more than a step, so that no maximum changes."""
    size = int(np.prod(shape))
    return ((_rng.permutation(size) - size // 2) * 0.05 + 0.013).astype(np.float32).reshape(shape)


def positive(*shape: int) -> np.ndarray:
    return (np.abs(normal(*shape)) + 0.5).astype(np.float32)


def node(op: str, *inputs: str, out: str = "y", **attrs: object) -> onnx.NodeProto:
    return helper.make_node(op, list(inputs), [out], **attrs)


def ms(op: str, *inputs: str, outputs: tuple[str, ...] = ("y",), **attrs: object) -> onnx.NodeProto:
    """A node of onnxruntime's own domain."""
    return helper.make_node(op, list(inputs), list(outputs), domain=MS, **attrs)


def fused(
    nodes: Nodes, feeds: Mapping[str, np.ndarray], weights: Mapping[str, np.ndarray] | None = None,
    opset: int = 18, free: bool = False,
) -> onnx.ModelProto:  # fmt: skip
    """A model that may have nodes of onnxruntime's own domain."""
    proto = model(nodes, feeds, weights, opset=opset, free=free)
    proto.opset_import.append(helper.make_opsetid(MS, 1))
    return proto


def i64(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def linear_gap(proto: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> float:
    """For an op without a constant part, by onnxruntime alone: <seed, f(v)> against <gradient, v>."""
    v = {"x": normal(*feeds["x"].shape)}
    y = open_session(proto).run(v)["y"]
    seed = normal(*y.shape)
    found = gradients(proto, feeds, ["x"], seed)["x"]
    return abs(float((found * v["x"]).sum() - (seed * y).sum())) / float(np.linalg.norm(found))


X = {"x": normal(3, 4, 5)}
