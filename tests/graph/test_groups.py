"""Dependency groups of small graphs in which every axis is known by heart."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import parser

import onnxprune
from onnxprune.graph.analysis import Analysis, analyse
from onnxprune.graph.group_types import Group
from onnxprune.model import Model

HEAD = '<ir_version: 9, opset_import: ["" : 18]>'


def model(text: str, **weights: tuple[int, ...]) -> onnx.ModelProto:
    """Parse a graph and add random weights of the given shapes."""
    proto = parser.parse_model(HEAD + text)
    rng = np.random.default_rng(0)
    for name, shape in weights.items():
        proto.graph.initializer.append(
            onnx.numpy_helper.from_array(rng.normal(size=shape).astype(np.float32), name)
        )
    return proto


def study(
    text: str, allow_inexact: bool = False, keep_blocks: bool = True, **weights: tuple[int, ...]
) -> Analysis:
    return analyse(Model.load(model(text, **weights)), allow_inexact=allow_inexact, keep_blocks=keep_blocks)


def groups(analysis: Analysis, alternative: bool = False) -> dict[str, Group]:
    return {g.name: g for g in analysis.grouping.groups if g.alternative == alternative}


def axes(group: Group) -> set[tuple[str, int]]:
    return {(m.tensor, m.axis) for m in group.members}


def test_a_chain_ties_producer_affine_and_consumer() -> None:
    found = groups(
        study(
            """g (float[1,3,8,8] x) => (float[1,4,8,8] y) {
        a = Conv(x, w1, b1)
        n = BatchNormalization(a, s, t, m, v)
        r = Relu(n)
        y = Conv(r, w2)
    }""",
            w1=(6, 3, 1, 1),
            b1=(6,),
            s=(6,),
            t=(6,),
            m=(6,),
            v=(6,),
            w2=(4, 6, 1, 1),
        )
    )
    (group,) = found.values()
    assert (group.name, group.units, group.kind) == ("w1:0", 6, "channels")
    assert axes(group) == {("w1", 0), ("b1", 0), ("s", 0), ("t", 0), ("m", 0), ("v", 0), ("w2", 1)}
    assert {m.tensor: m.contracted for m in group.members} == dict.fromkeys(
        ["w1", "b1", "s", "t", "m", "v"], False
    ) | {"w2": True}
    assert {m.role for m in group.members} == {"weight", "bias", "scale", "mean", "var"}
    np.testing.assert_array_equal(group.params, 3 + 5 + 4)
    np.testing.assert_array_equal(group.macs, 64 * 3 + 64 * 4)


def test_inputs_and_outputs_are_frozen_with_their_reason() -> None:
    analysis = study("g (float[1,3,8,8] x) => (float[1,4,8,8] y) { y = Conv(x, w) }", w=(4, 3, 1, 1))
    reasons = {(f.tensor, f.axis): f.reason for f in analysis.grouping.frozen}
    assert reasons == {("w", 0): "axis of the graph output 'y'", ("w", 1): "axis of the graph input 'x'"}


def test_a_residual_sum_ties_all_that_it_adds() -> None:
    found = groups(
        study(
            """g (float[1,3,8,8] x) => (float[1,4,8,8] y) {
        a = Conv(x, w1)
        b = Conv(a, w2)
        c = Conv(b, w3)
        s = Add(a, c)
        y = Conv(s, w4)
    }""",
            w1=(6, 3, 1, 1),
            w2=(5, 6, 1, 1),
            w3=(6, 5, 1, 1),
            w4=(4, 6, 1, 1),
        )
    )
    assert axes(found["w1:0"]) == {("w1", 0), ("w2", 1), ("w3", 0), ("w4", 1)}
    assert axes(found["w2:0"]) == {("w2", 0), ("w3", 1)}


def test_a_concatenation_keeps_its_parts_apart() -> None:
    found = groups(
        study(
            """g (float[1,3,8,8] x) => (float[1,4,8,8] y) {
        a = Conv(x, w1)
        b = Conv(x, w2)
        c = Concat <axis = 1> (a, b, a)
        y = Conv(c, w3)
    }""",
            w1=(6, 3, 1, 1),
            w2=(5, 3, 1, 1),
            w3=(4, 17, 1, 1),
        )
    )
    first = next(m for m in found["w1:0"].members if m.tensor == "w3")
    np.testing.assert_array_equal(first.index, [*range(6), *range(11, 17)])
    np.testing.assert_array_equal(first.unit, [*range(6), *range(6)])
    assert found["w1:0"].component == found["w2:0"].component


def test_a_grouped_convolution_offers_groups_and_channels_within() -> None:
    text = """g (float[1,3,8,8] x) => (float[1,4,8,8] y) {
        a = Conv(x, w1)
        b = Conv <group = 4> (a, w2)
        y = Conv(b, w3)
    }"""
    weights = {"w1": (8, 3, 1, 1), "w2": (16, 2, 3, 3), "w3": (4, 16, 1, 1)}
    analysis = study(text, **weights)
    (whole,) = groups(analysis).values()
    assert (whole.kind, whole.units) == ("conv groups", 4)
    assert sorted((g.kind, g.units) for g in groups(analysis, True).values()) == [
        ("channels", 2),
        ("channels", 4),
    ]
    within = groups(study(text, keep_blocks=False, **weights))
    assert sorted(g.units for g in within.values()) == [2, 4]


def test_few_groups_are_too_coarse() -> None:
    found = groups(
        study(
            """g (float[1,3,8,8] x) => (float[1,4,8,8] y) {
        a = Conv(x, w1)
        b = Conv <group = 2> (a, w2)
        y = Conv(b, w3)
    }""",
            w1=(8, 3, 1, 1),
            w2=(16, 4, 3, 3),
            w3=(4, 16, 1, 1),
        )
    )
    assert sorted(g.units for g in found.values()) == [4, 8]


def test_a_depthwise_convolution_passes_its_channels() -> None:
    (group,) = groups(
        study(
            """g (float[1,3,8,8] x) => (float[1,4,8,8] y) {
        a = Conv(x, w1)
        b = Conv <group = 8> (a, w2)
        y = Conv(b, w3)
    }""",
            w1=(8, 3, 1, 1),
            w2=(8, 1, 3, 3),
            w3=(4, 8, 1, 1),
        )
    ).values()
    assert axes(group) == {("w1", 0), ("w2", 0), ("w3", 1)}


def test_flatten_multiplies_a_channel_by_its_positions() -> None:
    (group,) = groups(
        study(
            """g (float[1,3,2,2] x) => (float[1,4] y) {
        a = Conv(x, w1)
        f = Flatten(a)
        y = MatMul(f, w2)
    }""",
            w1=(5, 3, 1, 1),
            w2=(20, 4),
        )
    ).values()
    consumer = next(m for m in group.members if m.tensor == "w2")
    np.testing.assert_array_equal(consumer.unit, np.repeat(np.arange(5), 4))


def test_a_channel_shuffle_merges_what_it_mixes() -> None:
    found = groups(
        study(
            """g (float[1,3,8,8] x) => (float[1,4,8,8] y) <int64[5] s = {1,2,3,8,8}, int64[4] t = {1,6,8,8}> {
        a = Conv(x, w1)
        b = Conv(x, w2)
        c = Concat <axis = 1> (a, b)
        d = Reshape(c, s)
        e = Transpose <perm = [0,2,1,3,4]> (d)
        f = Reshape(e, t)
        y = Conv(f, w3)
    }""",
            w1=(3, 3, 1, 1),
            w2=(3, 3, 1, 1),
            w3=(4, 6, 1, 1),
        )
    )
    (group,) = found.values()
    assert group.units == 3
    consumer = next(m for m in group.members if m.tensor == "w3")
    np.testing.assert_array_equal(consumer.unit, [0, 0, 1, 1, 2, 2])


ATTENTION = """g (float[1,5,12] x) => (float[1,5,12] y)
    <int64[4] split = {1,5,%(heads)d,%(width)d}, int64[3] merge = {1,5,%(all)d}> {
        q = MatMul(x, wq)
        k = MatMul(x, wk)
        v = MatMul(x, wv)
        q1 = Reshape(q, split)
        k1 = Reshape(k, split)
        v1 = Reshape(v, split)
        q2 = Transpose <perm = [0,2,1,3]> (q1)
        k2 = Transpose <perm = [0,2,3,1]> (k1)
        v2 = Transpose <perm = [0,2,1,3]> (v1)
        s = MatMul(q2, k2)
        p = Softmax(s)
        o = MatMul(p, v2)
        o1 = Transpose <perm = [0,2,1,3]> (o)
        o2 = Reshape(o1, merge)
        y = MatMul(o2, wo)
    }"""


def attention(heads: int, width: int) -> Analysis:
    everything = heads * width
    text = ATTENTION % {"heads": heads, "width": width, "all": everything}
    return study(text, wq=(12, everything), wk=(12, everything), wv=(12, everything), wo=(everything, 12))


def test_attention_has_heads_by_default_and_head_widths_beside() -> None:
    analysis = attention(4, 3)
    (heads,) = groups(analysis).values()
    assert (heads.kind, heads.units) == ("heads", 4)
    assert axes(heads) == {("wq", 1), ("wk", 1), ("wv", 1), ("wo", 0)}
    beside = {g.kind + str(sorted(axes(g))): g.units for g in groups(analysis, True).values()}
    assert beside == {
        "head width[('wk', 1), ('wq', 1)]": 3,
        "head width[('wo', 0), ('wv', 1)]": 3,
    }


def test_two_heads_are_too_coarse() -> None:
    assert {g.kind for g in groups(attention(2, 6)).values()} == {"head width"}


def test_a_weight_that_is_reshaped_on_the_way_is_no_activation() -> None:
    """A classifier whose weight is kept as pictures: no heads, though both sides of the product are computed."""
    text = """g (float[5,3] x) => (float[5,6] y) {
        shape = Constant<value = int64[2] {8, 6}>()
        a = MatMul(x, w1)
        b = Relu(a)
        flat = Reshape(w2, shape)
        y = MatMul(b, flat)
    }"""
    (group,) = groups(study(text, w1=(3, 8), w2=(8, 2, 3))).values()
    assert (group.kind, group.units) == ("channels", 8)


def test_layer_norm_freezes_the_residual_width_unless_inexact_is_allowed() -> None:
    text = """g (float[1,5,3] x) => (float[1,5,4] y) {
        a = MatMul(x, w1)
        n = LayerNormalization(a, s, b)
        y = MatMul(n, w2)
    }"""
    weights = {"w1": (3, 6), "s": (6,), "b": (6,), "w2": (6, 4)}
    analysis = study(text, **weights)
    assert not analysis.grouping.groups
    assert all(
        "averages over" in f.reason
        for f in analysis.grouping.frozen
        if f.tensor in ("w1", "s", "b") and f.axis != 0
    )
    (group,) = groups(study(text, allow_inexact=True, **weights)).values()
    assert group.inexact
    assert group.units == 6


def test_an_unknown_op_freezes_its_axes_and_says_so() -> None:
    proto = parser.parse_model("""<ir_version: 9, opset_import: ["" : 18, "my" : 1]>
        g (float[1,3,8,8] x) => (float[1,4,8,8] y) { a = Conv(x, w1)
        b = my.Op(a)
        y = Conv(b, w2) }""")
    rng = np.random.default_rng(0)
    for name, shape in {"w1": (6, 3, 1, 1), "w2": (4, 6, 1, 1)}.items():
        proto.graph.initializer.append(
            onnx.numpy_helper.from_array(rng.normal(size=shape).astype(np.float32), name)
        )
    analysis = analyse(Model.load(proto))
    assert not analysis.grouping.groups
    assert any(
        "no row for my::Op" in f.reason for f in analysis.grouping.frozen if (f.tensor, f.axis) == ("w1", 0)
    )


@pytest.mark.parametrize(
    ("body", "weight", "says"),
    [
        ("z = Unique(a)", "w1", "which elements there are follows from all of them"),
        ("z = Trilu(a)\n d = Det(z)", "w1", "Trilu works along it"),
        ("z = Resize(a, empty, by)", "by", "it sets what Resize"),
    ],
)
def test_reasons_say_why(body: str, weight: str, says: str) -> None:
    text = f"g (float[6,3] x) => (float[6,6] a, float[n] z) {{ a = MatMul(x, w1)\n {body} }}"
    found = study(text, w1=(3, 6), by=(2,), empty=(0,)).grouping.frozen
    assert any(says in f.reason for f in found if f.tensor == weight), found
    assert not any("must not" in f.reason for f in found)


def test_two_channels_stay_where_a_squeeze_would_take_the_last_one() -> None:
    text = """g (float[n,3,4,4] x) => (float[n,5] y) {
        a = Conv(x, w1)
        p = GlobalAveragePool(a)
        s = Squeeze(p)
        y = MatMul(s, w2)
    }"""
    weights = {"w1": (6, 3, 1, 1), "w2": (6, 5)}
    (group,) = groups(study(text, **weights)).values()
    assert (group.units, group.least) == (6, 2)
    cuts = onnxprune.plan(model(text, **weights), ratio=0.9, align=None).cuts
    assert {len(cut.removed) for cut in cuts} == {4}
    (other,) = groups(study(text.replace("Squeeze(p)", "Flatten(p)"), **weights)).values()
    assert other.least == 1


def test_a_shared_vector_does_not_couple_its_readers() -> None:
    found = groups(
        study(
            """g (float[1,3,8,8] x) => (float[1,4,8,8] y) {
        a = Conv(x, w1, b)
        c = Conv(a, w2, b)
        y = Conv(c, w3)
    }""",
            w1=(6, 3, 1, 1),
            w2=(6, 6, 1, 1),
            w3=(4, 6, 1, 1),
            b=(6,),
        )
    )
    assert sorted(found) == ["w1:0", "w2:0"]


def test_a_shared_matrix_is_cut_once_for_all_its_readers() -> None:
    found = groups(
        study(
            """g (float[1,3] x) => (float[1,3] y) {
        a = MatMul(x, w1)
        b = MatMul(a, w)
        c = Relu(b)
        d = MatMul(c, w)
        y = MatMul(d, w2)
    }""",
            w1=(3, 6),
            w=(6, 6),
            w2=(6, 3),
        )
    )
    (group,) = found.values()
    assert axes(group) == {("w1", 1), ("w", 0), ("w", 1), ("w2", 0)}


def test_dead_refuses_to_empty_an_axis() -> None:
    grouping = attention(4, 3).grouping
    name = next(g.name for g in grouping.groups if g.kind == "heads")
    with pytest.raises(ValueError, match="elements of an axis would go"):
        grouping.dead({name: range(4)})


def test_a_table_with_one_long_axis_is_a_list_of_indices() -> None:
    """The newer PyTorch exporter writes as_strided this way after a global pooling."""
    text = """g (float[1,3,4,4] x) => (float[1,4] y)
        <int64[1] all = {-1}, int64[1,5,1,1] table = {4,3,2,1,0}, int64[2] flat = {1,5}> {
        a = Conv(x, w1)
        p = GlobalAveragePool(a)
        f = Reshape(p, all)
        t = Gather(f, table)
        r = Reshape(t, flat)
        y = MatMul(r, w2)
    }"""
    analysis = study(text, w1=(5, 3, 1, 1), w2=(5, 4))
    (group,) = groups(analysis).values()
    consumer = next(m for m in group.members if m.tensor == "w2")
    np.testing.assert_array_equal(consumer.unit, [4, 3, 2, 1, 0])
    import onnxprune

    result = onnxprune.prune(model(text, w1=(5, 3, 1, 1), w2=(5, 4)), ratio=0.5, align="none")
    assert result.report.law1["max_relative_error"] < 1e-5
    assert result.report.after.parameters < result.report.before.parameters
