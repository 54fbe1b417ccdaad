"""The configuration of onnxruntime-genai beside a model follows a cut, into the result's folder alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxprune.journey.genai import NAME, write_config
from onnxprune.model import Model

SIZES = {"head_size": 8, "hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2}


def decoder(
    folder: Path, heads: Sequence[int], groups: Sequence[int], width: int = 32, name: str = "in.onnx"
) -> Model:
    """A file with what the configuration speaks of; it isn't run."""
    caches = [
        helper.make_tensor_value_info(f"past.{n}.{what}", TensorProto.FLOAT, ["N", size, "P", 8])
        for n, size in enumerate(groups) for what in ("key", "value")
    ]  # fmt: skip
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, ["N", "T"])
    table = numpy_helper.from_array(np.zeros((10, width), np.float32), "table")
    nodes = [helper.make_node("Gather", ["table", "ids"], ["y"])]
    for n, count in enumerate(heads):
        nodes.append(
            helper.make_node(
                "GroupQueryAttention", ["y", "", "", f"past.{n}.key", f"past.{n}.value", "", ""], [f"y{n}"],
                domain="com.microsoft", num_heads=count, kv_num_heads=groups[n],
            )
        )  # fmt: skip
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", "T", width])
    graph = helper.make_graph(nodes, "g", [ids, *caches], [out], [table])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    folder.mkdir(exist_ok=True)
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), folder / name)
    return Model.load(folder / name)


def config(folder: Path, filename: str = "in.onnx", **more: Any) -> str:
    """Write a configuration."""
    inputs = {"past_key_names": "past.%d.key", "past_value_names": "past.%d.value"}
    values = {
        "model": {"decoder": {"filename": filename, **SIZES, "inputs": inputs, **more}, "vocab_size": 10},
        "search": {"top_p": 1.0},
    }
    text = json.dumps(values, indent=4)
    folder.mkdir(exist_ok=True)
    (folder / NAME).write_text(text)
    return text


def test_the_result_gets_a_copy_with_its_sizes(tmp_path: Path) -> None:
    before = decoder(tmp_path / "a", [4, 4], [2, 2])
    text = config(tmp_path / "a")
    after = decoder(tmp_path / "b", [2, 2], [1, 1], width=24, name="out.onnx")
    said = write_config(before, after, tmp_path / "b" / "out.onnx")
    old, new = json.loads(text), json.loads((tmp_path / "b" / NAME).read_text())
    assert new["model"]["decoder"] == old["model"]["decoder"] | {
        "filename": "out.onnx", "hidden_size": 24, "num_attention_heads": 2, "num_key_value_heads": 1
    }  # fmt: skip
    assert new["search"] == old["search"]
    assert list(new["model"]["decoder"]) == list(old["model"]["decoder"])
    for change in ("num_key_value_heads 2 -> 1", "num_attention_heads 4 -> 2", "hidden_size 32 -> 24"):
        assert change in said
    assert "head_size" not in said
    assert (tmp_path / "a" / NAME).read_text() == text
    again = write_config(before, after, tmp_path / "b" / "out.onnx")
    assert again == said


def test_the_inputs_own_folder_and_other_models_configurations_stay(tmp_path: Path) -> None:
    before = decoder(tmp_path / "a", [4], [2])
    text = config(tmp_path / "a")
    after = decoder(tmp_path / "b", [2], [1], name="out.onnx")
    assert write_config(before, after, tmp_path / "a" / "out.onnx") == ""
    assert (tmp_path / "a" / NAME).read_text() == text
    other = config(tmp_path / "b", "another.onnx")
    assert "is of another model and stays" in write_config(before, after, tmp_path / "b" / "out.onnx")
    assert (tmp_path / "b" / NAME).read_text() == other


@pytest.mark.parametrize("what", ["none", "of another model", "no JSON", "a list", "no decoder"])
def test_without_one_of_this_model_nothing_is_written(what: str, tmp_path: Path) -> None:
    before = decoder(tmp_path / "a", [4], [2])
    if what == "of another model":
        config(tmp_path / "a", "another.onnx")
    elif what != "none":
        text = {"no JSON": "{", "a list": "[1]", "no decoder": '{"model": 3}'}[what]
        (tmp_path / "a" / NAME).write_text(text)
    after = decoder(tmp_path / "b", [2], [1], name="out.onnx")
    assert write_config(before, after, tmp_path / "b" / "out.onnx") == ""
    assert not (tmp_path / "b" / NAME).exists()


def test_layers_of_different_heads_are_said_and_not_written(tmp_path: Path) -> None:
    before = decoder(tmp_path / "a", [4, 4], [2, 2])
    config(tmp_path / "a")
    after = decoder(tmp_path / "b", [4, 2], [2, 1], name="out.onnx")
    said = write_config(before, after, tmp_path / "b" / "out.onnx")
    assert said == f"{NAME} wasn't written: num_key_value_heads is 1 or 2, by layer, which it can't say"
    assert not (tmp_path / "b" / NAME).exists()


def test_a_layer_that_went_with_its_cache_is_said(tmp_path: Path) -> None:
    """The configuration numbers layers without gaps."""
    before = decoder(tmp_path / "a", [4, 4], [2, 2])
    config(tmp_path / "a")
    after = decoder(tmp_path / "b", [4], [2], name="out.onnx")
    said = write_config(before, after, tmp_path / "b" / "out.onnx")
    assert said == f"{NAME} wasn't written: 'past.1.key' went with its layer, which it can't say"
    assert not (tmp_path / "b" / NAME).exists()
