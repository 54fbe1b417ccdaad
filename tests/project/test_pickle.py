"""The package and what it gives back go through pickle, to other processes too."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest
from nets import build, normal
from onnx import helper
from two_layers import halve, two_layers

import onnxprune
from onnxprune import errors
from onnxprune.model import Model


def net() -> Any:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("MatMul", ["b", "v"], ["y"]),
    ]
    return build(nodes, {"w": normal(16, 64), "v": normal(64, 4)}, ("N", 16))


def in_a_fresh_process(pickled: bytes, *arguments: str) -> str:
    """Call what is pickled, in a process that has imported nothing."""
    code = "import pickle, sys; print(pickle.loads(sys.stdin.buffer.read())(*sys.argv[1:]))"
    run = subprocess.run(
        [sys.executable, "-c", code, *arguments], input=pickled, capture_output=True, check=False
    )
    assert run.returncode == 0, run.stderr.decode()
    return run.stdout.decode().strip()


def test_a_function_that_uses_the_package_reaches_another_process(tmp_path: Path) -> None:
    space: dict[str, Any] = {"onnxprune": onnxprune}
    exec("def work(path):\n    return onnxprune.plan(path, ratio=0.5, align='none').dumps()", space)
    path = tmp_path / "m.onnx"
    path.write_bytes(net().SerializeToString())
    here = onnxprune.plan(path, ratio=0.5, align="none").dumps()
    assert in_a_fresh_process(cloudpickle.dumps(space["work"]), str(path)) == here.strip()


@pytest.mark.parametrize("dumps", [cloudpickle.dumps])
def test_the_package_pickles_by_name(dumps: Any) -> None:
    assert pickle.loads(dumps(onnxprune)) is onnxprune
    assert len(dumps(onnxprune)) < 200


def test_a_result_reaches_another_process(tmp_path: Path) -> None:
    result = onnxprune.prune(net(), ratio=0.5, align="none")
    again = pickle.loads(pickle.dumps(result))
    assert again.plan == result.plan
    assert again.report.to_json() == result.report.to_json()
    assert again.model.SerializeToString(deterministic=True) == result.model.SerializeToString(
        deterministic=True
    )
    assert again.pruned.sha256 == result.pruned.sha256
    space: dict[str, Any] = {"result": result}
    exec("def work():\n    return sorted(result.pruned.weight('w').shape)", space)
    assert in_a_fresh_process(cloudpickle.dumps(space["work"])) == "[16, 32]"


def test_what_else_is_given_back_pickles() -> None:
    model = net()
    for thing in (
        onnxprune.inspect(model),
        onnxprune.explain(model, "w"),
        onnxprune.Options(ratio=0.5),
        onnxprune.plan(model, ratio=0.5),
        onnxprune.prune(model, ratio=0.5).report,
    ):
        assert repr(pickle.loads(pickle.dumps(thing))) == repr(thing)
    sparse = pickle.loads(pickle.dumps(onnxprune.sparsify(model, pattern="2:4")))
    assert (sparse.sparse.weight("w") == 0).mean() == 0.5


def test_errors_pickle() -> None:
    for name in errors.__all__:
        kind = getattr(errors, name)
        if isinstance(kind, type) and issubclass(kind, errors.OnnxPruneError):
            again = pickle.loads(pickle.dumps(kind("What and why.")))
            assert (type(again), str(again), again.exit_code) == (kind, "What and why.", kind.exit_code)


def test_a_model_takes_its_external_weights_with_it(tmp_path: Path) -> None:
    path = two_layers(tmp_path / "in")
    model, cut = Model.load(path), halve(Model.load(path))
    pickled = pickle.dumps([model, cut])
    (path.parent / "model.onnx.data").unlink()
    whole, half = pickle.loads(pickled)
    assert whole.weight("w").shape == (32, 32)
    assert half.weight("w").shape == (32, 16)
    assert np.array_equal(half.weight("w"), whole.weight("w")[:, :16])
    assert whole.sha256 == half.sha256 != whole.file_sha256
