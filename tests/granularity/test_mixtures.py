"""Experts go exactly: the router's scores of those that go are the least number in the original."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from expert_models import CHOSEN, EXPERTS, FORMS, ROUTERS, mixture, switch

import onnxprune
from onnxprune.errors import NothingToPrune, PlanError, UsageError
from onnxprune.granularity import experts
from onnxprune.graph.analysis import Analysis, analyse
from onnxprune.graph.choices import opened
from onnxprune.latency.predict import cut_by_state, widths
from onnxprune.model import Model
from onnxprune.proof.compare import compare
from onnxprune.proof.verify import verify
from onnxprune.pruning.plan import Plan
from onnxprune.runtime.session import open_session

#: Forms in which each expert has nodes and weights of its own.
ALONE = {"written_out", "compared"}
#: Numbers of tokens.
LENGTHS = (1, 5, 33)


def run(model: Model, tokens: int) -> np.ndarray:
    x = np.random.default_rng(tokens).standard_normal((tokens, 5)).astype(np.float32)
    return next(iter(open_session(model).run({"x": x}).values()))


def analysed(form: str, kind: str = ROUTERS[0]) -> Analysis:
    return analyse(Model.load(mixture(form, kind)))


@pytest.mark.parametrize("kind", ROUTERS)
@pytest.mark.parametrize("form", FORMS)
def test_half_of_the_experts_go_exactly(form: str, kind: str) -> None:
    analysis = analysed(form, kind)
    (group,) = experts.groups(analysis)
    assert (group.units, group.least, group.kind) == (EXPERTS, CHOSEN, "experts")
    gone = {group.name: np.array([0, 2, 5])}
    masked, cut = experts.masked(analysis, gone), experts.cut(analysis, gone)
    others = experts.masked(analysis, {group.name: np.array([0, 2, 4])})
    differs = 0
    for tokens in LENGTHS:
        assert compare(run(masked, tokens), run(cut.model, tokens)).error < 1e-5
        differs += compare(run(others, tokens), run(cut.model, tokens)).error > 1e-2
        assert compare(run(analysis.model, tokens), run(cut.model, tokens)).error > 1e-2 or tokens == 1
    assert differs, "which experts go says nothing"
    assert verify(analysis, cut.dead, cut.model, masked=masked).passed
    assert verify(analysis, cut.dead, cut.model, masked=others).status == "failed"
    stacks = {m.tensor for m in group.members if m.tensor.endswith((".up", ".down"))}
    assert len(stacks) == 2 * (form not in ALONE)
    assert all(cut.model.info(name).dims[0] == EXPERTS - 3 for name in stacks)
    own = {m.tensor: {*m.unit.tolist()} for m in group.members if ".experts." in m.tensor}
    assert len(own) == 3 * EXPERTS * (form in ALONE)
    assert all((name in cut.model) == units.isdisjoint({0, 2, 5}) for name, units in own.items())
    assert len(set(group.params.tolist())) == 1


def test_a_chosen_expert_says_something_and_one_that_never_is_says_nothing() -> None:
    analysis = analysed("stacked", "choice, softmax")
    model, (group,) = analysis.model, experts.groups(analysis)
    bias = next(m.tensor for m in group.members if m.role == "bias")
    quiet = model.fork()
    quiet.put(bias, np.array([0, 0, 0, -100, 0, 0], np.float32))  # nobody chooses the fourth
    analysis = analyse(quiet)
    change = {}
    for unit in (2, 3):
        cut = experts.cut(analysis, {group.name: np.array([unit])}).model
        change[unit] = compare(run(quiet, 33), run(cut, 33)).error
    assert change[3] < 1e-6 < 1e-2 < change[2]


def test_as_many_stay_as_are_chosen(tmp_path: Path) -> None:
    analysis = analysed("fused")
    (group,) = experts.groups(analysis)
    for side in (experts.masked, experts.cut):
        with pytest.raises(ValueError, match="1 of 6 experts would be left, and 2 are chosen"):
            side(analysis, {group.name: np.arange(5)})
    with pytest.raises(
        UsageError, match=r"would leave 1 of the 6 experts .* chooses 2; ask for at most 0.66"
    ):
        onnxprune.prune(mixture("fused"), ratio=0.9, granularity="experts")
    onnx.save(mixture("fused"), tmp_path / "in.onnx")
    made = onnxprune.plan(tmp_path / "in.onnx", ratio=0.5, granularity="experts")
    values = json.loads(made.dumps())
    values["cuts"], values["groups"][0]["removed_units"] = [], [0, 1, 2, 3, 4]
    with pytest.raises(PlanError, match="1 of 6 experts would be left"):
        onnxprune.apply(tmp_path / "in.onnx", Plan.loads(json.dumps(values)), tmp_path / "out.onnx")


def test_a_budget_leaves_as_many_as_are_chosen() -> None:
    result = onnxprune.prune(mixture(), target=("params=0.7",), granularity="experts")
    (target,) = result.report.targets
    assert target["holds"]
    assert target["got"] < 0.7 * result.report.before.parameters
    (planned,) = result.plan.groups
    assert 0 < len(planned.removed_units) <= EXPERTS - CHOSEN
    with pytest.raises(NothingToPrune):
        onnxprune.prune(mixture(), target=("params=0.2",), granularity="experts")


def test_widths_that_are_timed_keep_as_many_as_are_chosen() -> None:
    analysis = opened(analyse(Model.load(mixture(layers=2))))
    groups = [g for g in analysis.grouping.groups if not g.alternative]
    states = widths(groups, 16, 0, points=12)
    deepest = [max(state.get(g.name, 0) for state in states) for g in groups if g.kind == "experts"]
    assert deepest == [EXPERTS - CHOSEN] * 2
    assert len({state.get("layers.0.router.weight:1", 0) for state in states}) > 2
    for state in states[1:]:
        cut_by_state(analysis, state)


def test_a_plan_says_which_experts_go(tmp_path: Path) -> None:
    onnx.save(mixture("dense", layers=2), tmp_path / "in.onnx")
    result = onnxprune.prune(tmp_path / "in.onnx", tmp_path / "out.onnx", ratio=0.5, granularity="experts")
    assert {g.name: len(g.removed_units) for g in result.plan.groups} == {
        "layers.0.router.weight:1": 3,
        "layers.1.router.weight:1": 3,
    }
    made = onnxprune.plan(tmp_path / "in.onnx", ratio=0.5, granularity="experts")
    assert made.granularity == ("experts",)
    onnxprune.apply(tmp_path / "in.onnx", Plan.loads(made.dumps()), tmp_path / "applied.onnx")
    assert (tmp_path / "out.onnx").read_bytes() == (tmp_path / "applied.onnx").read_bytes()
    onnxprune.verify(tmp_path / "in.onnx", tmp_path / "out.onnx", plan=made)


def test_experts_and_channels_go_together() -> None:
    kinds = {
        name: {
            g["kind"]
            for g in onnxprune.prune(mixture(layers=2), ratio=0.5, align=None, granularity=name).report.groups
        }
        for name in ("channels", "experts", "channels,experts")
    }
    assert kinds["experts"] == {"experts"}
    assert "experts" not in kinds["channels"]
    assert kinds["channels,experts"] == kinds["channels"] | {"experts"}


def test_only_and_ignore_choose_layers() -> None:
    more = {"ratio": 0.5, "granularity": "experts"}
    for words in ({"only": ("layers.1",)}, {"ignore": ("layers.0",)}):
        plan = onnxprune.plan(mixture(layers=2), **more, **words)
        assert [g.name for g in plan.groups if g.removed_units] == ["layers.1.router.weight:1"]


def test_what_is_chosen_must_not_be_read_otherwise() -> None:
    model = mixture()
    model.graph.output.append(
        onnx.helper.make_tensor_value_info("layers.0.topk_out1", onnx.TensorProto.INT64, None)
    )
    with pytest.raises(NothingToPrune, match=r"'layers\.0\.topk_out1' says which are chosen"):
        onnxprune.prune(model, ratio=0.5, granularity="experts")
    model = mixture()
    model.graph.node.append(onnx.helper.make_node("Neg", ["layers.0.topk_out1"], ["negative"], "negative"))
    model.graph.output.append(onnx.helper.make_tensor_value_info("negative", onnx.TensorProto.INT64, None))
    with pytest.raises(NothingToPrune, match="Neg 'negative' reads the numbers"):
        onnxprune.prune(model, ratio=0.5, granularity="experts")


def test_scores_that_are_read_one_by_one_stay() -> None:
    """The score of an expert that isn't chosen is no zero."""
    model = mixture("compared")
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(2, np.int64), "two"))
    model.graph.node.append(
        onnx.helper.make_node("Gather", ["layers.0.softmax_out", "two"], ["third"], "pick", axis=1)
    )
    model.graph.output.append(onnx.helper.make_tensor_value_info("third", onnx.TensorProto.FLOAT, None))
    with pytest.raises(NothingToPrune, match="Gather 'pick'"):
        onnxprune.prune(model, ratio=0.5, granularity="experts")


@pytest.mark.parametrize("form", sorted(ALONE))
def test_what_an_expert_leaves_behind_must_be_nothing(form: str) -> None:
    """Something else than a sum reads what one expert gives: it isn't known what that is when nobody chooses it."""
    model = mixture(form)
    name = "layers.0.experts.3.weighed_out" if form == "written_out" else "layers.0.experts.3.share_out"
    model.graph.node.append(onnx.helper.make_node("Exp", [name], ["grown"], "exp"))
    model.graph.output.append(onnx.helper.make_tensor_value_info("grown", onnx.TensorProto.FLOAT, None))
    with pytest.raises(NothingToPrune, match="what expert 3 gives where it isn't chosen isn't known"):
        onnxprune.prune(model, ratio=0.5, granularity="experts")


def test_what_is_taken_from_nothing_is_no_sum() -> None:
    """Where zeros are added the other goes through; where something is taken from zeros its negative does."""
    model = mixture("compared")
    (node,) = (n for n in model.graph.node if n.name == "layers.0.experts.3.sum")
    node.op_type, node.input[:] = "Sub", list(node.input)
    onnxprune.prune(model, ratio=0.5, granularity="experts")
    node.input[:] = list(node.input)[::-1]
    with pytest.raises(NothingToPrune, match="what expert 3 gives where it isn't chosen isn't known"):
        onnxprune.prune(model, ratio=0.5, granularity="experts")


@pytest.mark.parametrize(("points", "known"), [((3, 3), True), ((3, 5), False)])
def test_quantised_zeros_are_zeros_by_the_same_zero_point(points: tuple[int, int], known: bool) -> None:
    model = mixture("compared")
    (node,) = (n for n in model.graph.node if n.name == "layers.0.experts.3.sum")
    name, at = node.input[1], list(model.graph.node).index(node)
    arrays = {"scale": np.float32(0.1), "one": np.int8(points[0]), "other": np.int8(points[1])}
    model.graph.initializer.extend(onnx.numpy_helper.from_array(np.asarray(a), n) for n, a in arrays.items())
    model.graph.node.insert(at, onnx.helper.make_node("QuantizeLinear", [name, "scale", "one"], ["q"], "q"))
    model.graph.node.insert(
        at + 1, onnx.helper.make_node("DequantizeLinear", ["q", "scale", "other"], ["d"], "d")
    )
    model.graph.node[at + 2].input[1] = "d"
    if known:
        assert (
            onnxprune.prune(model, ratio=0.5, granularity="experts").report.law1["max_relative_error"] < 1e-5
        )
        return
    with pytest.raises(NothingToPrune, match="what expert 3 gives where it isn't chosen isn't known"):
        onnxprune.prune(model, ratio=0.5, granularity="experts")


def test_experts_of_their_own_weights_count_in_budgets_and_ranks() -> None:
    model = mixture("compared", layers=2)
    for tensor in model.graph.initializer:  # the second half of the first layer's experts are small
        if (
            tensor.name.startswith(tuple(f"layers.0.experts.{n}." for n in (3, 4, 5)))
            and "number" not in tensor.name
        ):
            tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor) / 9, tensor.name))
    result = onnxprune.prune(model, target=("params=0.6",), granularity="experts")
    (target,) = result.report.targets
    assert target["holds"]
    assert result.report.after.macs < 0.8 * result.report.before.macs
    assert result.report.after.memory < result.report.before.memory
    first = onnxprune.prune(model, ratio=0.5, granularity="experts", only=("layers.0",))
    (gone,) = (g.removed_units for g in first.plan.groups if g.removed_units)
    assert gone == (3, 4, 5)


def test_where_all_are_chosen_none_can_go() -> None:
    model = mixture("one_hot")
    (k,) = (t for t in model.graph.initializer if t.name == "layers.0.k")
    k.CopyFrom(onnx.numpy_helper.from_array(np.array([EXPERTS], np.int64), k.name))
    with pytest.raises(
        NothingToPrune, match="None of the model's experts can go: all of its 6 experts are chosen"
    ):
        onnxprune.prune(model, ratio=0.5, granularity="experts")


def test_a_model_without_experts_says_so() -> None:
    model = onnx.shape_inference.infer_shapes(mixture())
    onnxprune.prune(model, ratio=0.5, granularity="experts")
    b = [n for n in model.graph.node if n.op_type == "TopK"]
    assert b
    from small_models import chain

    with pytest.raises(NothingToPrune, match="The model has no experts"):
        onnxprune.prune(chain(), ratio=0.5, granularity="experts")
    with pytest.raises(UsageError, match="got 'expert'"):
        onnxprune.prune(chain(), ratio=0.5, granularity="expert")


def test_a_choice_that_picks_no_weights_is_no_router() -> None:
    """The greatest of some values, such as the classes of an answer."""
    model = mixture()
    k = onnx.numpy_helper.from_array(np.array([2], np.int64), "two")
    model.graph.initializer.append(k)
    model.graph.node.append(
        onnx.helper.make_node("TopK", [model.graph.output[0].name, "two"], ["best", "which"], "classes")
    )
    model.graph.output[0].name = "best"
    analysis = opened(analyse(Model.load(onnx.shape_inference.infer_shapes(model))))
    assert [g.name for g in analysis.grouping.groups if g.kind == "experts"] == ["layers.0.router.weight:1"]


def test_one_expert_for_each_token_weighed_by_the_greatest_share() -> None:
    """The greatest of several shares is that of the others where one is none; the least isn't."""
    analysis = analyse(Model.load(switch()))
    (group,) = experts.groups(analysis)
    assert (group.units, group.least) == (EXPERTS, 1)
    gone = {group.name: np.array([0, 2, 3, 5])}
    masked, cut = experts.masked(analysis, gone), experts.cut(analysis, gone)
    for tokens in LENGTHS:
        assert compare(run(masked, tokens), run(cut.model, tokens)).error < 1e-5
        assert compare(run(analysis.model, tokens), run(cut.model, tokens)).error > 1e-3 or tokens == 1
    assert verify(analysis, cut.dead, cut.model, masked=masked).passed
    with pytest.raises(NothingToPrune, match="a minimum is taken over it"):
        onnxprune.prune(switch("ReduceMin"), ratio=0.5, granularity="experts")
