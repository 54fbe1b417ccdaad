"""Depth: a model without residual branches gives what the whole one gives with their outputs multiplied by 0."""

import itertools
from collections.abc import Sequence

import numpy as np
import onnx
import pytest
from depth_models import NETS, WIDTH, Net, decoder, fused, images, no_branches, transformer
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxprune.cut.depth import shallow
from onnxprune.graph.analysis import analyse
from onnxprune.graph.depth import Depth
from onnxprune.graph.kept import Kept
from onnxprune.model import Model
from onnxprune.proof.depth import multiplied
from onnxprune.proof.verify import verify
from onnxprune.runtime.session import open_session

NAMES = {
    "pre-norm": ["layers.0.attn", "layers.0.mlp", "layers.1.attn", "layers.1.mlp"],
    "post-norm": ["layers.0.attn", "layers.0.mlp", "layers.1.attn", "layers.1.mlp"],
    "parallel": ["layers.0.attn", "layers.0.mlp", "layers.1.attn", "layers.1.mlp"],
    "in turn": ["layers.0.attn", "layers.0.mlp", "layers.1.attn", "layers.1.mlp"],
    "fused": ["layers.0.attn", "layers.0.mlp", "layers.1.attn", "layers.1.mlp"],
    "basic blocks": ["blocks.0", "blocks.1", "blocks.2"],
    "activations before": ["blocks.0", "blocks.1", "blocks.2"],
    "projections": ["blocks.0", "blocks.1", "blocks.2"],
}


def depth_of(model: onnx.ModelProto) -> Depth:
    return Depth.of(analyse(Model.load(model)))


def feeds(model: onnx.ModelProto, size: int) -> dict[str, np.ndarray]:
    dims = [d.dim_value or size for d in model.graph.input[0].type.tensor_type.shape.dim]
    return {"x": np.random.default_rng(size).standard_normal(dims).astype(np.float32)}


@pytest.mark.parametrize("net", NETS)
def test_branches_are_found_and_named(net: str) -> None:
    depth = depth_of(NETS[net]())
    assert [branch.name for branch in depth.branches] == NAMES[net]
    assert depth.refused == {}


@pytest.mark.parametrize("net", NETS)
def test_law_1_for_every_set_of_branches(net: str) -> None:
    model = NETS[net]()
    depth = depth_of(model)
    names = [branch.name for branch in depth.branches]
    whole = open_session(depth.analysis.model)
    for count in range(1, len(names) + 1):
        for gone in itertools.combinations(names, count):
            cut, masked = shallow(depth, gone).model, multiplied(depth, gone)
            one, two = open_session(cut), open_session(masked)
            for size in (1, 3, 5):
                x = feeds(model, size)
                left, right, dense = (next(iter(s.run(x).values())) for s in (one, two, whole))
                np.testing.assert_allclose(left, right, atol=1e-5)
                assert np.abs(dense - right).max() > 1e-3


@pytest.mark.parametrize("net", NETS)
def test_a_twin_of_another_branch_is_seen(net: str) -> None:
    depth = depth_of(NETS[net]())
    first, last = depth.branches[0].name, depth.branches[-1].name
    cut = shallow(depth, [first])
    assert verify(depth.analysis, {}, cut.model, masked=multiplied(depth, [first])).passed
    assert verify(depth.analysis, {}, cut.model, masked=multiplied(depth, [last])).status == "failed"


@pytest.mark.parametrize("net", NETS)
def test_nodes_and_weights_of_a_branch_disappear(net: str) -> None:
    depth = depth_of(NETS[net]())
    for branch in depth.branches:
        cut = shallow(depth, [branch.name]).model
        before = sum(int(np.prod(depth.analysis.model.info(n).dims)) for n in depth.analysis.model.names())
        after = sum(int(np.prod(cut.info(n).dims)) for n in cut.names())
        assert before - after == branch.params > 0
        assert len(cut.proto.graph.node) < len(depth.analysis.coupling.nodes) - len(branch.nodes)
        made = [name for node in cut.proto.graph.node for name in node.output if name]
        assert len(made) == len(set(made))
        onnx.checker.check_model(cut.to_proto(), full_check=True)


def test_weights_that_stay_with_others_do_not_count() -> None:
    """Two branches with the same weights: without one of them no weight goes."""
    net = Net()
    x = net.linear("x", "embed", WIDTH, WIDTH)
    up, down = net.weight("up", WIDTH, 12), net.weight("down", 12, WIDTH)
    for n in range(2):
        wide = net.op("Relu", [net.op("MatMul", [x, up], f"up.{n}")], f"act.{n}")
        x = net.add(x, net.op("MatMul", [wide, down], f"down.{n}"), name=f"sum.{n}")
    net.linear(x, "head", WIDTH, 3)
    depth = depth_of(net.graph({"head.add_out": ["N", "T", 3]}))
    assert [b.params for b in depth.branches] == [0, 0]
    assert "up" in shallow(depth, [depth.branches[0].name]).model


def test_an_activation_is_not_applied_twice() -> None:
    """relu(relu(s)) is relu(s): the sum before a block that is gone stands for the one behind it."""
    depth = depth_of(images())
    cut = shallow(depth, ["blocks.1", "blocks.2"])
    assert sum(node.op_type == "Relu" for node in cut.model.proto.graph.node) == 3
    assert cut.stands == {"blocks.0.add_out": "blocks.2.add_out"}


def test_fused_sums_are_fused_again_where_they_stay() -> None:
    """Where a branch goes its sum is the stream, and its norm reads that; the norm in front of it goes with it."""
    model = fused()
    depth = depth_of(model)
    cut = shallow(depth, ["layers.0.mlp"]).model.proto.graph.node
    kinds = [node.op_type for node in cut]
    assert kinds.count("SkipLayerNormalization") == 2
    assert kinds.count("LayerNormalization") == 2
    assert list(shallow(depth, []).model.proto.graph.node) == list(model.graph.node)


def test_one_that_does_more_the_second_time_is() -> None:
    """tanh(tanh(s)) isn't tanh(s)."""
    depth = depth_of(images(behind="Tanh"))
    cut = shallow(depth, ["blocks.1", "blocks.2"]).model
    assert sum(node.op_type == "Tanh" for node in cut.proto.graph.node) == 3
    assert verify(depth.analysis, {}, cut, masked=multiplied(depth, ["blocks.1", "blocks.2"])).passed


def test_what_is_no_branch() -> None:
    assert depth_of(no_branches()).branches == []
    assert depth_of(images("alike")).branches == []
    net = Net()  # two layers on the one side and three on the other: neither is a stream
    x = net.linear("x", "embed", WIDTH, WIDTH)
    longer = net.linear(net.forward(x, "long"), "longer", WIDTH, WIDTH)
    net.linear(net.add(net.forward(x, "short"), longer, name="both"), "head", WIDTH, 3)
    assert depth_of(net.graph({"head.add_out": ["N", "T", 3]})).branches == []
    net = Net()  # what comes from two values is no stream that a branch forks from
    x = net.linear("x", "embed", WIDTH, WIDTH)
    gate = net.linear(x, "gate", WIDTH, WIDTH)
    y = net.add(net.op("Mul", [x, gate], "gated"), net.forward(x, "part"), name="sum")
    net.linear(net.op("Mul", [y, gate], "again"), "head", WIDTH, 3)
    assert depth_of(net.graph({"head.add_out": ["N", "T", 3]})).branches == []


def test_a_branch_that_gives_an_output_stays() -> None:
    """The keys of a cache: nothing but the scores would go, and the projection that makes keys would stay."""
    depth = depth_of(transformer(more="layers.0.attn.k.add_out"))
    assert list(depth.refused) == ["layers.0.attn"]
    assert "'layers.0.attn.k.add_out'" in depth.refused["layers.0.attn"]
    assert [b.name for b in depth.branches] == NAMES["pre-norm"][1:]


def test_a_cache_goes_with_its_layer_where_it_is_opened() -> None:
    model = decoder()
    assert list(depth_of(model).refused) == ["layers.0.attn", "layers.1.attn"]
    assert "unless --open-io names it" in depth_of(model).refused["layers.1.attn"]
    half = Depth.of(analyse(Model.load(model), open_io=("present",)))
    assert "alone read the input 'past.layers.0.attn.keys'" in half.refused["layers.0.attn"]
    depth = Depth.of(analyse(Model.load(model), open_io=("past|present",)))
    assert [b.name for b in depth.branches] == NAMES["pre-norm"]
    assert depth.refused == {}
    for count in (1, 2, 3, 4):
        for names in itertools.combinations(NAMES["pre-norm"], count):
            cut, gone = shallow(depth, names).model, ends(depth, names)
            stays = [n for n in (0, 1) if f"layers.{n}.attn" not in names]
            caches = [f"layers.{n}.attn.{kind}" for n in stays for kind in ("keys", "values")]
            assert [v.name for v in cut.proto.graph.input] == ["x", *(f"past.{n}" for n in caches)]
            assert [v.name for v in cut.proto.graph.output][1:] == [f"present.{n}" for n in caches]
            kept, masked = Kept(depth.analysis.coupling, {}, gone), multiplied(depth, names)
            assert verify(depth.analysis, {}, cut, masked=masked, kept=kept).passed
            if gone:
                failures = verify(depth.analysis, {}, cut, masked=masked).failures
                assert "the inputs differ" in failures[0]


def ends(depth: Depth, names: Sequence[str]) -> frozenset[str]:
    return frozenset(e for name in names for b in [depth.named[name]] for e in (*b.inputs, *b.outputs))


def test_a_cache_that_two_layers_read_stays() -> None:
    depth = Depth.of(analyse(Model.load(decoder(shared=True)), open_io=("past|present",)))
    assert list(depth.refused) == ["layers.0.attn", "layers.1.attn"]
    assert "which --open-io names, is read by others, too" in depth.refused["layers.1.attn"]


@pytest.mark.parametrize("stream", ["embed.add_out", "layers.0.add1_out", "layers.1.add2_out"])
def test_a_stream_that_is_an_output_keeps_its_name(stream: str) -> None:
    model = transformer(more=stream)
    depth = depth_of(model)
    for gone in (NAMES["pre-norm"][:1], NAMES["pre-norm"][1:2], NAMES["pre-norm"]):
        cut = shallow(depth, gone).model
        assert [v.name for v in cut.proto.graph.output] == ["head.add_out", stream]
        assert verify(depth.analysis, {}, cut, masked=multiplied(depth, gone)).passed


def test_what_is_not_there_is_refused_on_both_sides() -> None:
    depth = depth_of(images())
    for side in (shallow, multiplied):
        with pytest.raises(ValueError, match="is no branch"):
            side(depth, ["blocks.7"])


@settings(max_examples=25, deadline=None)
@given(
    kinds=st.lists(st.sampled_from(["mlp", "attn", "relu", "norm", "bias"]), min_size=1, max_size=6),
    data=st.data(),
)
def test_any_chain_of_parts(kinds: list[str], data: st.DataObject) -> None:
    net = Net()
    x = net.linear("x", "embed", WIDTH, WIDTH)
    for n, kind in enumerate(kinds):
        name = f"parts.{n}"
        if kind in ("mlp", "attn"):
            part = (net.forward if kind == "mlp" else net.attention)(x, name)
            x = net.add(*((x, part) if n % 2 else (part, x)), name=f"{name}.sum")
        elif kind == "relu":
            x = net.op("Relu", [x], name)
        elif kind == "norm":
            x = net.norm(x, name)
        else:
            x = net.add(x, net.weight(f"{name}.weight", WIDTH), name=name)
    net.linear(x, "head", WIDTH, 3)
    model = net.graph({"head.add_out": ["N", "T", 3]})
    depth = depth_of(model)
    assert len(depth.branches) == sum(kind in ("mlp", "attn") for kind in kinds)
    if depth.branches:
        names = [b.name for b in depth.branches]
        gone = data.draw(st.lists(st.sampled_from(names), min_size=1, unique=True))
        cut = shallow(depth, gone)
        left, right = (open_session(m).run(feeds(model, 3)) for m in (cut.model, multiplied(depth, gone)))
        np.testing.assert_allclose(left["head.add_out"], right["head.add_out"], atol=1e-5)
