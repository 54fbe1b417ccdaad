"""How many positions windows leave: as derived for any size, and as onnxruntime has it."""

from __future__ import annotations

from itertools import combinations, product

import numpy as np
import onnx
import pytest
from nets import normal
from onnxruntime import InferenceSession
from outside import masked
from size_models import Sized

import onnxprune
from onnxprune.graph.analysis import analyse
from onnxprune.model import Model

CHANNELS = 6
#: Pairs of them are held against each other; several leave as many positions as others at all sizes.
WINDOWS = [
    {"kernel_shape": [kernel], "strides": [stride], **pads}
    for kernel, stride, pads in product(
        (1, 2, 3), (1, 2),
        ({}, {"pads": [1, 1]}, {"pads": [0, 1]}, {"auto_pad": "SAME_UPPER"}, {"auto_pad": "VALID"}),
    )
    if kernel > 1 or not pads
] + [
    {"kernel_shape": [3], "strides": [2], "ceil_mode": 1},
    {"kernel_shape": [2], "strides": [2], "pads": [1, 1], "ceil_mode": 1},
    {"kernel_shape": [3], "dilations": [2], "pads": [2, 2]},
    {"kernel_shape": [2], "dilations": [2], "strides": [2]},
]  # fmt: skip
LENGTHS = range(7, 16)


def session(model: onnx.ModelProto) -> InferenceSession:
    return InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def test_equal_stand_ins_are_equal_lengths_at_all_sizes() -> None:
    b = Sized()
    pools = [b.do("MaxPool", "x", **window) for window in WINDOWS]
    y = b.do("Concat", *pools, axis=2)
    model = b.model({"x": ["N", CHANNELS, "T"]}, y)
    sizes = analyse(Model.load(model)).sizes
    stand_ins = [(sizes.length(name) or ())[2] for name in pools]
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in pools)
    run, shapes = session(model), []
    for length in LENGTHS:
        shapes.append([a.shape[2] for a in run.run(pools, {"x": normal(2, CHANNELS, length)})])
    at_all = np.array(shapes).T
    equal = [
        (one, other)
        for one, other in combinations(range(len(WINDOWS)), 2)
        if stand_ins[one] == stand_ins[other]
    ]
    assert len(equal) > 20
    for one, other in equal:
        assert at_all[one].tolist() == at_all[other].tolist(), (WINDOWS[one], WINDOWS[other])
    apart = [tuple(at_all[one]) for one in range(len(WINDOWS))]
    missed = sum(a == b for a, b in combinations(apart, 2)) - len(equal)
    assert missed <= 10, "ceilings are told apart from floors, whatever they come to"


def folded(*, stride: int = 1, after: int = 1) -> onnx.ModelProto:
    """Values whose space is folded, and unfolded again by the sizes of what another convolution reads or gives."""
    b = Sized()
    window = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "strides": [stride, stride]}
    v = b.do("Conv", "x", b.weight("v", 10, 4, 3, 3), **window)
    other = b.do("Conv", "x", b.weight("k", 3, 4, 1, 1), strides=[after, after]) if after > 1 else "x"
    flat = b.do("Relu", b.do("Reshape", v, [0, 10, -1]))
    target = b.do("Concat", b.sizes("x", 0), [10], b.sizes(other, 2), b.sizes(other, 3), axis=0)
    y = b.do("Conv", b.do("Reshape", flat, target), b.weight("o", 3, 10, 1, 1))
    return b.model({"x": ["N", 4, "H", "W"]}, y)


@pytest.mark.parametrize(("stride", "after"), [(1, 1), (2, 2)])
def test_space_unfolded_by_the_sizes_of_another_tensor_leaves_channels_free(stride: int, after: int) -> None:
    model = folded(stride=stride, after=after)
    result = onnxprune.prune(model, ratio=0.5, align=None)
    assert {g["units"]: g["removed"] for g in result.report.groups}[10] == 5
    twin = masked(model, result)
    for shape in ((1, 4, 6, 8), (3, 4, 5, 5), (2, 4, 12, 4)):
        feed = {"x": normal(*shape)}
        np.testing.assert_allclose(
            session(twin).run(None, feed)[0], session(result.model).run(None, feed)[0], atol=1e-5
        )


def test_space_unfolded_by_sizes_that_may_differ_runs_only_where_they_are_equal() -> None:
    """1 x 1 windows of half of a step: both run on a picture of 1 x 1, and neither on any other."""
    model = folded(stride=2, after=1)
    result = onnxprune.prune(model, ratio=0.5, align=None, verify=False)
    assert {g["units"]: g["removed"] for g in result.report.groups}[10] == 5
    one, other = session(masked(model, result)), session(result.model)
    feed = {"x": normal(3, 4, 1, 1)}
    np.testing.assert_allclose(one.run(None, feed)[0], other.run(None, feed)[0], atol=1e-5)
    for run in (one, other):
        with pytest.raises(Exception, match="Reshape"):
            run.run(None, {"x": normal(3, 4, 6, 8)})
