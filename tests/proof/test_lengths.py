"""Law 1 at other sizes of the dynamic axes than the bound ones: what is wrong there is caught by running alone."""

import dataclasses
import importlib
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from deployed_models import POSITIONS, encoder
from nets import F, build, node, normal
from onnx import TensorProto, helper
from small_models import Builder

import onnxprune
from onnxprune.calibration.samples import load_samples
from onnxprune.cut.put_back import Failed
from onnxprune.cut.rewrite import rewrite
from onnxprune.cut.writer import Writer
from onnxprune.errors import VerificationError
from onnxprune.graph.analysis import analyse
from onnxprune.graph.groups import Grouping
from onnxprune.model import Model
from onnxprune.permutation.permute import permute
from onnxprune.proof.elsewhere import apart, resized
from onnxprune.proof.verify import Verification, verify
from onnxprune.rotation import basis
from onnxprune.runtime.inputs import random_inputs

ROWS = 32

I64 = TensorProto.INT64


def _ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def _table(lookup: list[onnx.NodeProto], table: np.ndarray, **more: Any) -> onnx.ModelProto:
    """Return x W1 + table[:T], two layers behind it; ``lookup`` makes p of the table and of t, the length of x."""
    weights = {"w1": normal(6, 8), "pos": table, "w2": normal(8, 12), "w3": normal(12, 5), "one": _ints(1)}
    nodes = [
        node("Shape", "x", "s"),
        node("Gather", "s one", "t"),
        node("MatMul", "x w1", "a"),
        *lookup,
        node("Add", "b p" if any("b" in n.output for n in lookup) else "a p", "h"),
        node("MatMul", "h w2", "c"),
        node("Relu", "c", "d"),
        node("MatMul", "d w3", "y"),
    ]
    return build(nodes, weights | more, ("N", "T", 6))


def sliced(rows: int = ROWS) -> onnx.ModelProto:
    lookup = [node("Slice", "pos zero t one", "p")]
    return _table(lookup, normal(1, rows, 8), zero=_ints(0))


def ranged() -> onnx.ModelProto:
    scalars = {"from": np.int64(0), "step": np.int64(1), "first": np.int64(1)}
    lookup = [node("Gather", "s first", "length"), node("Range", "from length step", "ids")]
    return _table([*lookup, node("Gather", "pos ids", "p")], normal(ROWS, 8), **scalars)


def offset() -> onnx.ModelProto:
    """Look up from the second row on, as OPT does."""
    scalars = {"from": np.int64(2), "step": np.int64(1), "first": np.int64(1), "two": np.int64(2)}
    lookup = [
        node("Gather", "s first", "n"),
        node("Add", "n two", "end"),
        node("Range", "from end step", "ids"),
        node("Gather", "pos ids", "p"),
    ]
    return _table(lookup, normal(ROWS, 8), **scalars)


def baked() -> onnx.ModelProto:
    """A batch that is one by name only."""
    lookup = [node("Reshape", "a four", "b"), node("Slice", "pos zero t one", "p")]
    return _table(lookup, normal(1, ROWS, 8), zero=_ints(0), four=_ints(4, -1, 8))


def wrongly_cut(
    model: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]], rows: Callable[[int], slice]
) -> tuple[Verification, int]:
    """Believe that rows of the table that the bound length doesn't read may go."""
    loaded = Model.load(model)
    analysis = analyse(loaded, input_shapes=shapes)
    dims = analysis.coupling.dims["pos"]
    axis = len(dims) - 2
    size = analysis.coupling.space.sizes[dims[axis]]
    dead = np.zeros(size, bool)
    dead[rows(shapes["x"][1])] = True
    masks = {analysis.coupling.space.find(dims[axis]): dead}
    pruned = rewrite(loaded, analysis.coupling, analysis.tracer, masks, analysis.other_values()).model
    assert pruned.info("pos").dims[axis] == size - dead.sum(), "the control must really cut"
    return verify(analysis, masks, pruned), size


@pytest.mark.parametrize("shape", [(2, 7, 6), (1, 3, 6), (4, 12, 6)])
@pytest.mark.parametrize("make", [sliced, ranged, offset])
def test_rows_that_longer_inputs_read_are_missed(
    make: Callable[[], onnx.ModelProto], shape: tuple[int, int, int]
) -> None:
    found, size = wrongly_cut(make(), {"x": shape}, lambda length: slice(length + 3, length + 6))
    assert found.status == "failed"
    assert max(s["T"] for s in found.sizes) in (size, size - 2)


def test_rows_of_a_short_table_are_missed() -> None:
    assert wrongly_cut(sliced(16), {"x": (2, 12, 6)}, lambda length: slice(14, 16))[0].status == "failed"


def test_rows_are_missed_where_the_batch_is_baked() -> None:
    found, _ = wrongly_cut(baked(), {"x": (4, 7, 6)}, lambda length: slice(20, 30))
    assert found.status == "failed"
    assert {s["N"] for s in found.sizes} == {4}
    assert {s["N"] for s, _ in found.refused} >= {1}, "a batch of one is tried, and refused"


def test_a_batch_of_one_is_compared_where_more_is_bound() -> None:
    found, _ = wrongly_cut(sliced(), {"x": (3, 7, 6)}, lambda length: slice(30, 32))
    assert {s["N"] for s in found.sizes} == {1, 3, 6}


def test_a_wrong_group_is_put_back_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    right = Grouping.dead
    model = sliced()
    bad = {"coupling": None}

    def wrong(self: Grouping, removed: Mapping[str, Any]) -> dict[int, np.ndarray]:
        dead = dict(right(self, removed))
        if any(name.startswith(("w2", "w3")) for name in removed):
            dims = bad["coupling"].dims["pos"]  # type: ignore[attr-defined]
            dead[bad["coupling"].space.find(dims[1])] = np.arange(ROWS) >= ROWS // 2  # type: ignore[attr-defined]
        return dead

    def remember(*args: Any, **options: Any) -> Any:
        analysis = analyse(*args, **options)
        bad["coupling"] = analysis.coupling  # type: ignore[assignment]
        return analysis

    monkeypatch.setattr("onnxprune.pruning.journey.analyse", remember)
    monkeypatch.setattr(Grouping, "dead", wrong)
    result = onnxprune.prune(model, ratio=0.5, align=1, input_shapes={"x": (2, 12, 6)})
    reasons = [one["reason"] for one in result.report.put_back if one["group"].startswith("w2")]
    assert len(reasons) == 1
    assert re.search(rf"T (24|{ROWS})\)", reasons[0])
    monkeypatch.setattr(Grouping, "dead", lambda self, removed: wrong(self, {**removed, "w2": ()}))
    with pytest.raises(VerificationError):
        onnxprune.prune(model, ratio=0.5, align=1, input_shapes={"x": (2, 12, 6)})


def test_the_report_says_for_which_sizes(tmp_path: Path) -> None:
    result = onnxprune.prune(sliced(), ratio=0.5, align=1)
    law = result.report.to_json()["law1"]
    assert law["inputs"] == len(law["sizes"])
    assert {s["T"] for s in law["sizes"]} >= {1, 6, 12, ROWS}
    assert {"N": 1, "T": ROWS + 1} in [one["sizes"] for one in law["refused"]]
    assert all(one["reason"] for one in law["refused"])
    text = f"N 1, 2, 3; T 1, 6, 12, 20, {ROWS} (the original doesn't run at {ROWS + 1})"
    assert any(line.endswith(f" inputs; {text}") for line in result.report.lines())
    assert f"; N 1, 2, 3; T 1, 6, 12, 20, {ROWS} (" in result.report.page()


def test_a_fixed_model_is_checked_once() -> None:
    fixed = build([node("MatMul", "x w", "h"), node("Relu", "h", "r"), node("MatMul", "r v", "y")],
                  {"w": normal(6, 8), "v": normal(8, 5)}, (2, 6))  # fmt: skip
    law = onnxprune.prune(fixed, ratio=0.5, align=1).report.to_json()["law1"]
    assert (law["inputs"], law["sizes"], law["refused"]) == (1, [], [])


def test_verify_and_apply_look_at_several_sizes_too(tmp_path: Path) -> None:
    model = sliced()
    done = onnxprune.prune(model, tmp_path / "small.onnx", ratio=0.5, align=1)
    for law in (
        onnxprune.verify(model, tmp_path / "small.onnx", done.plan),
        onnxprune.apply(model, done.plan).report.to_json()["law1"],
    ):
        assert max(s["T"] for s in law["sizes"]) == ROWS
    broken = onnx.load(tmp_path / "small.onnx")
    table = next(t for t in broken.graph.initializer if t.name == "pos")
    values = onnx.numpy_helper.to_array(table).copy()
    values[0, -1] += 1
    table.CopyFrom(onnx.numpy_helper.from_array(values, "pos"))
    with pytest.raises(VerificationError):
        onnxprune.verify(model, broken, done.plan)


def test_axes_that_must_agree_vary_together() -> None:
    graph = helper.make_graph(
        [
            node("MatMul", "x w", "a"),
            node("Relu", "a", "h"),
            node("MatMul", "h v", "b"),
            node("Add", "b z", "y"),
        ],
        "g",
        [
            helper.make_tensor_value_info("x", F, ("N", "T", 6)),
            helper.make_tensor_value_info("z", F, ("M", "U", 5)),
        ],
        [helper.make_tensor_value_info("y", F, (None, None, 5))],
        [onnx.numpy_helper.from_array(a, n) for n, a in {"w": normal(6, 8), "v": normal(8, 5)}.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    law = onnxprune.prune(model, ratio=0.5, align=1).report.to_json()["law1"]
    together = [s for s in law["sizes"] if s["T"] == s["U"]]
    assert len({s["T"] for s in together}) >= 4
    assert {"N": 1, "T": 24, "M": 1, "U": 12} in [one["sizes"] for one in law["refused"]]


def _damaged(model: Model) -> Model:
    """Change the last row of the table of positions, which the bound length doesn't read."""
    found = model.fork()
    table = np.array(found.weight("pos"))
    table[..., -1, :] += 1
    found.put("pos", table)
    return found


def test_models_are_compared_at_other_sizes() -> None:
    analysis = analyse(Model.load(sliced()))
    rng = np.random.default_rng(0)
    own = {"x": rng.standard_normal((4, 5, 6)).astype(np.float32)}
    for feeds in (
        lambda shapes: random_inputs(analysis.model, shapes, rng),
        lambda shapes: resized(own, shapes),
    ):
        assert apart(analysis, analysis.model, analysis.model.fork(), feeds) == (0.0, "")
        error, where = apart(analysis, analysis.model, _damaged(analysis.model), feeds)
        assert error > 1e-2
        assert where == f"N 1, T {ROWS}"
    assert resized(own, {"x": (2, 11, 6)})["x"].shape == (2, 11, 6)


def test_shrink_compares_at_other_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    model = sliced()
    weight = next(t for t in model.graph.initializer if t.name == "w2")
    values = onnx.numpy_helper.to_array(weight).copy()
    values[:, :4] = 0
    weight.CopyFrom(onnx.numpy_helper.from_array(values, "w2"))
    assert onnxprune.run(model, "shrink").info("w2").dims == (8, 8)
    channels = importlib.import_module("onnxprune.granularity.channels")
    right = channels.rewrite

    def wrong(*args: Any) -> Any:
        found = right(*args)
        return dataclasses.replace(found, model=_damaged(found.model))

    monkeypatch.setattr(channels, "rewrite", wrong)
    with pytest.raises(VerificationError, match=f"T {ROWS}"):
        onnxprune.run(model, "shrink")


def test_another_basis_is_compared_at_other_sizes() -> None:
    analysis = analyse(Model.load(sliced()))
    graph = analysis.model.proto.graph
    samples = load_samples(graph, "synthetic", most=8, types=analysis.inputs)
    same = basis._Same(analysis, samples, [])
    same.check(analysis.model.fork())
    with pytest.raises(Failed, match=f"T {ROWS}"):
        same.check(_damaged(analysis.model))


def test_another_order_is_compared_at_other_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    right = Writer.drop_dead

    def wrong(self: Writer) -> None:
        right(self)
        self.model = _damaged(self.model)

    saliency = {"w3": np.random.default_rng(0).random((12, 5))}
    model = Model.load(sliced())
    assert permute(model, saliency, (2, 4)).gains
    monkeypatch.setattr(Writer, "drop_dead", wrong)
    found = permute(model, saliency, (2, 4))
    assert not found.gains
    assert found.refused


def test_indices_may_have_fewer_axes_than_the_axis_they_pick_along() -> None:
    """Which lengths are tried is asked of every lookup, and the axis of a Gather is not one of its indices."""
    proto = encoder()
    (picked,) = [n for n in proto.graph.node if n.op_type == "Gather" and n.name == "token_node"]
    assert helper.get_node_attr_value(picked, "axis") == 1
    result = onnxprune.prune(proto, ratio=0.5)
    tried = {sizes["sequence"] for sizes in result.report.to_json()["law1"]["sizes"]}
    assert {1, POSITIONS} <= tried


@pytest.mark.parametrize("seed", [1, 2])
def test_nothing_is_said_of_integers_where_there_are_none(seed: int) -> None:
    """A label of few rows is often the same; other floats are tried, until the label varies."""
    b = Builder(17)
    y = b.linear(b.op("Relu", [b.linear("x", "first", 4, 16)], "act"), "head", 16, 3)
    model = b.model({"x": ["N", 4]}, b.op("ArgMax", [y], "label", axis=1))
    model.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.INT64
    result = onnxprune.prune(model, ratio=0.5, align=None, seed=seed)
    assert not any("integer inputs" in note for note in result.report.notes)
