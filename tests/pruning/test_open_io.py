"""Inputs and outputs that may shrink: a cache of keys and values loses heads with the layers that make and read it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper
from small_models import Builder

import onnxprune
from onnxprune.errors import NothingToPrune, OnnxPruneError, PlanError, UsageError
from onnxprune.graph.analysis import analyse
from onnxprune.graph.kept import Kept
from onnxprune.latency.clock import bench_of, race
from onnxprune.model import Model
from onnxprune.proof.interior import Case, pieces
from onnxprune.proof.twin import twin
from onnxprune.pruning.plan import Plan
from onnxprune.runtime.session import open_session

HEADS, WIDTH, MODEL, PAST = 4, 4, 12, 3
PATTERN = ("past|present",)
CACHES = ("past.key", "past.value", "present.key", "present.value")


def value(name: str, *shape: int | str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def decoder(
    *, jump: bool = False, outputs: tuple[str, ...] = ("present.key", "present.value")
) -> onnx.ModelProto:
    """One layer of attention with a cache, written out: Concat, two products, and projections."""
    b = Builder(11)
    split = b.constant("split", np.array([0, 0, HEADS, WIDTH], np.int64))
    join = b.constant("join", np.array([0, 0, HEADS * WIDTH], np.int64))
    parts = {}
    for name in ("query", "key", "value"):
        y = b.op("Reshape", [b.linear("x", name, MODEL, HEADS * WIDTH), split], f"{name}.split")
        parts[name] = b.op("Transpose", [y], f"{name}.turn", perm=[0, 2, 1, 3])
    for name in ("key", "value"):
        b.nodes.append(helper.make_node("Concat", [f"past.{name}", parts[name]], [f"present.{name}"], axis=2))
    keys = b.op("Transpose", ["present.key"], "keys", perm=[0, 1, 3, 2])
    scores = b.op("MatMul", [parts["query"], keys], "scores")
    if jump:
        scores = b.op("Round", [scores], "round")
    mixed = b.op("MatMul", [b.op("Softmax", [scores], "softmax", axis=-1), "present.value"], "mix")
    joined = b.op("Reshape", [b.op("Transpose", [mixed], "back", perm=[0, 2, 1, 3]), join], "joined")
    y = b.linear(joined, "out", HEADS * WIDTH, MODEL)
    model = b.model({"x": ["N", "T", MODEL]}, y)
    cache = ("N", HEADS, "P", WIDTH)
    model.graph.input.extend(value(n, *cache) for n in CACHES[:2])
    model.graph.output.extend(value(n, "N", HEADS, "P + T", WIDTH) for n in outputs)
    del model.graph.value_info[:]
    return model


def shapes(model: onnx.ModelProto) -> dict[str, list[int | str]]:
    """The declared shapes of inputs and outputs."""
    return {
        v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim]
        for v in (*model.graph.input, *model.graph.output)
    }


def test_without_it_the_cache_stays() -> None:
    with pytest.raises(NothingToPrune, match="axis of the graph"):
        onnxprune.prune(decoder(), ratio=0.5, align=None)


def test_heads_go_from_the_layers_and_the_cache_together() -> None:
    result = onnxprune.prune(decoder(), ratio=0.5, align=None, open_io=PATTERN)
    old, new = shapes(decoder()), shapes(result.model)
    assert [new[n][1] for n in CACHES] == [HEADS // 2] * 4
    assert all(new[n] == old[n] for n in old if n not in CACHES)
    assert [new[n][0::2] for n in CACHES] == [old[n][0::2] for n in CACHES]
    law = result.report.law1
    assert law is not None
    assert law["max_relative_error"] < 1e-5
    assert len({s["P"] for s in law["sizes"]}) >= 3
    changes = {line["name"]: line for line in result.report.to_json()["interface"]}
    assert set(changes) == set(CACHES)
    assert changes["past.key"] == {
        "name": "past.key", "kind": "input", "before": ["N", HEADS, "P", WIDTH], "after": new["past.key"]
    }  # fmt: skip
    assert sum("is now" in line for line in result.report.lines()) == len(CACHES)


def test_the_result_computes_the_kept_heads_of_the_original() -> None:
    """By onnxruntime alone: what the new cache holds is what the kept heads of the old one would."""
    model = decoder()
    plan = onnxprune.plan(model, ratio=0.5, align=None, open_io=PATTERN)
    result = onnxprune.apply(model, plan)
    (gone,) = {c.removed for c in plan.cuts if c.tensor == "key.weight"}
    kept = [h for h in range(HEADS) if h * WIDTH not in gone]
    assert len(kept) == HEADS // 2
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 5, MODEL)).astype(np.float32)
    cache = {n: rng.standard_normal((2, HEADS, PAST, WIDTH)).astype(np.float32) for n in CACHES[:2]}
    small = {n: a[:, kept] for n, a in cache.items()}
    before, after = (ort.InferenceSession(m.SerializeToString()) for m in (model, result.model))
    old, new = before.run(CACHES[2:], {"x": x, **cache}), after.run(CACHES[2:], {"x": x, **small})
    for a, b in zip(old, new, strict=True):
        np.testing.assert_allclose(b, a[:, kept], rtol=1e-5)
        assert not np.allclose(b, a[:, [h for h in range(HEADS) if h not in kept]])


def test_a_plan_says_it_and_apply_and_verify_heed_it(tmp_path: Path) -> None:
    onnx.save(decoder(), tmp_path / "in.onnx")
    source, plan = tmp_path / "in.onnx", tmp_path / "p.json"
    result = onnxprune.prune(source, tmp_path / "one.onnx", ratio=0.5, align=None, open_io=PATTERN)
    result.plan.save(plan)
    assert json.loads(plan.read_text())["open_io"] == list(PATTERN)
    onnxprune.apply(source, plan, tmp_path / "two.onnx")
    assert (tmp_path / "one.onnx").read_bytes() == (tmp_path / "two.onnx").read_bytes()
    assert onnxprune.verify(source, tmp_path / "one.onnx", plan)["max_relative_error"] < 1e-5
    values = json.loads(plan.read_text())
    del values["open_io"]
    with pytest.raises(PlanError):
        onnxprune.apply(source, Plan.loads(json.dumps(values)))
    with pytest.raises(PlanError, match='"open_io" must be a list'):
        Plan.loads(json.dumps({**values, "open_io": "past"}))


def test_a_plan_that_opens_nothing_does_not_mention_it() -> None:
    plan = onnxprune.plan(decoder(), ratio=0, align=None)
    assert "open_io" not in plan.dumps()
    assert Plan.loads(plan.dumps()) == plan


@pytest.mark.parametrize("what", ["other shape", "other head", "other output"])
def test_verification_sees_what_is_wrong_with_an_opened_cache(what: str) -> None:
    model = decoder()
    result = onnxprune.prune(model, ratio=0.5, align=None, open_io=PATTERN)
    bad = onnx.ModelProto()
    bad.CopyFrom(result.model)
    if what == "other shape":
        next(v for v in bad.graph.output if v.name == "present.key").type.tensor_type.shape.dim[
            1
        ].dim_value = 3
    for tensor in bad.graph.initializer:
        if what == "other head" and tensor.name in ("key.weight", "key.bias"):
            array = onnx.numpy_helper.to_array(tensor)
            half = array.shape[-1] // 2
            array = np.concatenate([array[..., half:], array[..., :half]], -1)
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
        if what == "other output" and tensor.name == "value.bias":
            tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor) * 2, tensor.name))
    onnxprune.verify(model, result.model, result.plan)
    with pytest.raises(OnnxPruneError, match="the outputs differ" if what == "other shape" else "law 1"):
        onnxprune.verify(model, bad, result.plan)


@pytest.mark.parametrize("half", ["past", "present", "key"])
def test_half_an_opening_opens_no_heads(half: str) -> None:
    with pytest.raises(NothingToPrune):
        onnxprune.prune(decoder(), ratio=0.5, align=None, open_io=(half,), only=("value",))


def test_a_dynamic_axis_and_an_unknown_shape_stay_closed() -> None:
    model = decoder()
    next(v for v in model.graph.output if v.name == "present.key").type.tensor_type.ClearField("shape")
    opened = analyse(Model.load(model), open_io=("past|present",)).coupling.opened
    assert opened["past.key"] == opened["present.value"] == {1, 3}
    assert opened["present.key"] == frozenset()


def test_an_output_whose_width_has_only_a_name_keeps_it() -> None:
    """Nobody could say in the file that it shrank."""
    b = Builder(3)
    y = b.linear(b.op("Relu", [b.linear("x", "up", 6, 8)], "relu"), "down", 8, 6)
    model = b.model({"x": ["N", 5, 6]}, y)
    dims = model.graph.output[0].type.tensor_type.shape.dim
    for width in ("width", 6):
        dims[2].Clear()
        setattr(dims[2], "dim_param" if isinstance(width, str) else "dim_value", width)
        result = onnxprune.prune(model, ratio=0.5, align=None, open_io=(y,))
        assert ("down.bias" in {c.tensor for c in result.plan.cuts}) == (width == 6)


def test_a_given_input_is_whole_for_the_original_and_cut_for_the_result() -> None:
    rng = np.random.default_rng(1)
    given = {"x": rng.standard_normal((1, 2, MODEL)).astype(np.float32)}
    given |= {n: rng.standard_normal((1, HEADS, 6, WIDTH)).astype(np.float32) for n in CACHES[:2]}
    result = onnxprune.prune(decoder(), ratio=0.5, align=None, open_io=PATTERN, inputs=given)
    assert result.report.law1 is not None
    assert result.report.law1["given_inputs"] == 1


def test_pieces_between_jumps_get_the_kept_slice_too() -> None:
    model = decoder(jump=True)
    result = onnxprune.prune(model, ratio=0.5, align=None, open_io=PATTERN)
    analysis = analyse(Model.load(model), open_io=PATTERN)
    dead = analysis.grouping.dead({g.name: np.array(g.removed_units) for g in result.plan.groups})
    masked, rng = twin(analysis, dead), np.random.default_rng(2)
    feeds = {"x": rng.standard_normal((1, 2, MODEL)).astype(np.float32)}
    feeds |= {n: rng.standard_normal((1, HEADS, PAST, WIDTH)).astype(np.float32) for n in CACHES[:2]}
    case, kept = Case(feeds, open_session(masked).run(feeds)), Kept(analysis.coupling, dead)
    seen = pieces(analysis, kept, (masked, result.pruned), [case], prepack=False)
    assert {*CACHES[2:], "round_out"} <= set(seen)
    assert all(one.error < 1e-6 and not one.void for one in seen.values())
    worse = pieces(analysis, kept, (masked, _louder(result.pruned)), [case], prepack=False)
    assert worse["present.value"].error > 0.01


def _louder(model: Model) -> Model:
    """The same model with twice the bias of the values."""
    other = model.fork()
    other.put("value.bias", 2 * model.weight("value.bias"))
    return other


def test_tensors_inside_are_compared_where_only_inputs_shrink() -> None:
    model = decoder(outputs=())
    (y,) = model.graph.output
    model.graph.node.append(helper.make_node("Mul", [y.name, "zero"], ["nothing"]))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros((), np.float32), "zero"))
    y.name = "nothing"
    result = onnxprune.prune(model, ratio=0.5, align=None, open_io=("past",))
    assert any("outputs say nothing: compared" in note for note in result.report.notes)
    assert shapes(result.model)["past.key"][1] == HEADS // 2


def test_what_matches_nothing_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(UsageError, match=r"'cache' matches no input or output .* there are 'x', 'past\.key'"):
        onnxprune.prune(decoder(), ratio=0.5, open_io=("cache",))
    with pytest.raises(UsageError, match="isn't a regular expression"):
        onnxprune.prune(decoder(), ratio=0.5, open_io=("(",))


@pytest.mark.parametrize("recover", ["lstsq", "blocks"])
def test_layers_are_fitted_on_samples_with_the_inputs_of_before(recover: str) -> None:
    rng = np.random.default_rng(0)
    given = {v.name: v.type.tensor_type.shape.dim for v in decoder().graph.input}
    sizes = {name: [d.dim_value or 4 for d in dims] for name, dims in given.items()}
    samples = [{n: rng.standard_normal(s).astype(np.float32) for n, s in sizes.items()} for _ in range(40)]
    result = onnxprune.prune(
        decoder(), ratio=0.5, align=None, open_io=PATTERN, calib=samples, recover=recover
    )
    assert shapes(result.model)["past.key"][1] == HEADS // 2
    assert result.report.calibration is not None
    assert result.report.calibration["original"]["relative_error"] < 1.0


def test_both_models_are_timed_each_with_its_inputs() -> None:
    model = Model.load(decoder())
    bench = bench_of(model, analyse(model), "cpu", 1, 1)
    half = onnxprune.prune(decoder(), ratio=0.5, align=None, open_io=PATTERN).model
    first, second = (bench.open(Model.load(m)) for m in (decoder(), half))
    assert race(first, second, bench, seconds=0.01).ratio > 0
