"""The estimate of peak memory, against sums made by hand and against a slow simulation."""

from functools import partial
from math import prod

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from small_models import MODELS, chain

import onnxprune
from onnxprune.graph.analysis import Analysis, analyse
from onnxprune.graph.memory import (
    MemoryStep,
    Peak,
    activations,
    element_bytes,
    moments,
    peak,
    peak_bytes,
    schedule,
    weight_bytes,
)
from onnxprune.model import Model


def test_a_net_counted_by_hand() -> None:
    """x (3 x 8 x 8), two convolutions of 8 channels with BatchNorm and Relu in place, pool, classifier of 10."""
    analysis = analyse(Model.load(chain()))
    image, wide = 3 * 64 * 4, 8 * 64 * 4
    weights = 4 * (8 * 3 * 9 + 8 + 8 * 8 * 9 + 8 + 2 * 4 * 8 + 10 * 8 + 10)
    assert weight_bytes(analysis) == weights
    # at the second convolution: x, what it reads, what it writes
    assert peak_bytes(analysis) == weights + image + 2 * wide
    plan, names = activations(analysis)
    assert names[plan.peak(lambda n: prod(analysis.tracer.types[n][1] or ())).step] == "conv2"


def test_a_cut_net_has_the_peak_of_its_own_analysis() -> None:
    for name, make in MODELS.items():
        result = onnxprune.prune(make(), ratio=0.5, align=None)
        again = peak_bytes(analyse(Model.load(result.model)))
        # shared shapes and vectors may have become several small ones
        assert result.report.after.memory == pytest.approx(again, rel=0 if name == "chain" else 0.01), name
        assert result.report.before.memory is not None
        assert again < result.report.before.memory, name


def test_rules() -> None:
    sizes = {"x": 8, "a": 32, "b": 32, "c": 16, "y": 4}
    apart = [MemoryStep(("x",), ("a",)), MemoryStep(("a",), ("b",)), MemoryStep(("b", "w"), ("y",))]
    assert peak(apart, sizes, ["x"], ["y"]) == Peak(8 + 64, 1)
    over = [apart[0], MemoryStep(("a",), ("b",), over=("a",)), apart[2]]
    assert peak(over, sizes, ["x"], ["y"]) == Peak(8 + 32 + 4, 2)
    # what is read again isn't overwritten, nor is the caller's input, nor an output
    again = [apart[0], MemoryStep(("a",), ("b",), over=("a",)), MemoryStep(("a", "b"), ("y",))]
    assert peak(again, sizes, ["x"], ["y"]) == Peak(8 + 64 + 4, 2)
    assert peak([MemoryStep(("x",), ("c",), over=("x",))], sizes, ["x"], ["c"]) == Peak(8 + 16, 0)
    assert peak(over, sizes, ["x"], ["y", "a"]) == Peak(8 + 64 + 4, 2)
    # a view keeps alive what it shows, and takes nothing
    view = [
        apart[0],
        MemoryStep(("a",), ("b",), shows="a"),
        MemoryStep((), ("c",)),
        MemoryStep(("b", "c"), ("y",)),
    ]
    assert peak(view, sizes, ["x"], ["y"]) == Peak(8 + 32 + 16 + 4, 3)
    assert peak(
        [MemoryStep(("w",), ("a",), shows="w"), MemoryStep(("a",), ("y",))], sizes, [], ["y"]
    ) == Peak(4, 1)
    assert peak([], sizes, ["x", "x"], ["x"]) == Peak(8, -1)


@st.composite
def nets(draw: st.DrawFn) -> tuple[list[MemoryStep], dict[str, float], list[str]]:
    """Nodes that read what is there, some in place, some as views."""
    names, steps = ["x"], []
    for n in range(draw(st.integers(1, 12))):
        reads = tuple(draw(st.lists(st.sampled_from(names), min_size=1, max_size=3, unique=True)))
        way = draw(st.sampled_from(["own", "over", "view"]))
        shows, over = (reads[0], ()) if way == "view" else ("", reads if way == "over" else ())
        steps.append(MemoryStep(reads, (f"t{n}",), shows, over))
        names.append(f"t{n}")
    sizes = {name: float(draw(st.integers(1, 50))) for name in names}
    outputs = draw(st.lists(st.sampled_from(names), min_size=1, max_size=2, unique=True))
    return steps, sizes, outputs


def slow(steps: list[MemoryStep], sizes: dict[str, float], outputs: list[str]) -> float:
    """Follow the rules tensor by tensor: a buffer is there as long as any tensor in it is needed later."""
    inside = {"x": "x"}
    most = sizes["x"]

    def needed(name: str, after: int) -> bool:
        return name in outputs or any(name in step.reads for step in steps[after + 1 :])

    for number, step in enumerate(steps):
        before = {inside[n] for n in inside if needed(n, number - 1) or n == "x"}
        out = step.writes[0]
        free = [n for n in step.over if inside[n] != "x"]
        free = [n for n in free if not any(needed(m, number) for m in inside if inside[m] == inside[n])]
        inside[out] = inside[step.shows] if step.shows else inside[free[0]] if free else out
        most = max(most, sum(sizes[b] for b in before | {inside[out]}))
    return most


@given(nets())
@settings(max_examples=200, deadline=None)
def test_equals_the_slow_way(net: tuple[list[MemoryStep], dict[str, float], list[str]]) -> None:
    steps, sizes, outputs = net
    assert peak(steps, sizes, ["x"], outputs).bytes == slow(steps, sizes, outputs)


@given(nets())
@settings(max_examples=100, deadline=None)
def test_a_schedule_takes_and_frees_each_buffer_once(
    net: tuple[list[MemoryStep], dict[str, float], list[str]],
) -> None:
    steps, _, outputs = net
    plan = schedule(steps, ["x"], outputs)
    freed = [name for names in plan.freed for name in names]
    assert len(plan.buffers) == len(set(plan.buffers))
    assert len(freed) == len(set(freed))
    assert set(freed) < set(plan.buffers)  # the input stays


def test_moments_give_the_peak_at_any_width() -> None:
    """A budget asks for widths that no cut has yet."""
    for name, make in MODELS.items():
        analysis = analyse(Model.load(make()))
        plan, _ = activations(analysis)
        for share in (1.0, 0.5, 0.3):
            size = partial(narrowed, analysis, share)
            assert max(sum(map(size, names)) for names in moments(analysis)) == plan.peak(size).bytes, name


def narrowed(analysis: Analysis, share: float, tensor: str) -> float:
    """Return the bytes of a tensor when all of its longer axes have lost their part."""
    sizes = [analysis.coupling.space.sizes[d] for d in analysis.coupling.dims[tensor]]
    return prod(n * (share if n > 4 else 1) for n in sizes) * element_bytes(analysis, tensor)


def test_tensors_of_unknown_type_are_left_out() -> None:
    analysis = analyse(Model.load(chain()))
    assert any("conv2_out" in names for names in moments(analysis))
    del analysis.tracer.types["conv2_out"]
    assert not any("conv2_out" in names for names in moments(analysis))
    assert peak_bytes(analysis) < peak_bytes(analyse(Model.load(chain())))


@pytest.mark.parametrize("training", [0, 1])
def test_what_is_in_training_overwrites_nothing(training: int) -> None:
    """A batch norm that takes its own statistics reads an element after it would have been overwritten."""
    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node(
            "BatchNormalization", ["a", *"sbmv"], ["c", "p", "q"][: 1 + 2 * training], training_mode=training
        ),
        helper.make_node("Relu", ["c"], ["y"]),
    ]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [2, 3, 4, 4]) for n in "xy"]
    weights = [numpy_helper.from_array(np.ones(3, np.float32), n) for n in "sbmv"]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], weights)
    model = Model.load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    size = 4 * 2 * 3 * 4 * 4
    assert peak_bytes(analyse(model)) == (2 + training) * size + 2 * training * 12 + 4 * 12
