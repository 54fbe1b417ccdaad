"""Curves on disk: another model, other weights or other code has curves of its own, and no file can make them wrong."""

from __future__ import annotations

import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from deployed_models import detector
from onnx import TensorProto, helper, numpy_helper

import onnxprune
from onnxprune.errors import PlanError
from onnxprune.files import cache, digest
from onnxprune.latency.predict import _from_json
from onnxprune.model import Model
from onnxprune.reconstruction.cache import code_of, curves_of, keep
from onnxprune.reconstruction.least_squares import Curve

FACTS = {"model": "m", "groups": [["a", 3], ["b", 2]]}
PACKAGE = Path(onnxprune.__file__).parent


def fine_tune(folder: Path, first: bool, shift: float = 0.0, external: bool = True) -> Path:
    """Return two layers with external weights, of which one or the other matters in few channels only."""
    rng = np.random.default_rng(first)
    few = np.where(np.arange(32) < 4, 1.0, 1e-3)
    scales = (few, np.ones(32)) if first else (np.ones(32), few)
    weights = {f"w{n}": rng.standard_normal((32, 32)) * scale + shift for n, scale in enumerate(scales)}
    weights["w2"] = rng.standard_normal((32, 8))
    nodes = [
        helper.make_node("MatMul", ["x", "w0"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("MatMul", ["b", "w1"], ["c"]),
        helper.make_node("Relu", ["c"], ["d"]),
        helper.make_node("MatMul", ["d", "w2"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 32])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 8])],
        [numpy_helper.from_array(w.astype(np.float32), n) for n, w in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    folder.mkdir()
    onnx.save(model, folder / "m.onnx", save_as_external_data=external, location="w.data", size_threshold=0)
    return folder / "m.onnx"


def removed(path: Path) -> dict[str, tuple[int, ...]]:
    x = np.random.default_rng(5).standard_normal((256, 32)).astype(np.float32)
    result = onnxprune.prune(
        path, target="macs=0.5", align="none", calib={"x": x}, verify=False, recover="lstsq"
    )
    return {g.name: g.removed_units for g in result.plan.groups}


def test_other_external_weights_get_curves_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = fine_tune(tmp_path / "one", True), fine_tune(tmp_path / "other", False)
    assert one.read_bytes() == other.read_bytes()
    monkeypatch.setenv("ONNXPRUNE_CACHE", str(tmp_path / "kept"))
    first, after = removed(one), removed(other)
    assert len(list((tmp_path / "kept" / "curves").iterdir())) == 2
    assert removed(one) == first
    assert len(list((tmp_path / "kept" / "curves").iterdir())) == 2  # kept curves were found
    monkeypatch.setenv("ONNXPRUNE_CACHE", str(tmp_path / "fresh"))
    assert removed(other) == after != first


def test_curves_that_were_kept_change_no_byte_of_the_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What fits go for was once taken in other runs then, of which onnxruntime fuses other nodes."""
    onnx.save(detector(), tmp_path / "m.onnx")
    x = np.random.default_rng(5).standard_normal((64, 3, 32, 32)).astype(np.float32)
    monkeypatch.setenv("ONNXPRUNE_CACHE", str(tmp_path / "kept"))
    results = []
    for name in ("first.onnx", "again.onnx"):
        onnxprune.prune(
            tmp_path / "m.onnx", tmp_path / name, ratio=0.5, align="none", calib={"image": x}, recover="lstsq"
        )
        results.append((tmp_path / name).read_bytes())
    assert len(list((tmp_path / "kept" / "curves").iterdir())) == 1
    assert results[0] == results[1]


def test_a_result_in_memory_has_a_size_of_its_own(tmp_path: Path) -> None:
    path = fine_tune(tmp_path / "one", True)
    result = onnxprune.prune(path, ratio=0.5, align="none")
    assert result.report.after.bytes == len(result.model.SerializeToString(deterministic=True))
    assert result.report.before.bytes == sum(p.stat().st_size for p in path.parent.iterdir())


def test_a_plan_for_other_external_weights_is_refused(tmp_path: Path) -> None:
    one, other = fine_tune(tmp_path / "one", True), fine_tune(tmp_path / "other", False)
    plan = onnxprune.plan(one, ratio=0.5, align="none")
    onnxprune.apply(one, plan, tmp_path / "out.onnx")
    with pytest.raises(PlanError, match=r"for another model: .*, weights in external data included; make"):
        onnxprune.apply(other, plan, tmp_path / "no.onnx")
    assert not (tmp_path / "no.onnx").exists()


def test_a_plan_that_names_the_file_alone_is_told_so(tmp_path: Path) -> None:
    path = fine_tune(tmp_path / "one", True)
    model, plan = Model.load(path), onnxprune.plan(path, ratio=0.5)
    old = onnxprune.Plan.loads(plan.dumps().replace(model.sha256, model.file_sha256))
    with pytest.raises(PlanError, match="names the model's file alone"):
        onnxprune.apply(path, old, tmp_path / "out.onnx")


def test_the_hash_covers_just_what_tensors_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digest, "_CHUNK", 100)  # ranges are read in pieces
    path = fine_tune(tmp_path / "one", True)
    data, first = path.parent / "w.data", Model.load(path).sha256
    assert Model.load(path).fork().sha256 == first
    assert Model.load(onnx.load(path, load_external_data=False), base_dir=path.parent).sha256 != ""
    data.write_bytes(data.read_bytes() + b"behind")
    assert Model.load(path).sha256 == first
    changed = bytearray(data.read_bytes())
    changed[32 * 32 * 4 + 5] ^= 1
    data.write_bytes(changed)
    assert Model.load(path).sha256 != first
    whole = fine_tune(tmp_path / "whole", True, external=False)
    assert Model.load(whole).sha256 == Model.load(whole).file_sha256


def test_any_code_changes_the_key(tmp_path: Path) -> None:
    copy = tmp_path / "onnxprune"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__", "*.js", "*.css"))
    first = code_of(copy)
    assert first == code_of(copy)
    names = "gradient/tape reconstruction/least_squares criteria/obs graph/groups ops/linear rotation/basis"
    for name in (*names.split(), "budgets/macs", "runtime/session", "pruning/weighing", "model"):
        path = copy / f"{name}.py"
        text = path.read_text(encoding="utf-8")
        path.write_text(text + "\n", encoding="utf-8")
        assert code_of(copy) != first, name
        path.rename(path.with_name("moved.py"))
        path.with_name("moved.py").write_text(text, encoding="utf-8")
        assert code_of(copy) != first, name
        path.with_name("moved.py").rename(path)
        assert code_of(copy) == first
    (copy / "criteria" / "new.py").write_text("")
    assert code_of(copy) != first
    with pytest.raises(FileNotFoundError):
        code_of(tmp_path / "nowhere")


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the file of two curves."""
    monkeypatch.setenv("ONNXPRUNE_CACHE", str(tmp_path))
    a = Curve(np.array([2, 0, 1]), np.array([0.0, 0.5, 1.0, np.inf]))
    keep(FACTS, {"a": a, "b": Curve(np.array([0, 1]), np.array([0.0, 1e-9, np.inf]))})
    found = curves_of(FACTS)
    assert found is not None
    assert found["a"].order.tolist() == [2, 0, 1]
    assert found["a"].error.tolist() == [0.0, 0.5, 1.0, math.inf]
    (path,) = (tmp_path / "curves").iterdir()
    return path


A, B = ["a", [2, 0, 1], [0.0, 0.5, 1.0, 2.0]], ["b", [0, 1], [0.0, 1.0, 2.0]]
WRONG: list[Any] = [
    None, [], {}, 3, "a", [A, A], [["a"]], [[*A, 1]], [["c", *A[1:]]], [[["a"], *A[1:]]],
    [["a", [2, 0], A[2]]], [["a", [2, 0, 0], A[2]]], [["a", [2, 0, 3], A[2]]], [["a", [2, 0, True], A[2]]],
    [["a", [2, 0, 1.0], A[2]]], [["a", [2, 0, 10**40], A[2]]], [["a", [2, 0, "1"], A[2]]], [["a", "201", A[2]]],
    [["a", A[1], [0.0, 0.5, 1.0]]], [["a", A[1], [0.0, -0.5, 1.0, 2.0]]], [["a", A[1], [0.0, math.nan, 1.0, 2.0]]],
    [["a", A[1], [0.0, math.inf, 1.0, 2.0]]], [["a", A[1], [math.inf] * 4]], [["a", A[1], [0.0, None, 1.0, 2.0]]],
    [["a", A[1], [0.0, "1.0", 1.0, 2.0]]], [["a", A[1], [0.0, 10**400, 1.0, 2.0]]], [["a", A[1], [[0.0]] * 4]],
    [["a", [], []]],
]  # fmt: skip


@pytest.mark.parametrize("value", WRONG, ids=range(len(WRONG)))
def test_curves_that_cannot_be_are_not_taken(kept: Path, value: Any) -> None:
    cache.write("curves", FACTS, value)  # whole, as far as the cache can see
    assert curves_of(FACTS) is None
    cache.write("curves", FACTS, [A, B])
    assert curves_of(FACTS) is not None


def test_a_damaged_file_is_as_if_it_were_not_there(kept: Path) -> None:
    text = kept.read_text(encoding="utf-8")
    for damaged in (
        text[:-5],
        text.replace("0.5", "0.4"),
        text.replace("[2, 0, 1]", "[1, 0, 2]"),
        text + "x",
        "",
    ):
        assert damaged != text
        kept.write_text(damaged, encoding="utf-8")
        assert curves_of(FACTS) is None
    kept.write_text(text, encoding="utf-8")
    assert curves_of(FACTS) is not None
    kept.write_bytes(b"\xff\xfe" + text.encode())
    assert curves_of(FACTS) is None
    known = json.loads(text)
    kept.write_text(json.dumps({**known, "facts": {**known["facts"], "model": "n"}}), encoding="utf-8")
    assert curves_of(FACTS) is None


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs here")
def test_what_is_no_file_is_not_read(kept: Path) -> None:
    kept.unlink()
    os.mkfifo(kept)  # reading it would wait for ever
    assert curves_of(FACTS) is None
    keep(FACTS, {"b": Curve(np.array([0, 1]), np.array([0.0, 1.0, 2.0]))})
    assert set(curves_of(FACTS) or ()) == {"b"}


def test_a_file_that_is_too_large_is_not_read(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "MOST_BYTES", 10)
    assert curves_of(FACTS) is None


def test_without_a_home_nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("ONNXPRUNE_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    keep(FACTS, {"b": Curve(np.array([0, 1]), np.array([0.0, 1.0, 2.0]))})
    assert curves_of(FACTS) is None


GOOD_TIME = {"whole": 0.1, "nodes": [[0, 0.05]], "rest": 0.0}


@pytest.mark.parametrize(
    "wrong",
    [
        {**GOOD_TIME, "whole": math.nan}, {**GOOD_TIME, "whole": 0.0}, {**GOOD_TIME, "whole": "0.1"},
        {**GOOD_TIME, "rest": -1.0}, {**GOOD_TIME, "rest": math.inf}, {**GOOD_TIME, "nodes": [[0, -0.1]]},
        {**GOOD_TIME, "nodes": [[0, math.nan]]}, {**GOOD_TIME, "nodes": [[7, 0.1]]},
        {**GOOD_TIME, "nodes": [[0.5, 0.1]]}, {**GOOD_TIME, "nodes": [[0, 10**400]]},
        {**GOOD_TIME, "nodes": {"0": 0.1}}, {"whole": 0.1}, [], None,
    ],
)  # fmt: skip
def test_times_that_no_clock_gives_are_not_taken(wrong: Any) -> None:
    assert _from_json([GOOD_TIME, GOOD_TIME], 2, {0}) is not None
    assert _from_json([GOOD_TIME, wrong], 2, {0}) is None
    assert _from_json([GOOD_TIME], 2, {0}) is None
