"""Synthetic samples in the range that a model was made for."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxprune.calibration.samples import load_samples
from onnxprune.calibration.synthetic import series
from onnxprune.graph.analysis import analyse
from onnxprune.model import Model
from onnxprune.reconstruction.plausible import RANGES, plausible


def drawn(analysis, seed=0):
    graph = analysis.model.proto.graph
    return load_samples(graph, "synthetic", most=64, seed=seed, types=analysis.inputs)


def net(name, folded):
    """A convolution and a normalisation whose statistics are those of images in one range."""
    rng = np.random.default_rng(3)
    weights = {"w": rng.standard_normal((8, 3, 3, 3)) * 0.2, "v": rng.standard_normal((5, 8, 1, 1))}
    first = [helper.make_node("Conv", ["x", "w"], ["a"])]
    last = [helper.make_node("Relu", ["n"], ["r"]), helper.make_node("Conv", ["r", "v"], ["y"])]
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 12, 12])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)

    def build(nodes):
        held = [numpy_helper.from_array(a.astype(np.float32), n) for n, a in weights.items()]
        graph = helper.make_graph(nodes, "g", [given], [out], held)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)

    plain = build([*first, helper.make_node("Identity", ["a"], ["n"]), *last])
    from onnxprune.runtime.session import open_session

    x = np.concatenate([b["x"] for b in drawn(analyse(Model.load(plain)), seed=9).batches])
    a = open_session(plain, ["a"]).run({"x": RANGES[name](x).astype(np.float32)}, ["a"])["a"]
    mean, var = a.mean(axis=(0, 2, 3)), a.var(axis=(0, 2, 3))
    scale, shift = rng.uniform(0.7, 1.3, 8), rng.standard_normal(8)
    if folded:
        factor = scale / np.sqrt(var)
        weights |= {
            "w": weights["w"] * factor[:, None, None, None],
            "b": shift,
        }  # centred inputs: the mean is small
        return build([helper.make_node("Conv", ["x", "w", "b"], ["n"]), *last])
    weights |= {"scale": scale, "shift": shift, "mean": mean, "var": var}
    norm = helper.make_node("BatchNormalization", ["a", "scale", "shift", "mean", "var"], ["n"])
    return build([*first, norm, *last])


@pytest.mark.parametrize("name", ["standardised", "0 to 1", "0 to 255", "of deviation 8"])
def test_normalisation_tells_the_range(name):
    told = []
    analysis = analyse(Model.load(net(name, folded=False)))
    found = plausible(analysis, drawn(analysis), 0, told.append)
    assert told == [f"synthetic samples: values {name}, by the statistics of BatchNormalization"]
    expected = RANGES[name](drawn(analysis).batches[0]["x"])
    np.testing.assert_allclose(found.batches[0]["x"], expected, rtol=1e-5)


@pytest.mark.parametrize("name", ["standardised", "of deviation 8", "of deviation 1/8"])
def test_a_folded_bias_tells_the_size(name):
    told = []
    analysis = analyse(Model.load(net(name, folded=True)))
    found = plausible(analysis, drawn(analysis), 0, told.append).batches[0]["x"]
    assert "by the first layer's bias" in told[0]
    assert 0.4 < found.std() / RANGES[name](drawn(analysis).batches[0]["x"]).std() < 2.5


def test_ids_lie_in_the_table_and_masks_have_lengths():
    nodes = [
        helper.make_node("Gather", ["t", "ids"], ["e"]),
        helper.make_node("Cast", ["attention_mask"], ["m"], to=1),
    ]
    nodes += [
        helper.make_node("ReduceSum", ["e", "two"], ["s"], keepdims=0),
        helper.make_node("Mul", ["s", "m"], ["y"]),
    ]
    weights = {
        "t": np.random.default_rng(0).standard_normal((300, 4)).astype(np.float32),
        "two": np.array([2]),
    }
    kinds = TensorProto.INT64, ["N", 16]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info(n, *kinds) for n in ("ids", "attention_mask")],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(a, n) for n, a in weights.items()],
    )  # fmt: skip
    proto: onnx.ModelProto = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    )
    analysis = analyse(Model.load(proto))
    batch = plausible(analysis, drawn(analysis), 0).batches[0]
    ids, mask = batch["ids"], batch["attention_mask"]
    lengths = mask.sum(axis=1)
    assert ids.max() > 100
    assert ids.max() < 300
    assert len(set(lengths.tolist())) > 3
    assert lengths.min() >= 4
    assert (ids[mask == 0] == 0).all()
    assert (np.diff(mask, axis=1) <= 0).all()


def test_series_are_slow():
    x = series((20, 512), np.random.default_rng(0))
    assert abs(x.std() - 1) < 1e-6
    power = (np.abs(np.fft.rfft(x)) ** 2).mean(axis=0)
    assert power[1:8].mean() > 10 * power[100:].mean()
