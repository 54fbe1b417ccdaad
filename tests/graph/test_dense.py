"""Weights that a model stores sparse are weights like others."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from onnxruntime import InferenceSession
from small_models import chain

import onnxprune
from onnxprune.cli import main


def stored(model: onnx.ModelProto, flat: bool, constants: bool = False) -> onnx.ModelProto:
    """The model with all but every tenth value of its large weights zero, and stored sparse, or as sparse Constants."""
    sparse = onnx.ModelProto.FromString(model.SerializeToString())
    del sparse.graph.initializer[:]
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor).copy()
        if array.ndim < 2:
            sparse.graph.initializer.append(tensor)
            continue
        array[np.arange(array.size).reshape(array.shape) % 10 > 0] = 0
        places = np.flatnonzero(array) if flat else np.argwhere(array)
        values = numpy_helper.from_array(array[array != 0], tensor.name)
        indices = numpy_helper.from_array(places.astype(np.int64))
        made = helper.make_sparse_tensor(values, indices, array.shape)
        if constants:
            sparse.graph.node.insert(0, helper.make_node("Constant", [], [tensor.name], sparse_value=made))
        else:
            sparse.graph.sparse_initializer.append(made)
    return sparse


def ran(model: onnx.ModelProto) -> np.ndarray:
    x = np.random.default_rng(0).standard_normal((1, 3, 8, 8)).astype(np.float32)
    session = InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x})[0])


@pytest.mark.parametrize("constants", [False, True])
@pytest.mark.parametrize("flat", [True, False])
def test_they_are_cut_and_said_to_be_dense(flat: bool, constants: bool) -> None:
    model = stored(chain(32), flat, constants)
    assert len(model.graph.sparse_initializer) == (0 if constants else 3)
    result = onnxprune.prune(model, ratio=0.5, align=None)
    whole = onnxprune.prune(chain(32), ratio=0.5, align=None).report
    before, after = result.report.before, result.report.after
    assert (before.parameters, before.macs) == (whole.before.parameters, whole.before.macs)
    assert (after.parameters, after.macs) == (whole.after.parameters, whole.after.macs)
    assert "3 weights that were stored sparse are dense now" in result.report.notes
    np.testing.assert_allclose(ran(onnxprune.prune(model, ratio=0.0).model), ran(model), atol=1e-6)
    assert len(onnxprune.inspect(model).to_json()["groups"]) == 2


def test_forms_of_a_model_that_is_stored_sparse_have_sizes(tmp_path: Path) -> None:
    path, out = tmp_path / "sparse.onnx", tmp_path / "o.onnx"
    onnx.save(stored(chain(64), True), path)
    result = onnxprune.sparsify(path, out, pattern="2:4", store="sparse")
    sizes = result.report.to_json()["bytes_in"]
    assert 0 < sizes["compressed"] < sizes["sparse"] == out.stat().st_size
    assert sizes["sparse"] < sizes["two_four"]


def test_a_plan_of_it_is_applied(tmp_path: Path) -> None:
    path, plan, out = (str(tmp_path / name) for name in ("sparse.onnx", "p.json", "o.onnx"))
    onnx.save(stored(chain(32), True), path)
    assert main(["plan", path, "-o", plan, "--ratio", "0.5", "--align", "none", "-q"]) == 0
    assert main(["apply", path, plan, out, "-q"]) == 0
    assert main(["verify", path, out, "--plan", plan, "-q"]) == 0
