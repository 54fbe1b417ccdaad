"""What is said of a norm that was rewritten, and stays whole all the same: in the words of the model that was given."""

from __future__ import annotations

from collections.abc import Iterable

import onnx
from small_models import Builder

import onnxprune

WIDTH = 16


def behind_a_deviation() -> onnx.ModelProto:
    """One width that opens, and one that a norm averages over where a mean was taken off before."""
    b = Builder(3)
    x = b.op("Relu", [b.linear("x", "first", 6, WIDTH)], "act")
    x = b.linear(norm(b, x, "one"), "second", WIDTH, WIDTH)
    far = b.op("Sub", [b.op("ReduceMean", [x], "mean", axes=[-1]), x], "far")
    return b.model({"x": ["N", 3, 6]}, b.linear(norm(b, far, "two"), "head", WIDTH, 5))


def norm(b: Builder, x: str, name: str) -> str:
    weights = [b.weight(f"{name}.w", WIDTH, low=0.5), b.weight(f"{name}.b", WIDTH)]
    return b.op("LayerNormalization", [x, *weights], name, axis=-1)


def names(model: onnx.ModelProto) -> set[str]:
    made = {name for node in model.graph.node for name in (node.name, *node.output)}
    return made | {t.name for t in model.graph.initializer} | {"x"}


def named(steps: Iterable[str]) -> set[str]:
    """Nodes ("Op 'name'") and tensors ("name:axis") of paths."""
    return {step.split("'")[1] if "'" in step else step.rpartition(":")[0] for step in steps}


def test_reasons_and_paths_name_what_the_model_has() -> None:
    model = behind_a_deviation()
    report = onnxprune.prune(model, ratio=0.5, align=None).report
    assert {c.tensor for c in report.cuts} >= {"first.weight", "one.w"}
    for frozen in (report.frozen, onnxprune.inspect(model).frozen):
        assert {(f.tensor, f.axis) for f in frozen} >= {("second.weight", 1), ("two.w", 0)}
        assert {f.tensor for f in frozen} <= names(model)
    (why,) = onnxprune.explain(model, "second.weight", 1).axes[0].frozen
    assert why["reason"] == "averaged over (LayerNormalization 'two')"
    assert why["path"][-1] == "LayerNormalization 'two'"
    assert len(why["path"]) == len(set(why["path"]))
    assert named(why["path"]) <= names(model)
    (group,) = onnxprune.explain(model, "first.weight", 1).axes[0].groups
    assert {line["tensor"] for line in group["coupled"]} <= names(model)
    steps = {step for line in group["coupled"] for step in line["path"]}
    assert "LayerNormalization 'one'" in steps
    assert named(steps) <= names(model)
