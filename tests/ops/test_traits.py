"""Each trait is a law, and holds for each of its ops: run on the node models of the onnx package and on fused ops."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import NodeProto, helper, numpy_helper

import onnxprune
from onnxprune.ops import TABLE, Refusal, Trait, lookup, traits_of
from onnxprune.ops.traits import TRAITS
from onnxprune.testing.node import node_of, run_node

from . import contrib_cases
from .node_models import Case
from .trait_laws import (
    RNG,
    START,
    Array,
    Law,
    Run,
    aside,
    by_data,
    choice,
    comparison,
    constant,
    elementwise,
    exact,
    gemm,
    idempotent,
    jumps,
    linear,
    looked_up,
    movement,
    natural,
    overwrites,
    recurrent,
    repeats,
    same,
    size,
    summed,
    view,
    window,
)  # fmt: skip

Op = tuple[str, str]

#: How ONNX's documentation calls what has the trait `ELEMENTWISE`.
CALLED = re.compile(r"element[- ]?wise", re.I)
#: Ops of which nothing can be shown here, and why.
KERNEL = "onnxruntime has no kernel for it on the CPU"
UNSHOWN = {
    ("", "StringConcat"): "texts", ("", "StringSplit"): "texts", ("", "SequenceAt"): "sequences",
    ("com.microsoft", "DynamicQuantizeLSTM"): "its data is quantised over all steps",
    ("com.microsoft", "ExpandDims"): "ONNX's reference doesn't know it",
    **{("com.microsoft", name): KERNEL for name in (
        "BiasAdd", "BiasDropout", "FusedMatMulActivation", "GemmFastGelu", "RemovePadding", "ScaledSiLU",
        "TorchEmbedding",
    )},
}  # fmt: skip


def more() -> Iterator[contrib_cases.Case]:
    """What the node models don't show, or not with plain tensors."""
    f, case = contrib_cases.f, contrib_cases.case
    yield case("Cast", f(2, 3, 4), domain="", to=onnx.TensorProto.DOUBLE)
    yield case("CastLike", f(2, 3, 4), np.ones(3), domain="")
    yield case("Swish", f(2, 3, 4), domain="", alpha=1.0)
    yield case("GlobalLpPool", f(2, 3, 4, 4), domain="")
    x, w, scale, zero = (
        contrib_cases.u8(1, 2, 5, 5),
        contrib_cases.u8(3, 2, 3, 3),
        np.float32(0.1),
        np.uint8(3),
    )
    one = [np.asarray(scale), np.asarray(zero)]
    yield case("ConvInteger", x, w, domain="", kernel_shape=[3, 3])
    yield case("QLinearConv", x, *one, w, *one, *one, domain="", kernel_shape=[3, 3])
    yield case("LSTM", f(4, 1, 3), f(1, 8, 3), f(1, 8, 2), domain="", hidden_size=2)
    ids, tables = np.arange(10, dtype=np.int32).reshape(2, 5), (f(20, 8), f(12, 8))
    yield case("EmbedLayerNormalization", ids, None, *tables, None, f(8), f(8), outputs=2)
    u8 = contrib_cases.u8
    packed = u8(20, 8), u8(12, 8), None, u8(8), u8(8)
    own = [np.asarray(scale)] * 2 + [None] + [np.asarray(scale)] * 2
    zeros = [np.asarray(zero)] * 2 + [None] + [np.asarray(zero)] * 2
    yield case("QEmbedLayerNormalization", ids, None, *packed, None, *own, *zeros, outputs=2)
    yield case("GatherBlockQuantized", u8(20, 16), ids, contrib_cases.scale(20, 2), block_size=16)
    yield case("SimplifiedLayerNormalization", f(2, 3, 6), f(6), domain="", outputs=2, axis=-1)
    yield case("GatherND", f(4, 3, 4), np.array([[0], [2], [3]]))


def every(cases: Sequence[Case]) -> Iterator[tuple[NodeProto, dict[str, int], list[Array | None]]]:
    """Yield the nodes that have a trait, with the opsets and inputs that come with them."""
    for one in cases:
        nodes = one.model.graph.node
        plain = all(isinstance(v, np.ndarray | np.generic) for v in one.inputs.values())
        if one.tensors_only and len(nodes) == 1 and plain:
            feeds = {name: np.asarray(value) for name, value in one.inputs.items()}
            yield (
                nodes[0],
                {o.domain: o.version for o in one.model.opset_import},
                [feeds.get(n) for n in nodes[0].input],
            )
    for name, node, feeds in (*contrib_cases.cases(), *more()):
        yield (
            node,
            {"": 24 if name == "Swish" else 17, "com.microsoft": 1},
            [feeds.get(n) for n in node.input],
        )


def runner(node: NodeProto, opsets: dict[str, int]) -> Run:
    def run(inputs: Sequence[Array | None]) -> list[Array]:
        try:
            return run_node(node, inputs, opsets)
        except Exception:  # onnxruntime's errors have no common base but this
            return run_node(node, inputs, opsets, reference=True)

    return run


LAWS: dict[Trait, tuple[Law, str]] = {  # with ops that break it
    Trait.ELEMENTWISE: (elementwise, "Softmax CumSum ReduceSum TopK LayerNormalization"),
    Trait.OVERWRITES: (overwrites, "Softmax CumSum LayerNormalization"),
    Trait.VIEW: (view, "Transpose Neg DepthToSpace"),
    Trait.MOVEMENT: (movement, "Pad CumSum Neg AveragePool"),
    Trait.REPEATS: (repeats, "Slice Gather"),
    Trait.EXACT: (exact, "Tanh Gelu Softmax"),
    Trait.LINEAR: (linear, "Relu MaxPool ReduceL2 Sigmoid"),
    Trait.MEAN: (constant(3.0), "ReduceSum Pad Exp"),
    Trait.ZEROS: (constant(0.0), "Softmax Exp ReduceLogSumExp"),
    Trait.SIZE: (size, "Neg Relu"),
    Trait.NATURAL: (natural, "Tanh Neg Elu LeakyRelu"),
    Trait.JUMP: (jumps, "Relu Tanh HardSwish Clip"),
    Trait.BY_DATA: (by_data, "Relu Gather"),
    Trait.GEMM: (gemm, "Relu Softmax GatherElements"),
    Trait.CHOICE: (choice, "Relu Gather Softmax Transpose"),
    Trait.COMPARISON: (comparison, "Add Max Pow"),
    Trait.LOOKUP: (looked_up, "Shape Neg Relu"),
    Trait.WINDOW: (window, "ConvTranspose"),
    Trait.RECURRENT: (recurrent, "Relu Softmax CumSum"),
    Trait.SUM: (summed, "Mul Max Sub Mean"),
    Trait.IDEMPOTENT: (idempotent, "Neg Elu Tanh Softmax"),
    Trait.ASIDE: (aside, "TopK Split"),
}


#: Of these it is enough that there is a node at which they show.
SHOWS = (Trait.JUMP, Trait.BY_DATA, Trait.CHOICE, Trait.LOOKUP)


@pytest.fixture(scope="module")
def models(all_node_models: list[Case]) -> list[tuple[NodeProto, dict[str, int], list[Array | None]]]:
    return list(every(all_node_models))


def verdicts(models: Any, law: Law, ops: set[Op]) -> dict[Op, list[bool]]:
    """Return what a law says of each op, node by node."""
    RNG.bit_generator.state = START  # the same whatever ran before
    said: dict[Op, list[bool]] = {}
    for node, opsets, inputs in models:
        key = (node.domain, node.op_type)
        if key not in ops or any(a.name == "training_mode" and a.i for a in node.attribute):
            continue
        try:
            run = runner(node, opsets)
            row = lookup(node_of(node, inputs, run(inputs), opsets[""]))
            result = None if isinstance(row, Refusal) else law(node, run, inputs)
        except Exception:  # neither engine runs it, or not with these values
            continue
        if result is not None:
            said.setdefault(key, []).append(result)
    return said


@pytest.mark.parametrize("trait", LAWS, ids=lambda t: t.names[0])
def test_the_law_holds_for_its_ops_and_is_broken_by_others(models: Any, trait: Trait) -> None:
    law, others = LAWS[trait]
    ops = {key for key, own in TRAITS.items() if trait in own}
    said = verdicts(models, law, ops)
    some = trait in SHOWS
    assert {key: said[key] for key in said if not (any if some else all)(said[key])} == {}
    assert ops - set(said) <= set(UNSHOWN)
    broken = verdicts(models, law, {("", name) for name in others.split()})
    assert {key for key, own in broken.items() if all(own)} == set()
    assert {name for _, name in broken} == set(others.split())


def test_random_ops_differ_from_run_to_run() -> None:
    x = np.full((2, 64), 0.5, np.float32)
    cases = [
        helper.make_node(op, ["x"], ["y"]) for op in ("Bernoulli", "RandomNormalLike", "RandomUniformLike")
    ]
    cases += [helper.make_node(op, [], ["y"], shape=[64]) for op in ("RandomNormal", "RandomUniform")]
    cases += [helper.make_node("Multinomial", ["x"], ["y"], sample_size=64)]
    cases += [helper.make_node("Dropout", ["x", "r", "t"], ["y"])]
    given = {"x": x, "r": np.float32(0.5), "t": np.array(True)}

    def differs(node: NodeProto) -> bool:
        ends = [helper.make_empty_tensor_value_info("y")]
        weights = [numpy_helper.from_array(np.asarray(given[n]), n) for n in node.input]
        graph = helper.make_graph([node], "random", [], ends, weights)
        model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        return not same(session.run(None, {})[0], session.run(None, {})[0])

    assert {n.op_type for n in cases if not differs(n)} == set()
    assert not differs(helper.make_node("Relu", ["x"], ["y"]))
    random = {name for (domain, name), own in TRAITS.items() if Trait.RANDOM in own and not domain}
    assert random == {n.op_type for n in cases}


def test_every_trait_has_a_law_and_each_of_its_ops_a_rule() -> None:
    assert set(LAWS) | {Trait.RANDOM} == set(Trait)
    assert set(TRAITS) <= set(TABLE)
    assert set(UNSHOWN) <= set(TRAITS)
    assert traits_of("NoSuchOp") == Trait(0) == traits_of("Relu", "com.microsoft")
    assert traits_of("Relu", "ai.onnx") == traits_of("Relu") != Trait(0)


def test_what_onnx_calls_element_wise_has_the_trait() -> None:
    called = {
        s.name for s in onnx.defs.get_all_schemas()
        if s.domain == "" and CALLED.search(s.doc or "") and ("", s.name) in TABLE
    }  # fmt: skip
    assert len(called) > 50
    assert {name for name in called if Trait.ELEMENTWISE not in traits_of(name)} == set()
    plain = {
        name for (domain, name), rule in TABLE.items()
        if not domain and getattr(_row(rule), "text", "") == "*s -> *s" and Trait.ELEMENTWISE not in traits_of(name)
    }  # fmt: skip
    assert plain == set()


def _row(rule: Any) -> Any:
    try:
        return rule(None)
    except AttributeError:
        return None  # it looks at the node


def listed(source: str) -> list[list[str]]:
    """Return the sets, lists and texts of more than five op names that a module holds."""
    names = {name for _, name in TABLE}
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Set | ast.List | ast.Tuple):
            words = [e.value for e in node.elts if isinstance(e, ast.Constant) and isinstance(e.value, str)]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            words = node.value.split()
        else:
            continue
        own = [word for word in words if word in names]
        if len(own) > 5 and 2 * len(own) > len(words):
            found.append(own)
    return found


def test_no_other_room_lists_ops() -> None:
    """But for those that no gradient goes through, and for what may lie between a weight and its layer."""
    assert listed('X = {"Abs", "Add", "Cos", "Exp", "Log", "Neg"}') == listed(
        'X = "Abs Add Cos Exp Log Neg".split()'
    )
    assert (
        listed('X = {"Abs", "Add", "Cos", "Exp", "Log", "Neg"}')
        != []
        == listed('X = ("Abs", "Add", "no op")')
    )
    root = Path(onnxprune.__file__).parent
    files = {p.relative_to(root).as_posix(): p for p in root.rglob("*.py") if p.parent.name != "ops"}
    lists = {name for name, path in files.items() if listed(path.read_text(encoding="utf-8"))}
    assert lists == {"gradient/tape.py", "sparsity/weights.py"}
