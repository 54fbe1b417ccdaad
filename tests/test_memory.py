"""The estimate of peak memory, against sums made by hand and against a slow simulation."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import MODELS, chain

import onnxprune
from onnxprune.analysis import Analysis, analyse
from onnxprune.memory import Memory, Peak, Step, memory_of, peak, weight_bytes
from onnxprune.model import Model


def memory(analysis: Analysis) -> Memory:
    outputs = [value.name for value in analysis.model.proto.graph.output]
    return Memory.of(analysis.coupling, analysis.tracer.types, outputs)


def test_a_net_counted_by_hand() -> None:
    """x (3 x 8 x 8), two convolutions of 8 channels with BatchNorm and Relu in place, pool, classifier of 10."""
    analysis = analyse(Model.load(chain()))
    found = memory_of(memory(analysis), analysis.coupling, weight_bytes(analysis.model))
    image, wide = 3 * 64 * 4, 8 * 64 * 4
    assert (
        found["activations"] == image + 2 * wide
    )  # the second convolution: x, what it reads, what it writes
    assert found["at"] == "conv2"
    weights = 4 * (8 * 3 * 9 + 8 + 8 * 8 * 9 + 8 + 2 * 4 * 8 + 10 * 8 + 10)
    assert (found["weights"], found["bytes"]) == (weights, weights + image + 2 * wide)


def test_a_cut_net_has_the_peak_of_its_own_analysis() -> None:
    for name, make in MODELS.items():
        model = make()
        result = onnxprune.prune(model, ratio=0.5, align=None)
        small = analyse(Model.load(result.model))
        again = memory_of(memory(small), small.coupling, weight_bytes(small.model))
        assert result.report.after.memory == again["bytes"], name
        assert result.report.before.memory is not None
        assert again["bytes"] < result.report.before.memory, name


def test_rules() -> None:
    sizes = {"x": 8, "a": 32, "b": 32, "c": 16, "y": 4}
    apart = [Step(("x",), ("a",)), Step(("a",), ("b",)), Step(("b", "w"), ("y",))]
    assert peak(apart, sizes, ["x"], ["y"]) == Peak(8 + 64, 1)
    over = [apart[0], Step(("a",), ("b",), over=("a",)), apart[2]]
    assert peak(over, sizes, ["x"], ["y"]) == Peak(8 + 32 + 4, 2)
    # what is read again isn't overwritten, nor is the caller's input, nor an output
    again = [apart[0], Step(("a",), ("b",), over=("a",)), Step(("a", "b"), ("y",))]
    assert peak(again, sizes, ["x"], ["y"]) == Peak(8 + 64 + 4, 2)
    assert peak([Step(("x",), ("c",), over=("x",))], sizes, ["x"], ["c"]) == Peak(8 + 16, 0)
    assert peak(over, sizes, ["x"], ["y", "a"]) == Peak(8 + 64 + 4, 2)
    # a view keeps alive what it shows, and takes nothing
    view = [apart[0], Step(("a",), ("b",), shows="a"), Step((), ("c",)), Step(("b", "c"), ("y",))]
    assert peak(view, sizes, ["x"], ["y"]) == Peak(8 + 32 + 16 + 4, 3)
    assert peak([Step(("w",), ("a",), shows="w"), Step(("a",), ("y",))], sizes, [], ["y"]) == Peak(4, 1)
    assert peak([], sizes, ["x", "x"], ["x"]) == Peak(8, -1)


@st.composite
def nets(draw: st.DrawFn) -> tuple[list[Step], dict[str, float], list[str]]:
    """Nodes that read what is there, some in place, some as views."""
    names, steps = ["x"], []
    for n in range(draw(st.integers(1, 12))):
        reads = tuple(draw(st.lists(st.sampled_from(names), min_size=1, max_size=3, unique=True)))
        way = draw(st.sampled_from(["own", "over", "view"]))
        shows, over = (reads[0], ()) if way == "view" else ("", reads if way == "over" else ())
        steps.append(Step(reads, (f"t{n}",), shows, over))
        names.append(f"t{n}")
    sizes = {name: float(draw(st.integers(1, 50))) for name in names}
    outputs = draw(st.lists(st.sampled_from(names), min_size=1, max_size=2, unique=True))
    return steps, sizes, outputs


def slow(steps: list[Step], sizes: dict[str, float], outputs: list[str]) -> float:
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
def test_equals_the_slow_way(net: tuple[list[Step], dict[str, float], list[str]]) -> None:
    steps, sizes, outputs = net
    assert peak(steps, sizes, ["x"], outputs).bytes == slow(steps, sizes, outputs)


def test_lengths_may_be_any_number() -> None:
    """A budget asks for widths that no cut has yet."""
    analysis = analyse(Model.load(chain()))
    found, sizes = memory(analysis), analysis.coupling.space.sizes
    whole = found.peak(lambda dim: sizes[dim]).bytes
    assert found.peak(lambda dim: 0.5 * sizes[dim]).bytes == pytest.approx(whole / 16)  # four axes


def test_unknown_tensors_are_counted_as_unknown() -> None:
    analysis = analyse(Model.load(chain()))
    full = memory(analysis)
    known = {name: typed for name, typed in analysis.tracer.types.items() if name != "conv2_out"}
    less = Memory.of(analysis.coupling, known, ["fc_out"])
    assert (full.unknown, less.unknown) == (0, 1)
    assert np.isfinite(less.peak(lambda dim: 1).bytes)
