"""Passes of onnx-ir: the same result as by the front door, in a chain with others."""

import onnx
import onnx_ir
import onnx_ir.passes
import pytest
from small_models import chain

import onnxprune
from onnxprune.errors import UsageError
from onnxprune.integrations.ir import PrunePass, SparsifyPass


def test_a_pass_gives_what_the_front_door_gives() -> None:
    one = PrunePass(ratio=0.5, align=None)
    model = onnx_ir.from_proto(chain())
    result = one(model)
    assert result.modified
    right = onnxprune.prune(chain(), ratio=0.5, align=None)
    assert one.report.after.parameters == right.report.after.parameters
    weights = {t.name: onnx.numpy_helper.to_array(t) for t in right.model.graph.initializer}
    assert {n: tuple(v.shape) for n, v in result.model.graph.initializers.items()} == {
        n: w.shape for n, w in weights.items()
    }
    assert tuple(model.graph.initializers["fc.weight"].shape) == (10, 8)  # the given one is as it was


def test_passes_make_a_chain() -> None:
    both = onnx_ir.passes.Sequential(
        PrunePass(onnxprune.Options(ratio=0.5), align=None),
        SparsifyPass(pattern="unstructured", sparsity=0.5),
    )
    model = both(onnx_ir.from_proto(chain())).model
    weight = model.graph.initializers["conv2.weight"].const_value.numpy()
    assert weight.shape == (4, 4, 3, 3)
    assert (weight == 0).mean() == pytest.approx(0.5, abs=0.05)


def test_what_is_asked_wrongly_is_refused_as_ever() -> None:
    with pytest.raises((UsageError, onnx_ir.passes.PassError), match=r"nonsense|ratio"):
        PrunePass(nonsense=1)(onnx_ir.from_proto(chain()))


def test_a_pass_that_changes_nothing_says_so() -> None:
    assert not PrunePass(ratio=0)(onnx_ir.from_proto(chain())).modified


def test_a_field_that_there_is_not_is_refused_at_once() -> None:
    for kind in (PrunePass, SparsifyPass):
        with pytest.raises(UsageError, match="ratoi"):
            kind(ratoi=0.5)
