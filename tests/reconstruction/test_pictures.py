"""Changes of pictures: those that the original takes for the same, and no others."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxprune.calibration.samples import Samples
from onnxprune.model import Model
from onnxprune.reconstruction.pictures import Changes, admitted

SIZE = 20


def pictures(count: int = 40, channels: int = 3, seed: int = 0) -> np.ndarray:
    """Pictures that differ in level and in how much there is above, below, left and right."""
    rng = np.random.default_rng(seed)
    ramp = np.linspace(-1, 1, SIZE)
    slopes = rng.normal(size=(3, count, channels, 1, 1))
    noise = 0.05 * rng.normal(size=(count, channels, SIZE, SIZE))
    return (slopes[0] + slopes[1] * ramp[:, None] + slopes[2] * ramp + noise).astype(np.float32)


def reader(weights: np.ndarray, last: bool = False) -> Model:
    """A model that gives one number for each channel: the picture times weights [height, width], summed."""
    weights = weights[None, :, :, None] if last else weights[None, None]
    shape = ["n", SIZE, SIZE, 3] if last else ["n", 3, SIZE, SIZE]
    axes = [1, 2] if last else [2, 3]
    graph = helper.make_graph(
        [
            helper.make_node("Mul", ["x", "w"], ["weighed"]),
            helper.make_node("ReduceMean", ["weighed"], ["y"], axes=axes, keepdims=0),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])],
        [numpy_helper.from_array(weights.astype(np.float32), "w")],
    )
    return Model.load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8))


def samples(x: np.ndarray) -> Samples:
    return Samples([{"x": x}], [len(x)], along={"x": 0})


RAMP = np.linspace(-1, 1, SIZE)
LEVEL = np.ones((SIZE, SIZE))


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize(
    ("weights", "minds"),
    [
        (LEVEL, set()),
        (LEVEL + 3 * RAMP, {"mirrored"}),
        (LEVEL + 3 * RAMP[:, None], {"upside down"}),
        (3 * RAMP + 3 * RAMP[:, None], {"mirrored", "upside down"}),
        ((np.indices((SIZE, SIZE)).sum(axis=0) % 2 - 0.5) * 100, {"mirrored", "upside down", "shifted"}),
    ],
)
def test_what_the_original_minds_is_not_done(weights, minds, last):
    x = pictures()
    found = admitted(reader(weights, last), samples(np.moveaxis(x, 1, -1) if last else x), ["y"], 0)
    assert set(found.ways if found else ()) == {"mirrored", "upside down", "shifted"} - minds


@pytest.mark.parametrize("shape", [(6, 3, 8, 8), (6, 5, 20, 20), (6, 3, 400)])
def test_what_is_no_picture_is_left(shape):
    assert admitted(reader(LEVEL), samples(np.ones(shape, np.float32)), ["y"], 0) is None


def test_each_way_changes_about_every_second_picture_and_no_other():
    x = pictures(200)
    rng = np.random.default_rng(1)
    change = Changes("x", 2, ("mirrored",))
    found = change({"x": x}, rng)["x"]
    same = (found == x).all(axis=(1, 2, 3))
    turned = (found == x[..., ::-1]).all(axis=(1, 2, 3))
    assert (same | turned).all()
    assert 60 < same.sum() < 140
    assert found.dtype == x.dtype
    shifted = Changes("x", 2, ("shifted",)).all({"x": x}, rng)["x"]
    assert np.abs(shifted - x).max() > 0.01
    assert set(np.unique(shifted[0])) <= set(np.unique(x[0]))
