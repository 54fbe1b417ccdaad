"""Mixtures of experts: rows against onnxruntime and against numpy, what is refused, and a small model cut."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxprune
from onnxprune.errors import VerificationError
from onnxprune.ops import Refusal, Row, lookup
from onnxprune.testing import op_law
from onnxprune.testing.node import node_of, run_node
from onnxprune.testing.op_law import check_op

from .contrib_cases import Case, case, f
from .engine import law
from .expert_cases import EXPERTS, cases, elsewhere, evaluate, floats, packed

OPSETS = {"": 21, "com.microsoft": 1}
BY_NAME = {name: (name, node, inputs) for name, node, inputs in cases()}


def _arrays(of: Case) -> list[Any]:
    return [of[2].get(name) for name in of[1].input]


@pytest.mark.parametrize("fused", [*cases()], ids=lambda of: of[0])
def test_law_2(fused: Case) -> None:
    _, node, inputs = fused
    engine = law(node, inputs, cuts=6)
    assert engine.violations == []
    assert engine.cuts > 0
    verdict = check_op(node, _arrays(fused), OPSETS)
    assert verdict.violations == []
    assert verdict.cuts > 0


@pytest.mark.parametrize(
    "name", [name for name in BY_NAME if name.startswith("MoE") and "sparse" not in name]
)
def test_onnxruntime_and_numpy_agree(name: str) -> None:
    of = BY_NAME[name]
    want = run_node(of[1], _arrays(of), OPSETS)[0]
    np.testing.assert_allclose(evaluate(of[1], _arrays(of)), want, rtol=1e-4, atol=1e-5)


@pytest.fixture
def numpy_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(op_law, "run_node", lambda node, inputs, *_: [evaluate(node, list(inputs))])


@pytest.mark.usefixtures("numpy_runs")
@pytest.mark.parametrize("of", [*elsewhere()], ids=lambda of: of[0])
def test_law_2_of_forms_that_no_cpu_kernel_runs(of: Case) -> None:
    verdict = check_op(of[1], _arrays(of), OPSETS)
    assert verdict.violations == []
    assert verdict.cuts >= 6


def _swap(old: str, new: str) -> Callable[[Row], Row]:
    def change(row: Row) -> Row:
        assert old in row.text
        return replace(row, text=row.text.replace(old, new))

    return change


def _wrong(of: Case, change: Callable[[Row], Row]) -> list[str]:
    arrays = _arrays(of)
    right = lookup(node_of(of[1], arrays, [arrays[0]], 1))
    assert isinstance(right, Row)
    return check_op(of[1], arrays, OPSETS, row=change(right)).violations


def test_pairs_are_no_halves() -> None:
    assert _wrong(BY_NAME["MoE swiglu in pairs"], _swap("(j w! q!)", "(q! j w!)"))


def test_biases_of_silenced_units_count() -> None:
    assert _wrong(BY_NAME["MoE silu"], lambda row: replace(row, roles=("data",) * 6))


def test_bytes_have_no_zero() -> None:
    roles = ("data", "data", "weight", "quant", "bias", "weight", "quant", "bias")
    of = BY_NAME["QMoE of 4 bits, blocks of 0, no points"]
    assert _wrong(of, lambda row: replace(row, roles=roles))


@pytest.mark.usefixtures("numpy_runs")
def test_halves_are_no_pairs() -> None:
    of = next(of for of in elsewhere() if of[0] == "MoE swiglu in halves")
    assert _wrong(of, _swap("(q! j w!)", "(j w! q!)"))


def _row(of: Case) -> Row | Refusal:
    arrays = _arrays(of)
    return lookup(node_of(of[1], arrays, [arrays[0]], 1))


@pytest.mark.parametrize(
    ("bits", "block", "points", "grains"),
    [(4, 0, False, (2, 2)), (4, 16, False, (16, 16)), (4, 16, True, (32, 32)), (8, 0, True, (1, 1)),
     (2, 16, True, (64, 32))],
)  # fmt: skip
def test_units_go_by_whole_bytes_and_blocks(
    bits: int, block: int, points: bool, grains: tuple[int, int]
) -> None:
    sizes: dict[str, Any] = {"expert_weight_bits": bits} | ({"block_size": block} if block else {})
    row = _row(case("QMoE", *packed(bits, block, points, 0), activation_type="relu", **sizes))
    assert isinstance(row, Row)
    assert (row.sizes["w"], row.sizes["v"]) == grains


@pytest.mark.parametrize(
    ("attrs", "half", "why"),
    [
        ({"quant_type": "nvfp4"}, False, "quant_type 'nvfp4'"),
        ({"weights_prepacked": 1}, False, "laid out for a GPU"),
        ({}, True, "laid out for a GPU"),
    ],
)
def test_what_is_not_understood_is_refused(attrs: dict[str, Any], half: bool, why: str) -> None:
    arrays = packed(4, 0, False, 0)
    if half:
        arrays = [a.astype(np.float16) if a is not None and a.dtype == np.float32 else a for a in arrays]
    row = _row(case("QMoE", *arrays, activation_type="relu", **attrs))
    assert isinstance(row, Refusal)
    assert why in row.reason


def test_rows_that_do_not_fit_their_activation_are_refused() -> None:
    row = _row(case("MoE", *floats(1), activation_type="relu", swiglu_fusion=1))
    assert isinstance(row, Refusal)
    assert "20 rows of a first matrix for 10 units" in row.reason


def _model(op: str, *arrays: Any, **attrs: Any) -> onnx.ModelProto:
    """Return a layer as decoders have it: a router, experts, a residual."""
    hidden = arrays[0].shape[-1] if op == "MoE" else 32
    names = ["x", "scores", *(f"w{n}" if a is not None else "" for n, a in enumerate(arrays[2:]))]
    nodes = [
        helper.make_node("MatMul", ["x", "router"], ["scores"]),
        helper.make_node(op, names, ["mixed"], "experts", domain="com.microsoft", **attrs),
        helper.make_node("Add", ["x", "mixed"], ["y"]),
    ]
    weights = {"router": f(hidden, EXPERTS)} | {f"w{n}": a for n, a in enumerate(arrays[2:]) if a is not None}
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["tokens", hidden])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["tokens", hidden])],
        [numpy_helper.from_array(a, n) for n, a in weights.items()],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


@pytest.mark.parametrize(
    ("op", "arrays", "attrs", "left"),
    [
        ("MoE", floats(), {"activation_type": "silu"}, (5, 5)),
        ("MoE", floats(1), {"activation_type": "swiglu", "swiglu_fusion": 1}, (10, 5)),
        ("QMoE", packed(4, 0, True, 1), {"activation_type": "swiglu", "swiglu_fusion": 1}, (64, 16)),
        ("QMoE", packed(4, 16, False, 0), {"activation_type": "silu", "block_size": 16}, (32, 16)),
        ("QMoE", packed(8, 16, True, 0),
         {"activation_type": "silu", "block_size": 16, "expert_weight_bits": 8}, (32, 32)),
    ],
)  # fmt: skip
def test_half_of_the_inner_units_go(
    tmp_path: Path, op: str, arrays: list[Any], attrs: dict[str, Any], left: tuple[int, int]
) -> None:
    onnx.save(_model(op, *arrays, k=2, **attrs), tmp_path / "in.onnx")
    result = onnxprune.prune(tmp_path / "in.onnx", tmp_path / "out.onnx", ratio=0.5, align="none")
    shapes = {t.name: list(t.dims) for t in onnx.load(tmp_path / "out.onnx").graph.initializer}
    second = "w2" if op == "MoE" else "w3"
    assert (shapes["w0"][1], shapes[second][2]) == left
    assert result.report.law1["max_relative_error"] <= 1e-4


def test_units_of_small_scales_go_whatever_their_bytes_say(tmp_path: Path) -> None:
    """The bytes of packed weights are no magnitudes: a quiet unit may have all of its bits set."""
    arrays: list[Any] = packed(4, 0, False, 0)
    quiet = np.arange(64) // 2 % 2 == 0
    arrays[3][:, quiet] *= 0.01
    arrays[4][:, quiet] *= 0.01
    arrays[2][:, quiet] = 255
    onnx.save(_model("QMoE", *arrays, k=2, activation_type="silu"), tmp_path / "in.onnx")
    onnxprune.prune(tmp_path / "in.onnx", tmp_path / "out.onnx", ratio=0.5, align="none")
    weights = {t.name: numpy_helper.to_array(t) for t in onnx.load(tmp_path / "out.onnx").graph.initializer}
    np.testing.assert_array_equal(weights["w1"], arrays[3][:, ~quiet])


def test_what_no_kernel_runs_is_cut_only_without_proof(tmp_path: Path) -> None:
    model = _model("MoE", *floats(0, gate=True), k=2, activation_type="silu")
    onnx.save(model, tmp_path / "in.onnx")
    with pytest.raises(VerificationError, match="FC3"):
        onnxprune.prune(tmp_path / "in.onnx", tmp_path / "out.onnx", ratio=0.5, align="none")
    assert not (tmp_path / "out.onnx").exists()
    onnxprune.prune(tmp_path / "in.onnx", tmp_path / "out.onnx", ratio=0.5, align="none", verify=False)
    shapes = {t.name: list(t.dims) for t in onnx.load(tmp_path / "out.onnx").graph.initializer}
    assert [shapes[n][1] for n in ("w0", "w4")] == [5, 5]


def test_a_model_that_cannot_be_loaded_is_refused_without_useless_advice(tmp_path: Path) -> None:
    model = _model("MoE", *floats(2), k=2, activation_type="swiglu", swiglu_fusion=2)
    onnx.save(model, tmp_path / "in.onnx")
    with pytest.raises(VerificationError, match="can't load the original") as refusal:
        onnxprune.prune(tmp_path / "in.onnx", tmp_path / "out.onnx", ratio=0.5, align="none")
    assert "--no-verify" in str(refusal.value)
    assert "--inputs" not in str(refusal.value)


def test_multiplications_are_those_of_the_chosen_experts(tmp_path: Path) -> None:
    onnx.save(_model("MoE", *floats(bias=False), k=2, activation_type="silu"), tmp_path / "in.onnx")
    seen = onnxprune.inspect(tmp_path / "in.onnx", input_shapes={"x": (3, 6)})
    assert seen.size.macs == 6 * EXPERTS + 2 * (2 * 6 * 10), "of one of three rows"
