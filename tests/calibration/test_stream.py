"""Parts of a model, one after another, compute what the whole does."""

from collections.abc import Iterator
from functools import partial

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxprune.calibration.samples import load_samples
from onnxprune.calibration.stream import Stream
from onnxprune.errors import CalibrationError
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


def test_what_is_left_out_of_a_node_is_no_tensor() -> None:
    """An output of no name in front of a stop, and behind it an input of no name."""
    ms = "com.microsoft"
    nodes = [
        helper.make_node("SkipLayerNormalization", ["x", "x", "s"], ["n", "", "", "sum"], domain=ms),
        helper.make_node("Clip", ["n", "", "one"], ["c"]),
        helper.make_node("Add", ["c", "sum"], ["y"]),
    ]
    weights = {"s": np.ones(4, np.float32), "one": np.float32(1)}
    value = partial(helper.make_tensor_value_info, elem_type=TensorProto.FLOAT, shape=["N", 3, 4])
    stored = [numpy_helper.from_array(np.asarray(a), n) for n, a in weights.items()]
    graph = helper.make_graph(nodes, "g", [value("x")], [value("y")], stored)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(ms, 1)]
    model = Model.load(helper.make_model(graph, opset_imports=opsets, ir_version=8))
    analysis = analyse(model)
    x = np.random.default_rng(0).standard_normal((9, 3, 4)).astype(np.float32)
    stream = Stream(model, load_samples(model.proto.graph, {"x": x}, types=analysis.inputs), analysis.types)
    assert len(list(stream.run(1, []))) == 1
    got = np.concatenate([batch["y"] for batch in stream.run(3, ["y"])])
    np.testing.assert_array_equal(got, open_session(model).run({"x": x})["y"])


def streamed(count: int = 130) -> tuple[Stream, np.ndarray]:
    model = Model.load(resized())
    analysis = analyse(model)
    x = np.random.default_rng(0).standard_normal((count, 3, 4, 4)).astype(np.float32)
    samples = load_samples(model.proto.graph, {"x": x}, types=analysis.inputs)
    assert len(samples.batches) > 1
    return Stream(model, samples, analysis.types), x


def test_the_whole_model_runs_on_each_batch_wherever_the_stream_stands() -> None:
    stream, x = streamed()
    for _ in stream.run(3, []):
        pass
    plain = open_session(stream.model, ["b"]).run({"x": x})
    got = list(stream.each())
    assert [set(values) for values in got] == [{"y"}] * len(stream.samples.batches)
    np.testing.assert_array_equal(np.concatenate([values["y"] for values in got]), plain["y"])
    inner = np.concatenate([values["b"] for values in stream.each(["b"])])
    np.testing.assert_array_equal(inner, plain["b"])
    assert stream.position == 3


def test_who_asks_for_nothing_gets_nothing() -> None:
    """An empty list isn't all outputs, which it is for onnxruntime."""
    stream, x = streamed()
    assert list(stream.each([])) == [{}] * len(stream.samples.batches)
    session = open_session(stream.model)
    assert session.run({"x": x}, []) == {}
    assert set(session.run({"x": x})) == {"y"}


def test_inputs_beside_the_samples_are_asked_for_batch_by_batch() -> None:
    stream, _ = streamed()
    asked: list[int] = []

    def doubled() -> Iterator[dict[str, np.ndarray]]:
        for number, batch in enumerate(stream.samples.batches):
            asked.append(number)
            yield {"x": 2 * batch["x"]}

    for number, values in enumerate(stream.each(beside=doubled())):
        assert asked == list(range(number + 1))
        twice = open_session(stream.model).run({"x": 2 * stream.samples.batches[number]["x"]})
        np.testing.assert_array_equal(values["y"], twice["y"])
    assert len(asked) == len(stream.samples.batches)
    with pytest.raises(ValueError, match="shorter"):
        list(stream.each(beside=[{}]))


def test_another_model_goes_on_from_the_same_place() -> None:
    stream, _ = streamed()
    for _ in stream.run(3, []):
        pass
    other = stream.model.fork()
    other.put("v", 3 * np.asarray(stream.model.weight("v")))
    end = len(stream.model.order)
    thrice = [values["y"] for values in stream.fork(other).run(end, ["y"])]
    assert stream.position == 3
    for values, three in zip(stream.run(end, ["y"]), thrice, strict=True):
        assert np.abs(values["y"]).max() > 0
        np.testing.assert_allclose(three, 3 * values["y"], rtol=1e-5)


def test_what_fails_is_named() -> None:
    stream, _ = streamed()
    stream.samples.batches[1]["x"] = np.zeros((2, 7, 4, 4), np.float32)
    with pytest.raises(CalibrationError, match=r"^The model fails on the samples: "):
        list(stream.each())
    broken = Stream(stream.model, stream.samples, what="A segment")
    with pytest.raises(CalibrationError, match=r"^A segment fails on the samples: "):
        list(broken.each())


def test_a_type_that_has_no_kernels_here_is_told() -> None:
    """onnxruntime has no sums of bfloat16 on a CPU."""
    nodes = [
        helper.make_node("Cast", ["x"], ["h"], to=TensorProto.BFLOAT16),
        helper.make_node("MatMul", ["h", "w"], ["m"]),
        helper.make_node("Cast", ["m"], ["y"], to=TensorProto.FLOAT),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 4]) for name in "xy"]
    weight = helper.make_tensor("w", TensorProto.BFLOAT16, [4, 4], np.ones(16))
    graph = helper.make_graph(nodes, "halves", ends[:1], ends[1:], [weight])
    model = Model.load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    samples = load_samples(model.proto.graph, {"x": np.ones((8, 4), np.float32)})
    with pytest.raises(
        CalibrationError, match=r"no kernel for this type of numbers: .* the model in fp32\.$"
    ):
        list(Stream(model, samples).each())
