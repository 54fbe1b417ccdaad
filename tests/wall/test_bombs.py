"""Models that are small as files and huge, endless or deadly when they run: refused by what is known before.

None of these needs the wall: the sizes and attributes are looked at before a library gets them.
"""

import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxprune.cli import main
from onnxprune.graph.plausible import implausible
from onnxprune.graph.values import evaluate

FLOAT = TensorProto.FLOAT


def mlp(
    nodes: list[onnx.NodeProto], weights: dict[str, Any], inputs: dict[str, list[Any]], opset: int = 17
) -> onnx.ModelProto:
    """A sound net, and beside it what is to be tried."""
    rng = np.random.default_rng(0)
    base = [
        helper.make_node("MatMul", ["x", "w1"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "w2"], ["y"]),
    ]
    arrays = {"w1": rng.standard_normal((8, 16)), "w2": rng.standard_normal((16, 4))}
    floats = {n: a.astype(np.float32) for n, a in arrays.items()}
    graph = helper.make_graph(
        [*base, *nodes],
        "g",
        [helper.make_tensor_value_info(n, FLOAT, s) for n, s in {"x": [4, 8], **inputs}.items()],
        [helper.make_tensor_value_info("y", FLOAT, [4, 4]), onnx.ValueInfoProto(name="z")],
        [numpy_helper.from_array(np.asarray(a), n) for n, a in {**floats, **weights}.items()],
    )
    return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", opset)])


def one(
    op: str, inputs: str, opset: int = 17, *, more: dict[str, list[int]] | None = None, **given: Any
) -> Any:
    """One node, its weights (arrays) and its attributes (anything else)."""
    weights = {n: a for n, a in given.items() if isinstance(a, np.ndarray)}
    attrs = {n: a for n, a in given.items() if n not in weights}
    return mlp([helper.make_node(op, inputs.split(" "), ["z"], **attrs)], weights, more or {}, opset)


def contrib(op: str, inputs: str, **given: Any) -> Any:
    """One node of onnxruntime's own domain."""
    model = one(op, inputs, domain="com.microsoft", **given)
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return model


def silent() -> Any:
    """Nothing of what it computes is kept."""
    model = mlp([], {}, {})
    del model.graph.output[:]
    return model


def i64(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def f32(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float32)


IMAGE = f32(1, 1, 4, 4)
FOUR = f32(4)
LARGE = r"would take [\d,]+ MB, more than the [\d,]+ MB that a model of this size may ask for; give smaller inputs with"
CASES = {
    "constant of shape": (one("ConstantOfShape", "s", s=i64(2 * 10**9)), LARGE),
    "constant of shape, a product": (one("ConstantOfShape", "s", s=i64(2**20, 2**20)), LARGE),
    "expand": (one("Expand", "e s", e=f32(1), s=i64(10**9)), LARGE),
    "tile": (one("Tile", "e s", e=FOUR, s=i64(10**9)), LARGE),
    "range of vectors": (one("Range", "a b c", a=np.array([0]), b=np.array([2 * 10**9]), c=np.array([1])), LARGE),
    "range": (one("Range", "a b c", a=np.array(0), b=np.array(2 * 10**9), c=np.array(1)), LARGE),
    "pad": (one("Pad", "x p", p=i64(0, 10**9, 0, 10**9)), LARGE),
    "resize": (one("Resize", "v   s", v=IMAGE, s=i64(1, 1, 10**9, 4)), LARGE),
    "one-hot": (one("OneHot", "j d v", j=i64(0, 1), d=np.array(10**9), v=f32(2)), LARGE),
    "random": (one("RandomNormalLike", "e", more={"e": [2**17, 2**10]}), "The inputs of the model take 537 MB"),
    "input": (one("Relu", "e", more={"e": [10**9]}), "The inputs of the model take 4,000 MB, 'e' most of it"),
    "where": (one("Where", "a b c", a=np.zeros((700, 1, 1), bool), b=np.zeros((1, 700, 1), np.int64),
                  c=np.zeros((1, 1, 700), np.int64)), LARGE),
    "max": (one("Max", "a b c", a=np.zeros((1024, 1, 1), np.int64), b=np.zeros((1, 1024, 1), np.int64),
                c=np.zeros((1, 1, 1024), np.int64)), LARGE),
    "outer product": (one("MatMul", "a b", a=f32(60000, 1), b=f32(1, 60000)), LARGE),
    "einsum": (one("Einsum", "a b c", a=f32(2000), b=f32(2000), c=f32(2000), equation="i,j,k->ijk"), LARGE),
    "lstm": (one("LSTM", "q u v", more={"q": [1, 3, 2]}, u=f32(1, 12, 2), v=f32(1, 12, 3), hidden_size=2**31),
             "its attribute 'hidden_size' is 2147483648"),
    "layer norm": (one("LayerNormalization", "x s", s=f32(8), axis=2**31), "its attribute 'axis' is 2147483648"),
    "axis": (one("Softmax", "x", axis=7), "its attribute 'axis' is 7, but its input has 2 axes"),
    "batch dims": (one("GatherND", "x i", i=np.zeros((1, 1), np.int64), batch_dims=-1),
                   "its attribute 'batch_dims' is -1"),
    "einsum letters": (one("Einsum", "x", equation="%"), "its equation '%' isn't made of letters"),
    "einsum terms": (one("Einsum", "x w1", equation="ij"), "its equation has 1 terms, but it has 2 inputs"),
    "einsum rank": (one("Einsum", "x w1", equation="ijk,jk->ik"), "'ijk' of its equation doesn't fit an input of 2"),
    "stride": (one("MaxPool", "v", v=IMAGE, kernel_shape=[2, 2], strides=[0, 1]), "'strides' is .*, but must be above"),
    "group": (one("Conv", "v u", v=IMAGE, u=f32(1, 1, 2, 2), group=0), "'group' is 0, but must be above 0"),
    "frames": (one("STFT", "v a  b", v=f32(1, 64, 1), a=np.array(0), b=np.array(16)), "the step of its frames is 0"),
    "least by -1": (one("Div", "a b", a=i64(-(2**63)), b=i64(-1)), "it divides the least integer by -1"),
    "by zero": (one("Mod", "a b", a=i64(5), b=i64(0)), "it divides integers by 0"),
    "no values, a long axis": (one("SpaceToDepth", "v", v=IMAGE, blocksize=10**9), "MB, more than the"),
    "heads": (one("RotaryEmbedding", "v c c", 23, more={"v": [2, 3, 8]}, c=f32(2, 3, 2), num_heads=0),
              "its attribute 'num_heads' must be above 0"),
    "heads of onnxruntime": (contrib("MultiHeadAttention", "v v v", more={"v": [2, 3, 8]}, num_heads=0),
                             "'num_heads' is 0, but must be above 0"),
    "block": (contrib("MatMulNBits", "x w s", w=np.zeros((4, 1, 8), np.uint8), s=f32(4), K=8, N=4, block_size=0),
              "'block_size' is 0, but must be above 0"),
    "no outputs": (silent(), "The model has no outputs"),
    "index": (one("Gather", "x i", i=i64(2**40), axis=1), "its indices 1099511627776 to 1099511627776 don't fit"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_refused_in_one_sentence(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, says = CASES[name]
    onnx.save(model, tmp_path / "m.onnx")
    assert main(["inspect", str(tmp_path / "m.onnx")]) == 3
    said = capsys.readouterr()
    assert said.out == ""
    assert len(said.err.splitlines()) == 1
    assert re.search(says, said.err), said.err
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


def test_who_allows_more_gets_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    onnx.save(one("ConstantOfShape", "s", s=i64(10**8)), tmp_path / "m.onnx")
    assert main(["inspect", str(tmp_path / "m.onnx")]) == 3
    assert main(["inspect", str(tmp_path / "m.onnx"), "--max-memory", "4GB"]) == 0
    assert "--max-memory" in capsys.readouterr().err


def test_sizes_of_its_own_are_smaller_where_a_tensor_would_be_too_large(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Attention over a picture that is four times as wide: 65,536 positions at 64 x 64."""
    nodes = [
        helper.make_node("Resize", ["v", "", "by"], ["u"]),
        helper.make_node("Reshape", ["u", "flat"], ["q"]),
        helper.make_node("Reshape", ["u", "column"], ["k"]),
        helper.make_node("MatMul", ["k", "q"], ["z"]),
    ]
    by = np.array([1, 1, 4, 4], np.float32)
    weights = {"by": by, "flat": i64(1, 1, -1), "column": i64(1, -1, 1)}
    model = mlp(nodes, weights, {"v": [1, 1, "H", "W"]})
    onnx.save(model, tmp_path / "m.onnx")
    assert main(["inspect", str(tmp_path / "m.onnx")]) == 0
    assert main(["inspect", str(tmp_path / "m.onnx"), "--input-shape", "v:1,1,64,64"]) == 3
    assert re.search(LARGE, capsys.readouterr().err)


@pytest.mark.parametrize(
    ("op", "attrs", "shapes"),
    [
        ("Softmax", {"axis": -2}, [(4, 8)]),
        ("Unsqueeze", {"axes": [0, 3]}, [(4, 8)]),
        ("Slice", {"starts": [0], "ends": [2**63 - 1], "axes": [1]}, [(4, 8)]),
        ("Shape", {"start": 0, "end": 2**63 - 1}, [(4, 8)]),
        ("Einsum", {"equation": "b...i, ij -> b...j"}, [(2, 3, 4), (4, 5)]),
        ("GatherND", {"batch_dims": 1}, [(4, 8), (4, 1)]),
        ("Conv", {"strides": [1, 1], "pads": [0, 0, 0, 0], "group": 2}, [(1, 2, 4, 4), (2, 1, 1, 1)]),
        ("Constant", {"value_int": 2**62}, []),
        ("ConcatFromSequence", {"axis": 5}, [None]),
        ("RotaryEmbedding", {"num_heads": 0}, [(2, 4, 3, 8)]),
    ],
)
def test_sound_nodes_are_plausible(op: str, attrs: dict[str, Any], shapes: list[Any]) -> None:
    assert implausible(op, attrs, shapes, 1, [None] * len(shapes)) == ""


def test_values_are_bounded_before_they_are_computed() -> None:
    row, column = np.ones((1, 10**5)), np.ones((10**5, 1))
    for op in ("Add", "Max", "Where", "Equal", "Pow"):
        assert evaluate(op, {}, [row, column], [True, True]) is None
    assert evaluate("Gather", {}, [np.ones((2, 10**5)), np.zeros(10**5, np.int64)], [True, True]) is None
    assert evaluate("Concat", {"axis": 0}, [np.ones(3000)] * 2, [True, True]) is None
    small = evaluate("Add", {}, [np.ones((1, 3)), np.ones((3, 1))], [True, True])
    assert small is not None
    assert small.tolist() == [[2.0] * 3] * 3
