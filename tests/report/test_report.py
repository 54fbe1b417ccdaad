"""Reports, tables, and the pages that are written from the code."""

import doctest
import importlib
import importlib.util
import io
import json
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from nets import build, node
from small_models import MODELS, Builder, chain

import onnxprune
from onnxprune.errors import OutputError
from onnxprune.graph.size import count_parameters
from onnxprune.model import Model
from onnxprune.report import record, table

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", MODELS)
def test_cuts_say_what_is_gone_from_the_original(name: str) -> None:
    """Taking the listed positions out of the original's weights gives the result's weights, bit for bit."""
    model = MODELS[name]()
    result = onnxprune.prune(model, ratio=0.5, align=None, center_norms=False)  # the scales of others are new
    weights = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    for cut in result.report.cuts:
        assert list(cut.removed) == sorted(set(cut.removed))
    for after in result.model.graph.initializer:
        if after.name not in weights:
            continue
        expected = weights[after.name]
        index = [np.arange(size) for size in expected.shape]
        for cut in result.report.cuts:
            if cut.tensor == after.name:
                index[cut.axis] = np.setdiff1d(index[cut.axis], cut.removed)
        if expected.dtype == np.float32:
            assert np.array_equal(onnx.numpy_helper.to_array(after), expected[np.ix_(*index)])


def test_numbers_are_right() -> None:
    result = onnxprune.prune(chain(), ratio=0.5, align=None)
    found = result.report
    # two 3x3 convolutions on 8 x 8 positions, and a classifier
    assert found.before.macs == 64 * 9 * (3 * 8 + 8 * 8) + 80
    assert found.after.macs == 64 * 9 * (3 * 4 + 4 * 4) + 40
    floats = [t for t in result.model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT]
    assert found.after.parameters == sum(int(np.prod(t.dims)) for t in floats)


def test_indices_and_shapes_are_no_parameters() -> None:
    """Floats and quantised integers are."""
    weights = {
        "w": np.ones((3, 4), np.float32),
        "q": np.ones(5, np.int8),
        "at": np.zeros(7, np.int64),
        "on": np.ones(11, bool),
    }
    model = build([node("MatMul", "x w", "y")], weights, (2, 3))
    assert count_parameters(Model.load(model)) == 12 + 5


def test_json_has_what_is_promised() -> None:
    found = onnxprune.prune(chain(), ratio=0.5, align=None, seed=3).report
    values = json.loads(found.dumps())
    for name in ("parameters", "macs", "bytes"):
        assert values[name]["before"] > values[name]["after"] > 0
    assert set(values["versions"]) == {"onnxprune", "onnx", "onnxruntime", "numpy", "python"}
    assert values["seed"] == values["options"]["seed"] == 3
    assert values["law1"]["inputs"] >= 1
    group = {"name", "kind", "units", "removed", "params", "macs", "inexact", "component", "tensors"}
    assert values["groups"][0].keys() == group
    assert values["input_shapes"] == {"x": [1, 3, 8, 8]}
    assert all(seconds >= 0 for seconds in values["seconds"].values())


def shared_bias() -> onnx.ModelProto:
    """One bias for two convolutions of separate branches, as exporters that remove equal initializers write it."""
    b = Builder(4)
    bias = b.weight("bias", 8)
    outs = []
    for name in ("left", "right"):
        w, last = b.weight(f"{name}.weight", 8, 3, 3, 3), b.weight(f"{name}.last", 4, 8, 1, 1)
        x = b.op("Relu", [b.op("Conv", ["x", w, bias], name)], f"{name}.relu")
        outs.append(b.op("Conv", [x, last], f"{name}.head"))
    return b.model({"x": [1, 3, 8, 8]}, b.op("Add", outs, "sum"))


def test_shared_vectors_with_different_cuts_get_copies() -> None:
    result = onnxprune.prune(shared_bias(), ratio=0.5, align=None)
    removed = {c.tensor: set(c.removed) for c in result.report.cuts if c.axis == 0}
    assert removed["left.weight"] != removed["right.weight"]
    both = removed["left.weight"] & removed["right.weight"]
    assert removed.get("bias", set()) == both
    copies = {tuple(c["nodes"]): c for c in result.report.copies}
    assert set(copies[("left",)]["removed"]) == removed["left.weight"]
    assert set(copies[("right",)]["removed"]) == removed["right.weight"]
    assert {c["tensor"] for c in result.report.copies} == {"bias"}
    names = {t.name for t in result.model.graph.initializer}
    assert {c["copy"] for c in result.report.copies} <= names


def test_table_on_a_terminal_and_in_a_pipe() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    head, rows = ["", "before", "after"], [["[MACs]", "12", "6"], ["parameters", "1,000", "500"]]
    pipe, terminal = io.StringIO(), Terminal()
    table.show(head, rows, stream=pipe)
    assert (
        pipe.getvalue() == "            before  after\n[MACs]          12      6\nparameters   1,000    500\n"
    )
    table.show(head, rows, stream=terminal, title="Sizes")
    assert "[MACs]" in terminal.getvalue()
    assert "Sizes" in terminal.getvalue()


def test_text_is_written_complete_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "r.json"
    path.write_text("old")

    def fail(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", fail)
        with pytest.raises(OutputError, match="Permission denied"):
            record.write_text(path, "new")
    assert [p.name for p in tmp_path.iterdir()] == ["r.json"]
    assert path.read_text() == "old"
    record.write_text(path, "new")
    assert path.read_text() == "new"


@pytest.mark.parametrize(
    "name",
    [
        "graph.reasons",
        "report.record",
        "report.table",
        "options.pruning",
        "journey.passes",
        "calibration.given",
    ],
)
def test_examples_in_docstrings(name: str) -> None:
    found = doctest.testmod(importlib.import_module(f"onnxprune.{name}"))
    assert found.failed == 0
    assert found.attempted > 0 or name == "calibration.given"


@pytest.mark.parametrize("name", ["cli.md", "ops.md", "options.md"])
def test_pages_are_up_to_date(name: str) -> None:
    """Written by ``python docs/tables.py``."""
    spec = importlib.util.spec_from_file_location("tables", ROOT / "docs" / "tables.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["tables"] = module
    spec.loader.exec_module(module)
    assert (ROOT / "docs" / name).read_text(encoding="utf-8") == module.FILES[name]()
