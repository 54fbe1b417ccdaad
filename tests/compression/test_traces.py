"""What exporters write of their source beside nodes takes no room of a budget, and refusals say what is no weight."""

from __future__ import annotations

import re
from pathlib import Path

import onnx
import pytest
from onnx import helper, numpy_helper
from small_models import Builder, chain

from onnxprune.api import compress
from onnxprune.compression.traces import TRACES, without_traces
from onnxprune.errors import NothingToPrune
from onnxprune.graph.scopes import SCOPES
from onnxprune.model import Model


def exported() -> onnx.ModelProto:
    """A model as PyTorch exports it: more bytes of traces than of weights."""
    model = chain(16)
    for node in model.graph.node:
        for key in sorted(TRACES):
            node.metadata_props.add(key=key, value="line of source " * 100)
        node.metadata_props.add(key=SCOPES, value="['', 'layer']")
    return model


def test_a_budget_is_for_what_runs(tmp_path: Path) -> None:
    model = exported()
    nodes = len(model.graph.node)
    result = compress(model, tmp_path / "out.onnx", target="bytes=0.3")
    assert (tmp_path / "out.onnx").stat().st_size <= 0.3 * model.ByteSize()
    assert any(re.search(r"left out \([0-9]+,[0-9]+ bytes\)", note) for note in result.report.notes)
    kept = [p.key for n in onnx.load(tmp_path / "out.onnx").graph.node for p in n.metadata_props]
    assert set(kept) == {SCOPES}
    assert len(kept) >= nodes
    plain = compress(chain(16), target="bytes=0.6").report.notes
    assert not any("left out" in note for note in plain)


def test_bodies_have_none_either_and_the_model_stays() -> None:
    b = Builder()
    cond = b.constant("cond", numpy_helper.to_array(helper.make_tensor("c", onnx.TensorProto.BOOL, [], [1])))
    bodies = []
    for name in ("then", "other"):
        inner = helper.make_node("Neg", ["x"], [name])
        inner.metadata_props.add(key="pkg.torch.onnx.stack_trace", value="line of source")
        value = helper.make_tensor_value_info(name, 1, ["n", 4])
        bodies.append(helper.make_graph([inner], name, [], [value]))
    b.op("If", [cond], "if", then_branch=bodies[0], else_branch=bodies[1])
    model = Model.load(b.model({"x": ["n", 4]}, "if_out"))
    bare, took = without_traces(model)
    assert b"line of source" in model.serialize()
    assert b"line of source" not in bare.serialize()
    assert took > 2 * len("line of source")
    assert without_traces(bare) == (bare, 0)


def test_a_refusal_says_what_is_no_weight() -> None:
    with pytest.raises(
        NothingToPrune, match=r"takes [0-9,]+ bytes, [0-9,]+ of them for all but these weights"
    ):
        compress(chain(16), target="bytes=0.05", to="zst")
