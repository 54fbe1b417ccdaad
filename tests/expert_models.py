"""Small mixtures of experts, in the forms that exporters give them."""

from collections.abc import Callable

import numpy as np
import onnx
from small_models import Builder

#: Experts, chosen ones, width, inner width.
EXPERTS, CHOSEN, WIDTH, INNER = 6, 2, 8, 4

#: How scores become weights of the chosen: a name -> what is done.
ROUTERS = ("softmax, choice", "softmax, choice, shares", "choice, softmax", "sigmoid, bias")


def chosen(b: Builder, scores: str, k: str, name: str) -> tuple[str, str]:
    """Return the greatest scores and their numbers."""
    b.op("TopK", [scores, k], f"{name}.topk", 2)
    return f"{name}.topk_out0", f"{name}.topk_out1"


def router(b: Builder, x: str, name: str, kind: str) -> tuple[str, str, str]:
    """Return scores, weights of the chosen, and their numbers."""
    scores = b.linear(x, f"{name}.router", WIDTH, EXPERTS)
    k = b.constant(f"{name}.k", np.array([CHOSEN], np.int64))
    if kind.startswith("softmax"):
        weight, ids = chosen(b, b.op("Softmax", [scores], f"{name}.softmax", axis=-1), k, name)
        if "shares" in kind:
            last = b.constant(f"{name}.last", np.array([-1], np.int64))
            weight = b.op("Div", [weight, b.op("ReduceSum", [weight, last], f"{name}.sum")], f"{name}.share")
    elif kind == "choice, softmax":
        values, ids = chosen(b, scores, k, name)
        weight = b.op("Softmax", [values], f"{name}.softmax", axis=-1)
    else:
        own = b.op("Sigmoid", [scores], f"{name}.sigmoid")
        biased = b.op("Add", [own, b.weight(f"{name}.correction", EXPERTS)], f"{name}.biased")
        _, ids = chosen(b, biased, k, name)
        weight = b.op("GatherElements", [own, ids], f"{name}.picked", axis=-1)
    return scores, weight, ids


def fused(b: Builder, x: str, name: str, kind: str) -> str:
    """One node, which chooses within."""
    scores = b.linear(x, f"{name}.router", WIDTH, EXPERTS)
    up, down = b.weight(f"{name}.up", EXPERTS, INNER, WIDTH), b.weight(f"{name}.down", EXPERTS, WIDTH, INNER)
    biases = b.weight(f"{name}.up.bias", EXPERTS, INNER), b.weight(f"{name}.down.bias", EXPERTS, WIDTH)
    inputs = [x, scores, up, biases[0], down, biases[1]]
    more = {"activation_type": "silu", "k": CHOSEN, "normalize_routing_weights": int("shares" in kind)}
    return b.op("MoE", inputs, f"{name}.moe", domain="com.microsoft", **more)


def stacked(b: Builder, x: str, name: str, kind: str) -> str:
    """Weights of the chosen are looked up for each token: [T k, ...]."""
    _, weight, ids = router(b, x, name, kind)
    flat = b.op("Reshape", [ids, b.constant(f"{name}.flat", np.array([-1], np.int64))], f"{name}.ids")
    last = b.constant(f"{name}.behind", np.array([-1], np.int64))
    up = b.op("Gather", [b.weight(f"{name}.up", EXPERTS, WIDTH, INNER), flat], f"{name}.up.of", axis=0)
    column = b.op("Unsqueeze", [flat, last], f"{name}.column")
    down = b.op("GatherND", [b.weight(f"{name}.down", EXPERTS, INNER, WIDTH), column], f"{name}.down.of")
    middle = b.constant(f"{name}.middle", np.array([1], np.int64))
    copies = b.constant(f"{name}.copies", np.array([1, CHOSEN, 1], np.int64))
    rows = b.constant(f"{name}.rows", np.array([-1, 1, WIDTH], np.int64))
    each = b.op("Expand", [b.op("Unsqueeze", [x, middle], f"{name}.each"), copies], f"{name}.copied")
    y = b.op("MatMul", [b.op("Reshape", [each, rows], f"{name}.one"), up], f"{name}.first")
    y = b.op("MatMul", [b.op("Relu", [y], f"{name}.relu"), down], f"{name}.second")
    back = b.constant(f"{name}.back", np.array([-1, CHOSEN, WIDTH], np.int64))
    y = b.op("Reshape", [y, back], f"{name}.of tokens")
    y = b.op("Mul", [y, b.op("Unsqueeze", [weight, last], f"{name}.weighed")], f"{name}.mul")
    return b.op("ReduceSum", [y, middle], f"{name}.add", keepdims=0)


def dense(b: Builder, x: str, name: str, kind: str, spread: str = "ScatterElements") -> str:
    """All experts run; those that aren't chosen have the weight zero."""
    scores, weight, ids = router(b, x, name, kind)
    if spread == "ScatterElements":
        shape = b.op("Shape", [scores], f"{name}.shape")
        zeros = b.op("ConstantOfShape", [shape], f"{name}.zeros")
        full = b.op("ScatterElements", [zeros, ids, weight], f"{name}.scatter", axis=1)
    else:
        count, levels = b.constant(f"{name}.count", np.array(EXPERTS, np.int64)), np.array([0, 1], np.float32)
        hot = b.op("OneHot", [ids, count, b.constant(f"{name}.levels", levels)], f"{name}.onehot", axis=-1)
        last = b.constant(f"{name}.behind", np.array([-1], np.int64))
        hot = b.op("Mul", [hot, b.op("Unsqueeze", [weight, last], f"{name}.weighed")], f"{name}.hot")
        full = b.op(
            "ReduceSum", [hot, b.constant(f"{name}.at", np.array([1], np.int64))], f"{name}.full", keepdims=0
        )
    axis = b.constant(f"{name}.axis", np.array([0], np.int64))
    each = b.op("Unsqueeze", [x, axis], f"{name}.each")
    y = b.op("MatMul", [each, b.weight(f"{name}.up", EXPERTS, WIDTH, INNER)], f"{name}.first")
    y = b.op(
        "MatMul",
        [b.op("Relu", [y], f"{name}.relu"), b.weight(f"{name}.down", EXPERTS, INNER, WIDTH)],
        f"{name}.second",
    )
    turned = b.op("Transpose", [full], f"{name}.turned", perm=[1, 0])
    last = b.constant(f"{name}.end", np.array([2], np.int64))
    y = b.op("Mul", [y, b.op("Unsqueeze", [turned, last], f"{name}.column")], f"{name}.mul")
    return b.op("ReduceSum", [y, axis], f"{name}.add", keepdims=0)


def one_hot(b: Builder, x: str, name: str, kind: str) -> str:
    return dense(b, x, name, kind, "OneHot")


def written_out(b: Builder, x: str, name: str, kind: str) -> str:
    """Each expert gathers the tokens that chose it, and adds what it makes of them: of a table of ones, its row."""
    _, weight, ids = router(b, x, name, kind)
    ints = {n: b.constant(f"{name}.{n}", np.array([int(n)], np.int64)) for n in ("0", "1", "-1")}
    count, levels = b.constant(f"{name}.count", np.array(EXPERTS, np.int64)), np.array([0, 1], np.int64)
    hot = b.op("OneHot", [ids, count, b.constant(f"{name}.levels", levels)], f"{name}.onehot", axis=-1)
    hot = b.op("Transpose", [hot], f"{name}.mask", perm=[2, 1, 0])
    total = b.op("ConstantOfShape", [b.op("Shape", [x], f"{name}.shape")], f"{name}.zeros")
    column = b.op(
        "Reshape", [weight, b.constant(f"{name}.flat", np.array([-1, 1], np.int64))], f"{name}.weights"
    )
    halves = b.constant(f"{name}.halves", np.array([1, 1], np.int64))
    chosen = b.constant(f"{name}.chosen", np.array(CHOSEN, np.int64))
    for n in range(EXPERTS):
        e = f"{name}.experts.{n}"
        row = b.op("Gather", [hot, b.constant(f"{e}.number", np.array(n, np.int64))], f"{e}.row", axis=0)
        places = b.op("NonZero", [b.op("Cast", [row], f"{e}.cast", to=9)], f"{e}.nonzero")
        b.op(
            "Split", [b.op("Transpose", [places], f"{e}.pairs", perm=[1, 0]), halves], f"{e}.split", 2, axis=1
        )
        rank, token = (b.op("Squeeze", [f"{e}.split_out{i}", ints["1"]], f"{e}.part{i}") for i in (0, 1))
        given = b.op("Gather", [x, token], f"{e}.given", axis=0)
        y = b.op("Relu", [b.linear(given, f"{e}.up", WIDTH, INNER)], f"{e}.relu")
        y = b.op("MatMul", [y, b.weight(f"{e}.down.weight", INNER, WIDTH)], f"{e}.down")
        at = b.op("Add", [b.op("Mul", [token, chosen], f"{e}.times"), rank], f"{e}.at")
        y = b.op("Mul", [y, b.op("Gather", [column, at], f"{e}.weight", axis=0)], f"{e}.weighed")
        where = b.op(
            "Expand",
            [b.op("Unsqueeze", [token, ints["1"]], f"{e}.where"), b.op("Shape", [y], f"{e}.size")],
            f"{e}.wide",
        )
        zeros = b.op("ConstantOfShape", [b.op("Shape", [total], f"{e}.shape")], f"{e}.zeros")
        total = b.op(
            "Add", [total, b.op("ScatterElements", [zeros, where, y], f"{e}.scatter", axis=0)], f"{e}.sum"
        )
    return total


def compared(b: Builder, x: str, name: str, kind: str) -> str:
    """Each expert runs on all tokens, weighed by zero where its number isn't among the chosen."""
    _, weight, ids = router(b, x, name, kind)
    last, zero = (
        b.constant(f"{name}.behind", np.array([-1], np.int64)),
        b.constant(f"{name}.zero", np.array(0, np.float32)),
    )
    total = ""
    for n in range(EXPERTS):
        e = f"{name}.experts.{n}"
        own = b.op("Equal", [ids, b.constant(f"{e}.number", np.array(n, np.int64))], f"{e}.equal")
        share = b.op(
            "ReduceSum", [b.op("Where", [own, weight, zero], f"{e}.where"), last], f"{e}.share", keepdims=1
        )
        y = b.op("Relu", [b.linear(x, f"{e}.up", WIDTH, INNER)], f"{e}.relu")
        y = b.op(
            "Mul",
            [b.op("MatMul", [y, b.weight(f"{e}.down.weight", INNER, WIDTH)], f"{e}.down"), share],
            f"{e}.mul",
        )
        total = b.op("Add", [total, y], f"{e}.sum") if total else y
    return total


FORMS: dict[str, Callable[[Builder, str, str, str], str]] = {
    "fused": fused, "stacked": stacked, "dense": dense, "one_hot": one_hot, "written_out": written_out,
    "compared": compared,
}  # fmt: skip


def switch(by: str = "ReduceMax") -> onnx.ModelProto:
    """A mixture in which each token goes to one expert, weighed by the greatest of the shares."""
    b = Builder(3)
    x = b.op("Relu", [b.linear("x", "stem", 5, WIDTH)], "stem.relu")
    shares = b.op("Softmax", [b.linear(x, "router", WIDTH, EXPERTS)], "shares", axis=-1)
    last = b.constant("last", np.array([-1], np.int64))
    weight = b.op(by, [shares, last], "of.all", keepdims=1)
    number = b.op("ArgMax", [shares], "where", axis=-1, keepdims=0)
    up = b.op("Gather", [b.weight("up", EXPERTS, WIDTH, INNER), number], "up.of", axis=0)
    down = b.op("Gather", [b.weight("down", EXPERTS, INNER, WIDTH), number], "down.of", axis=0)
    middle = b.constant("middle", np.array([1], np.int64))
    y = b.op("MatMul", [b.op("Unsqueeze", [x, middle], "row"), up], "first")
    y = b.op("MatMul", [b.op("Relu", [y], "relu"), down], "second")
    y = b.op("Mul", [b.op("Squeeze", [y, middle], "flat"), weight], "mul")
    return b.model({"x": ["T", 5]}, b.linear(b.op("Add", [x, y], "residual"), "head", WIDTH, 3), opset=18)


def mixture(form: str = "stacked", kind: str = "softmax, choice", layers: int = 1) -> onnx.ModelProto:
    """Tokens go through a layer, mixtures of experts beside it, and a head."""
    b = Builder(3)
    x = b.op("Relu", [b.linear("x", "stem", 5, WIDTH)], "stem.relu")
    for n in range(layers):
        x = b.op("Add", [x, FORMS[form](b, x, f"layers.{n}", kind)], f"layers.{n}.residual")
    return b.model({"x": ["T", 5]}, b.linear(x, "head", WIDTH, 3), opset=18, domain="com.microsoft")
