"""Groups in another basis: the same outputs, the strongest axes first, and nothing that isn't linear inside."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import build, node, normal
from numpy.typing import NDArray

import onnxprune
from onnxprune import api
from onnxprune.calibration.agreement import outputs
from onnxprune.calibration.samples import Samples, load_samples
from onnxprune.graph.analysis import Analysis, analyse
from onnxprune.graph.select import pick
from onnxprune.model import Model
from onnxprune.ops import traits_of
from onnxprune.proof.compare import compare
from onnxprune.reconstruction.evidence import typical
from onnxprune.reconstruction.layers import readers, sites
from onnxprune.reconstruction.products import Mixable
from onnxprune.rotation import basis
from onnxprune.rotation import products as _products
from onnxprune.rotation.basis import Rotated, rotate
from onnxprune.rotation.linear import _treats_alike, find, widths_for_heads
from onnxprune.rotation.products import products

Weights = dict[str, NDArray[Any]]
WIDTH, TOKENS = 16, 5


def attention(
    heads: int = 2,
    units: int = 8,
    *,
    keys: int | None = None,
    between: str = "",
    bias: bool = False,
    rank: int | None = None,
    turned: bool = False,
    after: str = "",
) -> onnx.ModelProto:
    """Attention over x, then a layer; fewer heads of keys and values are repeated.

    ``between`` is an op that queries go through, ``after`` one of values; ``rank`` limits what queries and keys
    depend on; ``turned`` gives keys and values to the heads of queries in another order.
    """
    keys = keys or heads
    weights: Weights = {"o": normal(heads * units, WIDTH, seed=3), "join": np.array([0, 0, heads * units])}
    nodes: list[onnx.NodeProto] = []
    for n, (name, mine) in enumerate((("q", heads), ("k", keys), ("v", keys))):
        weights[name] = normal(WIDTH, mine * units, seed=n) * 3
        if rank is not None and name == "q":
            weights[name] = np.tile(weights[name][:, :rank], mine * units)[:, : mine * units]
        weights[f"{name}split"] = np.array([0, 0, mine, units])
        y = f"{name}1"
        nodes.append(node("MatMul", f"x {name}", y))
        if bias:
            weights[f"{name}b"] = normal(mine * units, seed=n + 9)
            nodes.append(node("Add", f"{y} {name}b", f"{name}2"))
            y = f"{name}2"
        nodes.append(node("Reshape", f"{y} {name}split", f"{name}3"))
        nodes.append(node("Transpose", f"{name}3", f"{name}4", perm=[0, 2, 1, 3]))
    q, k, v = "q4", "k4", "v4"
    if keys != heads:
        for name in "kv":
            weights["repeat"] = np.arange(heads) // (heads // keys)
            nodes.append(node("Gather", f"{name}4 repeat", f"{name}5", axis=1))
        k, v = "k5", "v5"
    if turned:
        weights["other"] = np.arange(heads)[::-1].copy()
        nodes.append(node("Gather", f"{k} other", "k6", axis=1))
        k = "k6"
    if after:
        nodes.append(node(after, v, "v7"))
        v = "v7"
    if between == "Mul":
        weights["angle"] = normal(units)
        nodes.append(node("Mul", f"{q} angle", "q6"))
    elif between:
        nodes.append(node(between, q, "q6"))
    weights["scale"] = np.float32(units**-0.5)
    nodes += [
        node("Mul", ("q6" if between else q) + " scale", "q7"),
        node("Transpose", k, "k7", perm=[0, 1, 3, 2]),
        node("MatMul", "q7 k7", "l"),
        node("Softmax", "l", "p"),
        node("MatMul", f"p {v}", "c"),
        node("Transpose", "c", "c2", perm=[0, 2, 1, 3]),
        node("Reshape", "c2 join", "c3"),
        node("MatMul", "c3 o", "y"),
    ]
    return build(nodes, weights, ("N", TOKENS, WIDTH))


def bottleneck(between: str = "Add") -> onnx.ModelProto:
    """Linear bottlenecks with a residual sum, as in MobileNetV2, of rank 4 of 12 where it is read."""
    weights = {"a": normal(12, 3, 1, 1), "ab": normal(12), "b": normal(24, 12, 1, 1), "bb": normal(24)}
    weights |= {"c": normal(12, 24, 1, 1), "d": normal(6, 12, 3, 3), "db": normal(6)}
    mix = normal(12, 12)[:, :4] @ normal(4, 12)
    weights["b"], weights["d"] = (np.einsum("oikl,ij->ojkl", weights[n], mix) for n in "bd")
    nodes = [
        node("Conv", "x a ab", "s"),
        node("Conv", "s b bb", "e"),
        node("Relu", "e", "r"),
        node("Conv", "r c", "t"),
        node("Add", "s t", "u"),
        *([] if between == "Add" else [node(between, "u", "v")]),
        node("Conv", ("u" if between == "Add" else "v") + " d db", "h"),
        node("Relu", "h", "y"),
    ]
    return build(nodes, weights, ("N", 3, 6, 6))


def study(proto: onnx.ModelProto, n: int = 40) -> tuple[Analysis, Samples]:
    model = Model.load(proto)
    shape = [d.dim_value or n for d in proto.graph.input[0].type.tensor_type.shape.dim]
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    x *= np.linspace(0.2, 2.0, x.shape[-1], dtype=np.float32)
    analysis = analyse(model)
    return analysis, load_samples(model.proto.graph, {"x": x}, types=analysis.inputs)


def every(analysis: Analysis) -> list[Mixable]:
    layers, groups = sites(analysis), pick(analysis.grouping, (), ())
    return find(analysis, groups, layers, readers(layers, groups))


def turned(proto: onnx.ModelProto) -> tuple[Analysis, Samples, Rotated]:
    analysis, samples = study(proto)
    return analysis, samples, rotate(analysis, analysis.grouping.groups, samples)


def gap(analysis: Analysis, samples: Samples, rotated: Rotated) -> float:
    one, two = (outputs(a.model, samples) for a in (analysis, rotated.analysis))
    return compare(one, two).error


@settings(max_examples=15, deadline=None)
@given(
    heads=st.sampled_from([1, 2, 4]),
    units=st.integers(2, 6),
    shared=st.booleans(),
    bias=st.booleans(),
)
def test_the_model_computes_what_it_did(heads: int, units: int, shared: bool, bias: bool) -> None:
    proto = attention(heads, units, keys=max(heads // 2, 1) if shared else None, bias=bias)
    analysis, samples, rotated = turned(proto)
    assert not rotated.refused
    assert sorted(m.product >= 0 for m in rotated.mixed) == [False, True]
    assert gap(analysis, samples, rotated) < 1e-5
    for mixable in rotated.mixed:
        for side in mixable.makers:
            old, new = (a.model.weight(side.site.weight) for a in (analysis, rotated.analysis))
            assert not np.allclose(old, new)
        if mixable.product >= 0:
            strength = rotated.strength[mixable.group]
            assert (np.diff(strength) <= 1e-9 * strength[0]).all()


def test_one_layer_may_make_queries_keys_and_values() -> None:
    weights = {
        "w": normal(WIDTH, 24),
        "wb": normal(24),
        "split": np.array([0, 0, 3, 2, 4]),
        "o": normal(8, 5),
    }
    weights |= {"join": np.array([0, 0, 8])} | {str(i): np.array(i) for i in range(3)}
    nodes = [
        node("MatMul", "x w", "a"),
        node("Add", "a wb", "b"),
        node("Reshape", "b split", "c"),
        node("Transpose", "c", "d", perm=[2, 0, 3, 1, 4]),
        *(node("Gather", f"d {i}", n, axis=0) for i, n in enumerate("qkv")),
        node("Transpose", "k", "kt", perm=[0, 1, 3, 2]),
        node("MatMul", "q kt", "l"),
        node("Softmax", "l", "p"),
        node("MatMul", "p v", "e"),
        node("Transpose", "e", "f", perm=[0, 2, 1, 3]),
        node("Reshape", "f join", "g"),
        node("MatMul", "g o", "y"),
    ]
    analysis, samples, rotated = turned(build(nodes, weights, ("N", TOKENS, WIDTH)))
    assert sorted(m.product >= 0 for m in rotated.mixed) == [False, True]
    assert gap(analysis, samples, rotated) < 1e-5


def test_few_axes_hold_what_is_read() -> None:
    _, _, rotated = turned(bottleneck())
    (mixable,) = rotated.mixed
    for side in mixable.right:  # what the first four axes can't say, no reader asks
        weight = rotated.analysis.model.weight(side.site.weight)
        assert np.abs(weight[:, 4:]).max() < 1e-4 * np.abs(weight).max()
    _, _, rotated = turned(attention(2, 8, rank=2))
    (strength,) = rotated.strength.values()
    assert strength[2] < 1e-3 * strength[0]


def test_curves_of_products_are_what_silence_does() -> None:
    analysis, samples, rotated = turned(attention(2, 8))
    (name,) = rotated.strength
    curve = products(rotated, samples, sites(analysis), 0.1)[name].curve
    assert curve.order.tolist() == list(range(8))[::-1]
    assert curve.error[0] == 0
    assert (np.diff(curve.error[:8]) >= 0).all()
    assert np.isinf(curve.error[8])
    model = rotated.analysis.model.fork()
    weight = model.weight("q").copy().reshape(WIDTH, 2, 8)
    weight[:, :, 4:] = 0
    model.put("q", weight.reshape(WIDTH, 16))
    dense, cut = outputs(analysis.model, samples), outputs(model, samples)
    whole = dense.reshape(-1, WIDTH)
    assert curve.error[4] == pytest.approx(
        np.sum((dense - cut) ** 2) / len(whole) / typical(whole.var(axis=0)), rel=1e-3
    )


def test_products_are_measured_on_so_many_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    analysis, samples, rotated = turned(attention(2, 8))
    (name,), layers, pieces = rotated.strength, sites(analysis), samples.cut_into(4)
    assert len(pieces.batches) > 2
    every = products(rotated, pieces, layers, 0.1)[name].curve.error
    first = products(rotated, pieces.some(0, 1), layers, 0.1)[name].curve.error
    assert not np.allclose(every, first)
    monkeypatch.setattr(_products, "ROWS", 1)
    np.testing.assert_array_equal(products(rotated, pieces, layers, 0.1)[name].curve.error, first)


@pytest.mark.parametrize("between", ["Relu", "Mul", "Softmax"])
def test_what_isnt_linear_or_tells_units_apart_stays(between: str) -> None:
    analysis, _ = study(attention(2, 8, between=between))
    plain, _ = study(attention(2, 8))
    assert len(every(plain)) == 2
    assert all(m.product < 0 for m in every(analysis))


@pytest.mark.parametrize(
    ("op", "inside", "other", "alike"),
    [
        ("Reshape", [True, False], (3,), True),
        ("Reshape", [False, True], (3,), False),
        ("Gather", [True, True], (3,), False),
        ("Mul", [True, False], (), True),
        ("Div", [True, False], (1,), True),
        ("Mul", [True, False], (2, 1, 1), False),
        ("Mul", [True, True], (), False),
        ("Relu", [True], (), False),
    ],
)
def test_a_node_treats_units_alike_if_only_its_data_and_a_single_number_have_a_part(
    op: str, inside: list[bool], other: tuple[int, ...], alike: bool
) -> None:
    node = SimpleNamespace(domain="", op=op, shapes=[(2, 5, 8), other], traits=traits_of(op))
    applied: Any = SimpleNamespace(node=node)
    assert _treats_alike(applied, inside, outside=True) is alike


def test_a_stream_with_something_between_stays() -> None:
    assert len(every(study(bottleneck())[0])) == 1
    assert not every(study(bottleneck("Relu"))[0])


@pytest.mark.parametrize("sizes", ["given", "all"])
def test_heads_that_are_paired_otherwise_are_found_out(sizes: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the samples already; those of another form than the inputs' aren't tried at other sizes."""
    if sizes == "given":
        monkeypatch.setattr(basis._Same, "_elsewhere", lambda *_: (0.0, ""))
    analysis, samples, rotated = turned(attention(2, 8, turned=True))
    assert len(rotated.refused) == 1
    assert "differs by" in next(iter(rotated.refused.values()))
    assert gap(analysis, samples, rotated) < 1e-5


def test_heads_go_whole_where_their_widths_turn_out_not_to_be_turned() -> None:
    x = np.random.default_rng(1).standard_normal((60, TOKENS, WIDTH)).astype(np.float32)

    def cut(turned: bool) -> list[tuple[int, int]]:
        found = onnxprune.prune(attention(4, 8, turned=turned), ratio=0.5, align=None, calib={"x": x}).report
        return sorted((g["units"], g["removed"]) for g in found.groups if g["removed"])

    assert cut(turned=False) == [(8, 4), (8, 4)]
    assert cut(turned=True) == [(4, 2)]


def test_pruning_takes_the_axes_that_nothing_needs() -> None:
    proto = attention(2, 8, rank=2)
    x = np.random.default_rng(1).standard_normal((120, TOKENS, WIDTH)).astype(np.float32)
    found = {
        rotate: onnxprune.prune(
            proto, ratio=0.5, align=None, calib={"x": x}, rotate=rotate, recover="lstsq"
        ).report.to_json()
        for rotate in (True, False)
    }
    with_turn, without = (found[r]["calibration"]["original"]["relative_error"] for r in (True, False))
    kept = {g["name"]: g["removed"] for g in found[True]["groups"]}
    assert sorted(kept.values()) == [4, 4]
    assert with_turn < 0.8 * without
    assert found[False]["calibration"]["rotated"]["groups"] == []


def test_head_widths_take_the_place_of_heads_where_they_can_be_turned() -> None:
    def kinds(proto: onnx.ModelProto, align: int = 1, ignore: tuple[str, ...] = ()) -> set[str]:
        analysis, _ = study(proto)
        groups = pick(analysis.grouping, ignore, ())
        return {g.kind for g in widths_for_heads(analysis, groups, ignore, align)}

    assert kinds(attention(4, 8)) == kinds(attention(4, 8), 4) == {"head width"}
    assert kinds(attention(4, 8), 8) == {"heads"}
    assert kinds(attention(4, 8, between="Relu")) == {"heads"}
    assert kinds(attention(4, 8), ignore=("^v$",)) == set()
    assert kinds(attention(4, 8, after="LogSoftmax")) == {"heads"}  # the width of queries alone is little


def test_a_comparison_that_says_nothing_turns_nothing() -> None:
    proto = attention(2, 8)
    for weight in proto.graph.initializer:
        if weight.name == "o":
            weight.CopyFrom(onnx.numpy_helper.from_array(np.zeros((16, WIDTH), np.float32), "o"))
    _, _, rotated = turned(proto)
    assert not rotated.mixed
    assert all("constant" in why for why in rotated.refused.values())


def test_members_of_a_family_are_what_they_are_alone(tmp_path: Path) -> None:
    proto = attention(2, 8)
    x = np.random.default_rng(1).standard_normal((120, TOKENS, WIDTH)).astype(np.float32)
    asked: dict[str, Any] = {"align": None, "calib": {"x": x}, "trials": 0}
    api.family(proto, tmp_path / "{target}.onnx", target=("macs=0.8,0.5",), **asked)
    for share in ("0.8", "0.5"):
        alone = onnxprune.prune(proto, target=(f"macs={share}",), **asked)
        assert any("turned before the cut" in note for note in alone.report.notes)
        assert (tmp_path / f"macs{share}.onnx").read_bytes() == alone.model.SerializeToString()
