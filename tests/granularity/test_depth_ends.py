"""Depth where a branch meets what can't be renamed: bodies, outputs, fused sums whose nodes have no names."""

import itertools
from collections.abc import Callable

import numpy as np
import onnx
import pytest
from depth_models import WIDTH, Net, decoder, merged
from onnx import TensorProto, helper

import onnxprune
from onnxprune.cut.depth import shallow
from onnxprune.graph.analysis import analyse
from onnxprune.graph.depth import Depth
from onnxprune.graph.inline import inline
from onnxprune.model import Model
from onnxprune.proof.depth import multiplied
from onnxprune.proof.verify import verify
from onnxprune.runtime.session import open_session


def clipped() -> onnx.ModelProto:
    """Each Clip is an output, and has its bounds as attributes: as an Identity it would have them still."""
    net = Net()
    x = net.op("Clip", [net.conv("x", "stem", 4, 4)], "clip", min=0.0, max=6.0)
    outputs: dict[str, list[object]] = {x: ["N", 4, 6, 6]}
    for n in range(2):
        total = net.add(x, net.block(x, f"blocks.{n}", 4, 4), name=f"blocks.{n}.add")
        x = net.op("Clip", [total], f"blocks.{n}.clip", min=0.0, max=6.0)
        outputs[x] = ["N", 4, 6, 6]
    model = net.graph(outputs, rank=4)
    model.opset_import[0].version = 10
    return model


def in_bodies() -> onnx.ModelProto:
    """A branch in each body of an If, which is all that the body computes."""
    net = Net()
    x = net.linear("x", "embed", WIDTH, WIDTH)

    def body(name: str, seed: int) -> onnx.GraphProto:
        part = Net(seed)
        total = part.add(x, part.forward(x, name), name=f"{name}.add")
        net.weights += part.weights
        return helper.make_graph(
            part.nodes, name, [], [helper.make_tensor_value_info(total, TensorProto.FLOAT, None)]
        )

    total = net.op("ReduceSum", ["x"], "total", keepdims=0)
    positive = net.op("Greater", [total, net.constant("zero", np.float32(0))], "positive")
    x = net.op("If", [positive], "either", then_branch=body("then", 3), else_branch=body("other", 4))
    x = net.add(x, net.forward(x, "last"), name="last.add")
    net.linear(x, "head", WIDTH, 5)
    return net.graph({"head.add_out": ["N", "T", 5]})


def stepped() -> onnx.ModelProto:
    """A branch in each step of a Scan: without it the body gives what it was given."""
    net = Net()
    x = net.linear("x", "embed", WIDTH, WIDTH)
    part = Net(5)
    total = part.add("row", part.forward("row", "step"), name="step.add")
    net.weights += part.weights
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["T", WIDTH]) for name in ("row", total)]
    body = helper.make_graph(part.nodes, "step", ends[:1], ends[1:])
    x = net.op("Scan", [x], "scan", body=body, num_scan_inputs=1)
    net.linear(x, "head", WIDTH, 5)
    return net.graph({"head.add_out": ["N", "T", 5]})


def unnamed(op: str, bias: bool) -> onnx.ModelProto:
    """Fused sums, the branch first, whose nodes have no names and each of whose streams ends in the next one."""
    net = Net()
    x = net.linear("x", "embed", WIDTH, WIDTH)
    scales = ["scale", "shift"] if op == "SkipLayerNormalization" else ["scale"]
    read = net.op("Tanh", [x], "first")  # no norm, so that ONNX knows each node of the original
    for n in range(3):
        more = [net.weight(f"parts.{n}.{name}", WIDTH, low=0.5) for name in [*scales, *["bias"] * bias]]
        given = [net.forward(read, f"parts.{n}"), x, *more]
        read, x = f"normed.{n}", f"stream.{n}"
        last = [read] if n == 2 else [read, "", "", x]
        net.nodes.append(helper.make_node(op, given, last, domain="com.microsoft"))
    net.linear(read, "head", WIDTH, 5)
    return net.graph({"head.add_out": ["N", "T", 5]})


NETS: dict[str, tuple[Callable[[], onnx.ModelProto], int]] = {
    "outputs with attributes": (clipped, 2),
    "bodies of an If": (in_bodies, 3),
    "the body of a Scan": (stepped, 1),
    "fused": (lambda: unnamed("SkipLayerNormalization", bias=False), 3),
    "fused with a bias": (lambda: unnamed("SkipLayerNormalization", bias=True), 3),
    "fused without a mean": (lambda: unnamed("SkipSimplifiedLayerNormalization", bias=False), 3),
    "fused without a mean, with a bias": (lambda: unnamed("SkipSimplifiedLayerNormalization", bias=True), 3),
}


@pytest.mark.parametrize("net", NETS)
def test_law_1_for_every_set_of_branches(net: str) -> None:
    build, count = NETS[net]
    model = build()
    depth = Depth.of(analyse(inline(Model.load(model))))
    names = [branch.name for branch in depth.branches]
    assert len(names) == count
    whole = open_session(depth.analysis.model)
    sets = [gone for n in range(count) for gone in itertools.combinations(names, n + 1)]
    for gone in sets:
        cut, masked = shallow(depth, gone), multiplied(depth, gone)
        one, two = open_session(cut.model), open_session(masked)
        moved = 0.0
        for seed, size in enumerate((1, 3, 5, 2)):  # of the If each branch is taken
            dims = [d.dim_value or size for d in model.graph.input[0].type.tensor_type.shape.dim]
            x = {"x": np.random.default_rng(seed).standard_normal(dims).astype(np.float32) + seed % 2 - 0.5}
            left, right, dense = (s.run(x) for s in (one, two, whole))
            for name, value in right.items():
                np.testing.assert_allclose(left[name], value, atol=1e-5)
                moved = max(moved, float(np.abs(dense[name] - value).max()))
        assert moved > 1e-3
    proof = verify(depth.original, {}, shallow(depth, names).model, masked=multiplied(depth, names))
    assert proof.passed, proof.failures


def test_a_branch_is_not_kept_for_the_stream_behind_it() -> None:
    """Two branches read one norm, and the second is added to the first one's sum behind an activation of it."""
    net = Net()
    x = net.linear("x", "embed", WIDTH, WIDTH)
    read = net.norm(x, "norm")
    x = net.op("Tanh", [net.add(x, net.attention(read, "attn"), name="add1")], "tanh")
    x = net.op("Mul", [x, net.op("Sigmoid", [net.linear(read, "gate", WIDTH, WIDTH)], "open")], "gated")
    net.linear(x, "head", WIDTH, 5)
    depth = Depth.of(analyse(Model.load(net.graph({"head.add_out": ["N", "T", 5]}))))
    assert [b.name for b in depth.branches] == ["attn"]
    assert depth.refused == {}


def test_a_cache_that_an_if_gives_is_told_to_stay() -> None:
    """Its layers go in both branches, while what makes keys and values stays, although it was opened."""
    names = []
    for model in (decoder(), merged(decoder())):
        result = onnxprune.prune(model, drop=("layers.0.attn",), open_io=("past|present",))
        names.append([value.name for value in result.model.graph.output])
        told = [note for note in result.report.notes if "--open-io names" in note]
        assert bool(told) == (len(names[-1]) == 5)
        assert all("and 3 more, which a node with bodies gives" in note for note in told)
    assert [len(n) for n in names] == [3, 5]
