"""Groups are called by modules where an exporter has only numbered the weights."""

from dataclasses import replace

import onnx
import pytest
from onnx import helper
from small_models import Builder

import onnxprune
from onnxprune.graph.scopes import is_anonymous, module_of
from onnxprune.pruning.plan import Plan

SCOPES = "['', 'model', 'model.mlp', 'model.mlp.up', 'linear']"


def numbered(node: str = "/model/mlp/up/MatMul", scopes: str = "") -> onnx.ModelProto:
    """Two layers whose weights are called by numbers."""
    b = Builder(5)
    x = b.op("MatMul", ["x", b.weight("onnx::MatMul_12", 8, 16)], node)
    y = b.op("MatMul", [b.op("Relu", [x], "act"), b.weight("val_13", 16, 4)], "")
    if scopes:
        entry = b.nodes[0].metadata_props.add()
        entry.key, entry.value = "pkg.torch.onnx.name_scopes", scopes
    return b.model({"x": [1, 8]}, y)


@pytest.mark.parametrize(
    ("model", "name"),
    [
        (numbered(), "model.mlp.up:1"),
        (numbered("node_linear", SCOPES), "model.mlp.up:1"),
        (numbered("MatMul_7"), "onnx::MatMul_12:1"),
        (numbered("node_linear", "not a list ["), "onnx::MatMul_12:1"),
    ],
    ids=["path", "metadata", "nothing", "nonsense"],
)
def test_a_group_has_the_name_of_its_module(model: onnx.ModelProto, name: str) -> None:
    assert [g.name for g in onnxprune.inspect(model).groups] == [name]


@pytest.mark.parametrize("name", ["onnx::MatMul_12", "val_3", "17", "onnx::Conv_5_quantized"])
def test_numbers_are_no_names(name: str) -> None:
    assert is_anonymous(name)


@pytest.mark.parametrize("name", ["fc1", "conv1.weight", "w2", "model.layers.0.mlp.up_proj.MatMul.weight_Q4"])
def test_names_stay(name: str) -> None:
    assert not is_anonymous(name)


def test_a_name_without_a_path_says_no_module() -> None:
    assert module_of("MatMul_7", helper.make_node("MatMul", ["a", "b"], ["c"])) == ""


def test_plans_that_call_groups_by_weights_can_still_be_applied() -> None:
    model = numbered()
    plan = onnxprune.plan(model, ratio=0.5, align=None)
    (group,) = plan.groups
    older = replace(plan, groups=(replace(group, name="onnx::MatMul_12:1"),))
    cut = [onnxprune.apply(model, Plan.loads(p.dumps())).model.SerializeToString() for p in (plan, older)]
    assert cut[0] == cut[1]
