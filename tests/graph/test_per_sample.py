"""MACs and memory of a dynamic batch are those of one sample."""

from __future__ import annotations

from collections.abc import Callable

import onnx
import pytest
from folded_heads import Folded
from size_models import Sized
from small_models import attention, chain

import onnxprune
from onnxprune.graph.analysis import Analysis, analyse
from onnxprune.graph.memory import peak_bytes
from onnxprune.graph.size import count_macs, macs_of_run
from onnxprune.model import Model


def with_batch(model: onnx.ModelProto, batch: int | str, axes: dict[str, int]) -> onnx.ModelProto:
    """Return a model whose batch, along these axes of its inputs, is called so or has this size."""
    changed = onnx.ModelProto.FromString(model.SerializeToString())
    del changed.graph.value_info[:]
    for value in changed.graph.input:
        dim = value.type.tensor_type.shape.dim[axes[value.name]]
        dim.Clear()
        if isinstance(batch, str):
            dim.dim_param = batch
        else:
            dim.dim_value = batch
    for value in changed.graph.output:
        value.type.tensor_type.ClearField("shape")
    return changed


def time_first() -> onnx.ModelProto:
    """A sequence with time in front, and a state."""
    b = Sized()
    y = b.op("MatMul", [b.op("Add", ["x", "h"], "sum"), b.weight("w", 16, 8)], "wide")
    y = b.op("MatMul", [b.op("Relu", [y], "relu"), b.weight("v", 8, 4)], "y")
    return b.model({"x": ["T", "B", 16], "h": ["B", 16]}, y)


def beside_weights() -> onnx.ModelProto:
    """A product of weights alone, which no batch multiplies, beside one of samples."""
    b = Sized()
    table = b.op("MatMul", ["table", b.weight("w", 16, 16)], "projected")
    b.weight("table", 30, 16)
    y = b.op("MatMul", ["x", b.op("Transpose", [table], "turned", perm=[1, 0])], "y")
    return b.model({"x": ["N", 16]}, y)


CASES: dict[str, tuple[Callable[[], onnx.ModelProto], dict[str, int]]] = {
    "pictures": (chain, {"x": 0}),
    "heads": (lambda: attention(seq=9), {"x": 0}),
    "heads in the batch": (lambda: Folded().model(), {"x": 0}),
    "time first": (time_first, {"x": 1, "h": 0}),
    "products of weights": (beside_weights, {"x": 0}),
}


def figures(analysis: Analysis) -> tuple[int, int]:
    return count_macs(analysis.coupling), peak_bytes(analysis)


@pytest.mark.parametrize("name", CASES)
def test_figures_are_those_of_a_batch_of_one(name: str) -> None:
    make, axes = CASES[name]
    free = analyse(Model.load(with_batch(make(), "batch", axes)))
    shapes = {n: tuple(1 if a == axes[n] else s for a, s in enumerate(own)) for n, own in free.inputs.items()}
    one = analyse(Model.load(with_batch(make(), 1, axes)), input_shapes=shapes)
    several = {n: tuple(5 if a == axes[n] else s for a, s in enumerate(own)) for n, own in shapes.items()}
    more = analyse(Model.load(with_batch(make(), "batch", axes)), input_shapes=several)
    assert figures(free) == figures(one) == figures(more)
    samples = [a.coupling.space.samples for a in (free, one, more)]
    assert samples == [next(iter(free.inputs.values()))[next(iter(axes.values()))], 1, 5]
    assert macs_of_run(more.coupling) > macs_of_run(one.coupling) == count_macs(one.coupling)


def test_a_batch_that_is_fixed_counts_as_it_is() -> None:
    one, four = (analyse(Model.load(with_batch(chain(), batch, {"x": 0}))) for batch in (1, 4))
    assert count_macs(four.coupling) == 4 * count_macs(one.coupling)


def test_a_budget_that_one_sample_meets_cuts_nothing() -> None:
    model = with_batch(chain(), "N", {"x": 0})
    whole = onnxprune.inspect(model).size
    result = onnxprune.prune(model, target=f"macs={whole.macs / 1e3}k", align=None)
    assert result.report.after.macs == whole.macs
    assert result.report.to_json()["samples"] == 2
    assert "MACs and peak memory are of one of 2 samples" in "\n".join(result.report.lines())
    for kind, unit in (("macs", "k"), ("memory", "KB")):
        before = getattr(whole, kind)
        after = getattr(
            onnxprune.prune(model, target=f"{kind}={0.7 * before / 1e3}{unit}", align=None).report.after, kind
        )
        assert 0.4 * before < after <= 0.7 * before, kind
