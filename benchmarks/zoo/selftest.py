"""The oracle on trial: pruned by hand, right results must pass and every kind of wrong one must be refused.
Needs no onnxprune."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from benchmarks.zoo import compare, oracle

TOLERANCE = 1e-5
FIRST, SECOND = [1, 5], [0, 2, 3]  # channels removed after the first and the second convolution
CUTS: list[dict[str, Any]] = [
    {"tensor": "w1", "axis": 0, "removed": FIRST},
    {"tensor": "shared", "axis": 0, "removed": FIRST},
    {"tensor": "w2", "axis": 1, "removed": FIRST},
    {"tensor": "w2", "axis": 0, "removed": SECOND},
    {"tensor": "b2", "axis": 0, "removed": SECOND},
    {"tensor": "divisor", "axis": 0, "removed": SECOND},
    {"tensor": "w3", "axis": 1, "removed": SECOND},
]
CASES = (
    "right",
    "right, as a copy",
    "wrong indices",
    "wrong axis size",
    "missing cut",
    "wrong weights",
    "unread shared bias",
    "unknown tensor",
)


def build(first: list[int] = [], second: list[int] = []) -> onnx.ModelProto:  # noqa: B006  (never changed)
    """Return a net w1 -> Sigmoid -> w2 -> / divisor -> w3 of convolutions with the given channels left out.

    `shared` is the bias of the first convolution (cut) and of the third (never cut).
    """
    rng = np.random.default_rng(3)
    arrays = {
        "w1": rng.normal(size=(8, 3, 3, 3)),
        "w2": rng.normal(size=(6, 8, 3, 3)),
        "b2": rng.normal(size=6),
    }
    arrays |= {
        "divisor": rng.uniform(1, 2, (6, 1, 1)),
        "w3": rng.normal(size=(8, 6, 1, 1)),
        "shared": rng.normal(size=8),
    }
    arrays["own"] = np.delete(arrays["shared"], first)
    arrays["w1"] = np.delete(arrays["w1"], first, 0)
    arrays["w2"] = np.delete(np.delete(arrays["w2"], first, 1), second, 0)
    arrays |= {"b2": np.delete(arrays["b2"], second), "divisor": np.delete(arrays["divisor"], second, 0)}
    arrays["w3"] = np.delete(arrays["w3"], second, 1)
    nodes = [
        helper.make_node("Conv", ["x", "w1", "own" if first else "shared"], ["a"]),
        helper.make_node("Sigmoid", ["a"], ["s"]),
        helper.make_node("Conv", ["s", "w2", "b2"], ["b"]),
        helper.make_node("Div", ["b", "divisor"], ["d"]),
        helper.make_node("Conv", ["d", "w3", "shared"], ["y"]),
    ]
    used = {name for node in nodes for name in node.input}
    tensors = [
        numpy_helper.from_array(a.astype(np.float32), name) for name, a in arrays.items() if name in used
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 9, 9])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 8, 5, 5])],
        tensors,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def law1(pruned: onnx.ModelProto, cuts: list[dict[str, Any]]) -> float:
    """Return the distance that check.py would report."""
    original = build()
    session = compare.session(pruned)
    feeds = compare.find_inputs(session)
    found = compare.run(session, feeds)
    errors = []
    for contracted_only in (False, True):
        twin = oracle.masked(original, pruned, cuts, contracted_only)
        errors.append(compare.distance(compare.run(compare.session(twin), feeds), found))
    return min(errors)


def verdict(case: str) -> str:
    """Return 'accepted' or 'refused' for one of CASES."""
    pruned, cuts = build(FIRST, SECOND), [dict(cut) for cut in CUTS]
    if case == "right, as a copy":
        cuts[1]["copy"] = "own"
    elif case == "wrong indices":
        cuts[3]["removed"] = [1, 2, 3]
    elif case == "wrong axis size":
        cuts[2]["removed"] = [1, 8]
    elif case == "missing cut":
        del cuts[0:3]
    elif case == "unknown tensor":
        cuts[0]["tensor"] = "w9"
    elif case == "wrong weights":
        tensor = next(t for t in pruned.graph.initializer if t.name == "w2")
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor)[::-1].copy(), "w2"))
    elif case == "unread shared bias":  # the third convolution's bias was damaged as well
        tensor = next(t for t in pruned.graph.initializer if t.name == "shared")
        tensor.CopyFrom(numpy_helper.from_array(np.zeros(8, np.float32), "shared"))
    try:
        return "accepted" if law1(pruned, cuts) <= TOLERANCE else "refused"
    except oracle.OracleError:
        return "refused"


def self_test() -> int:
    """Print each case's verdict; return 0 if only the right result is accepted."""
    wrong = 0
    for case in CASES:
        expected = "accepted" if case.startswith("right") else "refused"
        found = verdict(case)
        wrong += found != expected
        print(f"{case:22} {found:9} {'' if found == expected else 'but it should be ' + expected}")
    for name, array in (("empty difference", np.zeros(3)), ("NaN", np.full(3, np.nan))):
        error = compare.distance([[np.ones(3)]], [[array]])
        wrong += not error > TOLERANCE
        print(f"{name:22} distance {error}")
    return int(wrong > 0)
