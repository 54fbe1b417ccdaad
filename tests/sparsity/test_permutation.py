"""Channels in another order compute the same; a wrong order is caught; what can't move stays, with the reason."""

from collections.abc import Callable
from itertools import pairwise

import nets
import numpy as np
import onnx
import pytest
from pass_models import CNN, TRANSFORMER, error
from small_models import Builder, attention, chain, residual

from onnxprune import Model
from onnxprune.cut.writer import Writer
from onnxprune.graph.analysis import analyse
from onnxprune.graph.coupling import Instance
from onnxprune.permutation.permute import Permuted, permute
from onnxprune.permutation.symmetry import broken, symmetry_of


def shuffled(width: int = 16) -> onnx.ModelProto:
    """A channel shuffle between grouped convolutions, a Concat of two widths, and a Split behind it."""
    b = Builder(5)
    x = b.op("Relu", [b.conv("x", "stem", 3, width)], "stem.relu")
    w = b.weight("grouped.weight", width, width // 2, 3, 3)
    y = b.op("Conv", [x, w], "grouped", kernel_shape=[3, 3], pads=[1] * 4, group=2)
    y = b.op("Reshape", [y, b.constant("apart", np.array([0, 2, width // 2, 8, 8]))], "apart_reshape")
    y = b.op("Transpose", [y], "turn", perm=[0, 2, 1, 3, 4])
    y = b.op("Reshape", [y, b.constant("together", np.array([0, width, 8, 8]))], "together_reshape")
    z = b.op("Relu", [b.conv(x, "side", width, 12)], "side.relu")
    both = b.op("Concat", [y, z], "concat", axis=1)
    both = b.op("Relu", [b.conv(both, "mix", width + 12, 24)], "mix.relu")
    b.op("Split", [both, b.constant("sizes", np.array([8, 16]))], "split", outputs=2, axis=1)
    one, two = b.conv("split_out0", "one", 8, 6), b.conv("split_out1", "two", 16, 6)
    y = b.op("Add", [one, two], "add")
    y = b.op("Flatten", [b.op("GlobalAveragePool", [y], "pool")], "flatten", axis=1)
    return b.model({"x": [1, 3, 8, 8]}, b.linear(y, "head", 6, 5))


def padded(width: int = 8) -> onnx.ModelProto:
    """A shortcut that is padded with zero channels."""
    b = Builder(6)
    x = b.op("Relu", [b.conv("x", "stem", 3, width)], "stem.relu")
    y = b.op("Relu", [b.conv(x, "up", width, 2 * width)], "up.relu")
    pads = b.constant("pads", np.array([0, width // 2, 0, 0, 0, width // 2, 0, 0]))
    x = b.op("Relu", [b.op("Add", [y, b.op("Pad", [x, pads], "pad")], "add")], "relu")
    x = b.op("Flatten", [b.op("GlobalAveragePool", [x], "pool")], "flatten", axis=1)
    return b.model({"x": [1, 3, 8, 8]}, b.linear(x, "head", 2 * width, 5))


def grouped(groups: int = 2, each: int = 8) -> onnx.ModelProto:
    """A depthwise and a grouped convolution."""
    b, width = Builder(7), groups * each
    x = b.op("Relu", [b.conv("x", "stem", 3, width)], "stem.relu")
    own = {"kernel_shape": [3, 3], "pads": [1] * 4}
    x = b.op("Conv", [x, b.weight("depth.weight", width, 1, 3, 3)], "depth", group=width, **own)
    x = b.op("Conv", [x, b.weight("grouped.weight", width, each, 3, 3)], "grouped", group=groups, **own)
    x = b.op("Relu", [x], "grouped.relu")
    x = b.op("Flatten", [b.op("GlobalAveragePool", [x], "pool")], "flatten", axis=1)
    return b.model({"x": [1, 3, 8, 8]}, b.linear(x, "head", width, 5))


NETS: list[Callable[[], onnx.ModelProto]] = [
    chain, residual, lambda: residual(16), attention, lambda: attention(4, 8), nets.normalised, grouped,
    nets.recurrent, nets.quantised, shuffled, padded,
]  # fmt: skip


def noise(model: Model, seed: int = 0) -> Callable[[str], np.ndarray]:
    """Saliency that has nothing to do with the weights, so that every group would move."""
    return lambda name: np.random.default_rng([seed, len(name)]).random(model.info(name).dims)


def reordered(proto: onnx.ModelProto, pattern: tuple[int, int] = (2, 4)) -> tuple[Model, Permuted]:
    model = Model.load(proto)
    return model, permute(model, noise(model), pattern, rounds=10)


@pytest.mark.parametrize("number", range(len(NETS)))
@pytest.mark.parametrize("pattern", [(2, 4), (1, 2)])
def test_a_net_in_another_order_computes_the_same(number: int, pattern: tuple[int, int]) -> None:
    model, found = reordered(NETS[number](), pattern)
    assert found.gains
    assert found.error < 1e-4
    for gain in found.gains.values():
        assert gain.total > gain.after > gain.before > 0
        assert 0 < gain.won <= 1
        assert 0 < gain.moved <= gain.units
    before, after = ({n: np.asarray(m.weight(n)) for n in m.names()} for m in (model, found.model))
    assert any(n in after and not np.array_equal(before[n], after[n]) for n in before)
    for name, value in before.items():
        if name in after:
            assert np.array_equal(np.sort(value, axis=None), np.sort(after[name], axis=None))
    for name, axes in found.order.items():
        want = before[name]
        for axis, order in axes.items():
            want = np.take(want, order, axis)
        assert np.array_equal(want, after[name])


@pytest.mark.parametrize("path", [CNN, TRANSFORMER])
def test_a_trained_net_in_another_order_computes_the_same(path: str) -> None:
    model = Model.load(path)
    found = permute(model, noise(model), (2, 4), rounds=3)
    assert len(found.gains) >= 4
    assert error(onnx.load(path), found.model.to_proto()) < 1e-4  # its own runs, other sizes


def test_what_is_said_to_be_kept_is_kept() -> None:
    """The gains, from the weights of the result."""
    model = Model.load(residual(16))
    found = permute(model, lambda name: np.abs(model.weight(name)), (2, 4), rounds=10)
    assert found.gains
    for gain in found.gains.values():
        total = after = 0.0
        for name in gain.weights:
            weight = np.abs(found.model.weight(name)).astype(np.float64)
            stripes = np.moveaxis(weight, 1, -1).reshape(-1, 4)
            total, after = total + weight.sum(), after + np.sort(stripes, axis=1)[:, 2:].sum()
        assert gain.total == pytest.approx(total)
        assert gain.after == pytest.approx(after)


def test_a_consumer_that_is_left_out_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: with one weight in the old order its group fails, and only that one."""
    plain = Writer._slice

    def forgetful(self: Writer, name: str, instances: list[Instance]) -> list:
        return [] if name == "block1.conv2.weight" else plain(self, name, instances)

    monkeypatch.setattr(Writer, "_slice", forgetful)
    proto = residual(16)
    _, found = reordered(proto)
    bad = {n for n, reason in found.refused.items() if "law 1 doesn't hold" in reason}
    assert bad == {
        "block1.conv1.weight:0",
        "stem.weight:0",
    }  # its inputs, and its outputs on the residual stream
    assert set(found.gains) == {"block2.conv1.weight:0"}
    assert error(proto, found.model.to_proto()) < 1e-5
    monkeypatch.setattr(Writer, "_slice", plain)
    assert not bad & reordered(proto)[1].refused.keys()


@pytest.mark.parametrize("number", range(len(NETS)))
def test_units_that_look_alike_may_change_places_and_others_break_a_relation(number: int) -> None:
    """Swaps of alike units keep every relation; of units of one group that aren't alike they don't."""
    analysis = analyse(Model.load(NETS[number]()), allow_inexact=True)
    space, swaps = analysis.coupling.space, 0
    for family in analysis.grouping.families:
        symmetry = symmetry_of(space, family)
        for numbers in family.numbers.values():
            for u, v in pairwise(numbers):
                source = np.arange(symmetry.alike.size)
                source[[u, v]] = v, u
                alike = symmetry.alike[u] == symmetry.alike[v]
                if alike:
                    assert broken(space, symmetry.orders(space, source)) == ""
                    swaps += 1
    assert swaps


def test_a_swap_over_the_border_of_a_concatenation_is_broken() -> None:
    analysis = analyse(Model.load(shuffled()), allow_inexact=True)
    coupling = analysis.coupling
    root = coupling.space.find(coupling.dims["concat_out"][1])
    order = np.arange(28)
    order[[3, 20]] = 20, 3
    assert "concatenation" in broken(coupling.space, {root: order})
    whole = coupling.space.find(coupling.dims["grouped_out"][1])
    assert "composite" in broken(coupling.space, {whole: np.roll(np.arange(16), 1)})


def test_the_model_itself_comes_back_where_nothing_is_gained() -> None:
    model = Model.load(chain())
    found = permute(model, lambda name: np.ones(model.info(name).dims), (2, 4), rounds=3)
    assert found.model is model
    assert set(found.refused.values()) == {"no order keeps more"}
    assert not permute(model, {}, (2, 4)).refused  # no weight has a say


def test_the_input_is_not_touched_and_the_result_is_the_same_each_time() -> None:
    proto = residual(16)
    model, found = reordered(proto)
    assert model.to_proto().SerializeToString() == Model.load(proto).to_proto().SerializeToString()
    assert found.model.serialize() == reordered(proto)[1].model.serialize()


def test_a_group_without_whole_stripes_says_so() -> None:
    _, found = reordered(chain(6), (4, 8))
    assert not found.gains
    _, found = reordered(nets.attention())
    assert all("whole stripes" in reason for reason in found.refused.values())
