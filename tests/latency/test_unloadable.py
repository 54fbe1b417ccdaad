"""What onnxruntime has no kernels for can't be timed and can't be verified, and no inputs change that."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from budgets.test_budgets import wide

import onnxprune
from onnxprune.api.several import profile
from onnxprune.errors import UsageError, VerificationError
from onnxprune.model import Model
from onnxprune.runtime.session import Unloadable, open_session


def test_a_model_that_is_not_loaded_is_not_asked_for_other_inputs(tmp_path: Path) -> None:
    """No inputs give onnxruntime a kernel: profile and prune say so alike."""
    model = wide()
    odd = onnx.helper.make_node("Odd", [model.graph.output[0].name], ["odd"], domain="nobody.knows")
    model.graph.node.append(odd)
    model.graph.output[0].name = "odd"
    model.opset_import.append(onnx.helper.make_opsetid("nobody.knows", 1))
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(UsageError, match=r"Odd.*no inputs change that: give a --provider") as timed:
        profile(tmp_path / "m.onnx")
    assert "--input-shape" not in str(timed.value)
    with pytest.raises(VerificationError, match=r"Odd.*no inputs change that"):
        onnxprune.prune(tmp_path / "m.onnx", ratio=0.5)


def test_what_onnxruntime_says_ends_in_no_full_stop_of_its_own() -> None:
    """It is put into other sentences, which end in theirs."""
    model = wide()
    for node in model.graph.node:
        node.name = "same"
    with pytest.raises(Unloadable, match=r"two nodes with same node name.*[^.]$"):
        open_session(Model.load(model))
