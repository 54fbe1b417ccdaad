"""A layer's view times its unpacked weight is what onnxruntime computes."""

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxprune.ops import Node
from onnxprune.reconstruction.views import view_of

CASES = [
    ("Conv", (2, 4, 9, 8), (6, 4, 3, 3), {"pads": [1, 1, 1, 1]}),
    (
        "Conv",
        (2, 4, 9, 8),
        (6, 2, 3, 2),
        {"group": 2, "strides": [2, 1], "pads": [0, 1, 2, 0], "dilations": [1, 2]},
    ),
    ("Conv", (2, 4, 9, 8), (4, 1, 3, 3), {"group": 4, "auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    ("Conv", (2, 4, 9, 8), (6, 4, 2, 4), {"auto_pad": "SAME_LOWER"}),
    ("Conv", (2, 4, 9), (6, 4, 3), {}),
    ("ConvTranspose", (2, 4, 5, 6), (4, 3, 3, 3), {"strides": [2, 2], "pads": [1, 0, 1, 2]}),
    ("ConvTranspose", (2, 4, 5), (4, 3, 4), {"strides": [3], "group": 2, "output_padding": [1]}),
    ("ConvTranspose", (2, 4, 5, 6), (4, 3, 3, 2), {"dilations": [2, 1]}),
    ("Gemm", (5, 4), (4, 6), {"alpha": 0.5, "beta": 2.0}),
    ("Gemm", (5, 4), (6, 4), {"transB": 1}),
    ("Gemm", (4, 5), (4, 6), {"transA": 1}),
    ("MatMul", (2, 3, 4), (4, 6), {}),
    ("Einsum", (2, 3, 4), (4, 5, 2), {"equation": "bte,ehd->bthd"}),
    ("Einsum", (2, 3, 4), (4, 5, 2), {"equation": "bte,ehd->hbtd"}),
    ("Einsum", (2, 3, 4, 5), (4, 6, 5), {"equation": "bihd,hed->bie"}),
    ("Einsum", (2, 3, 4, 5), (3, 6, 5), {"equation": "bhtd,hed->bthe"}),
    ("Einsum", (2, 3, 4), (4, 6), {"equation": "...e,ef->...f"}),
    ("Einsum", (2, 3, 4), (6, 4), {"equation": "bte,fe->bft"}),
]


@pytest.mark.parametrize(("op", "given", "weight", "attrs"), CASES)
def test_the_view_computes_the_layer(op, given, weight, attrs):
    rng = np.random.default_rng(0)
    a = rng.standard_normal(given).astype(np.float32)
    w = rng.standard_normal(weight).astype(np.float32)
    node = helper.make_node(op, ["a", "w"], ["y"], **attrs)
    graph = helper.make_graph(
        [node], "g", [helper.make_tensor_value_info("a", TensorProto.FLOAT, given)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)], [numpy_helper.from_array(w, "w")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    out = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(
        None, {"a": a}
    )[0]
    view = view_of(
        Node(
            op,
            "",
            17,
            "n",
            attrs,
            (given, weight),
            (out.shape,),
            (None, None),
            (False, True),
            ("a", "w"),
            ("y",),
        )
    )
    positions = out.size // (view.blocks * view.outputs)
    rows = rng.permutation(positions)[: positions // 2 + 1]
    x, matrix = view.x(a, rows), view.unpack(w)
    found = np.concatenate([x[b] @ matrix[b] for b in range(view.blocks)], axis=1)
    np.testing.assert_allclose(found, view.y(out, rows), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(view.pack(matrix), w)


def test_a_weight_made_at_run_time_has_no_view():
    shapes, nothing = ((2, 3), (3, 4)), (None, None)
    node = Node("MatMul", "", 17, "n", {}, shapes, ((2, 4),), nothing, (False, False), ("a", "b"), ("y",))
    assert view_of(node) is None


@pytest.mark.parametrize("equation", ["bte,ef->btf,", "bte,tf->bef", "bte,ee->bt", "bte,ef->bf", "bte,ef"])
def test_an_equation_that_is_no_layer_has_no_view(equation):
    shapes = ((2, 4, 4), (4, 4))
    node = Node(
        "Einsum",
        "",
        17,
        "n",
        {"equation": equation},
        shapes,
        ((2, 4, 4),),
        (None,) * 2,
        (False, True),
        ("a", "w"),
        ("y",),
    )
    assert (view_of(node) is None) == (equation != "bte,tf->bef")
