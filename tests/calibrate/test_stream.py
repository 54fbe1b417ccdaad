"""Parts of a model, one after another, compute what the whole does."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxprune.calibration.samples import load_samples
from onnxprune.calibration.stream import Stream
from onnxprune.graph.analysis import analyse
from onnxprune.model import Model
from onnxprune.runtime.session import open_session


def resized() -> onnx.ModelProto:
    """Twice as high and wide, by sizes that are worked out from the shape of what a convolution makes."""
    weights = {
        "w": np.ones((4, 3, 1, 1), np.float32),
        "two": np.array([1, 1, 2, 2]),
        "as": np.array([-1, 4, 4, 4]),
        "v": np.ones((2, 4, 1, 1), np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"]),
        helper.make_node("Shape", ["a"], ["shape"]),
        helper.make_node("Mul", ["shape", "two"], ["sizes"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Reshape", ["b", "as"], ["b4"]),  # says how many axes there are
        helper.make_node("Resize", ["b4", "", "", "sizes"], ["c"], mode="nearest"),
        helper.make_node("Conv", ["c", "v"], ["y"]),
    ]
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 4, 4])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph(
        nodes, "g", [given], [out], [numpy_helper.from_array(a, n) for n, a in weights.items()]
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("stop", range(8))
def test_a_stop_anywhere_changes_nothing(stop: int) -> None:
    model = Model.load(resized())
    analysis = analyse(model)
    x = np.random.default_rng(0).standard_normal((70, 3, 4, 4)).astype(np.float32)
    samples = load_samples(model.proto.graph, {"x": x}, types=analysis.inputs)
    stream = Stream(model, samples, analysis.types)
    for _ in stream.run(stop, []):
        pass
    assert stream.position == stop
    got = np.concatenate([batch["y"] for batch in stream.run(len(analysis.coupling.nodes), ["y"])])
    np.testing.assert_array_equal(got, open_session(model).run({"x": x})["y"])
