"""Ways to damage a model: each takes a random generator and a ModelProto, and changes it in place or gives bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import onnx
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

__all__ = ["MUTATIONS", "damaged"]

Rng = np.random.Generator
INTEGERS = (
    0,
    1,
    -1,
    2,
    -2,
    3,
    7,
    64,
    1 << 16,
    (1 << 31) - 1,
    -(1 << 31),
    1 << 31,
    1 << 40,
    (1 << 63) - 1,
    -(1 << 63),
)
FLOATS = (0.0, -0.0, 1.0, -1.0, 1e-30, 1e30, 3e38, float("inf"), float("-inf"), float("nan"))
TEXTS = (
    "",
    "x",
    "y",
    "NOTSET",
    "SAME_UPPER",
    "\x1b[2J",
    "\u202e",
    "\u91cd\u307f",
    "a" * 5000,
    "ij,jk->ik",
    "%",
    "...",
    "../../x",
)
ATTRIBUTES = ("axis", "axes", "perm", "keepdims", "group", "strides", "pads", "kernel_shape", "to", "alpha")
TYPES = (np.float32, np.float64, np.int64, np.int8, np.bool_, np.float16)
OPSETS = (0, -1, 1, 6, 7, 9, 11, 13, 17, 18, 21, 22, 24, 26, 28, 99, 1 << 40)

MUTATIONS: dict[str, Callable[[Rng, ModelProto], bytes | None]] = {}


def mutation(
    function: Callable[[Rng, ModelProto], bytes | None],
) -> Callable[[Rng, ModelProto], bytes | None]:
    MUTATIONS[function.__name__] = function
    return function


def damaged(rng: Rng, model: ModelProto) -> tuple[bytes, str]:
    """Return a damaged copy of a model, one to three times, and what was done."""
    copy = ModelProto()
    copy.CopyFrom(model)
    names = [str(name) for name in rng.choice(list(MUTATIONS), size=int(rng.integers(1, 4)))]
    raw: bytes | None = None
    for name in sorted(names, key=lambda n: n == "bytes_"):
        try:
            raw = MUTATIONS[name](rng, copy) or raw
        except (IndexError, ValueError, TypeError, OverflowError, KeyError):
            continue  # there is nothing of that kind in the model
    return raw or copy.SerializeToString(), "+".join(names)


def _graphs(graph: GraphProto) -> Iterator[GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _graphs(attribute.g)


def _graph(rng: Rng, model: ModelProto) -> GraphProto:
    graphs = list(_graphs(model.graph))
    return graphs[int(rng.integers(len(graphs)))]


def _node(rng: Rng, model: ModelProto) -> NodeProto:
    nodes = _graph(rng, model).node
    return nodes[int(rng.integers(len(nodes)))]


def _tensor(rng: Rng, model: ModelProto) -> TensorProto:
    found = list(model.graph.initializer)
    found += [a.t for n in model.graph.node for a in n.attribute if a.HasField("t")]
    return found[int(rng.integers(len(found)))]


def _pick(rng: Rng, values: tuple | list) -> object:
    return values[int(rng.integers(len(values)))]


def _names(model: ModelProto) -> list[str]:
    graph = model.graph
    found = [v.name for v in (*graph.input, *graph.output)] + [t.name for t in graph.initializer]
    return [*found, *(o for n in graph.node for o in n.output), "", "nowhere"]


@mutation
def bytes_(rng: Rng, model: ModelProto) -> bytes:
    """Bytes changed, inserted, removed, repeated, or the end cut off."""
    data = bytearray(model.SerializeToString())
    for _ in range(int(rng.integers(1, 6))):
        at, kind = int(rng.integers(len(data))), int(rng.integers(5))
        if kind == 0:
            data[at] = int(rng.integers(256))
        elif kind == 1:
            data[at:at] = rng.integers(0, 256, int(rng.integers(1, 9))).astype(np.uint8).tobytes()
        elif kind == 2:
            del data[at : at + int(rng.integers(1, 9))]
        elif kind == 3:
            data[at:at] = data[max(0, at - 16) : at]
        else:
            del data[max(1, len(data) - int(rng.integers(1, 64))) :]
    return bytes(data)


@mutation
def dims(rng: Rng, model: ModelProto) -> None:
    """A dim of a weight."""
    tensor = _tensor(rng, model)
    kind = int(rng.integers(4))
    if kind == 0 and tensor.dims:
        tensor.dims[int(rng.integers(len(tensor.dims)))] = _pick(rng, INTEGERS)
    elif kind == 1:
        tensor.dims.append(int(rng.integers(0, 3)))
    elif kind == 2 and tensor.dims:
        del tensor.dims[-1]
    else:
        tensor.dims[:] = list(tensor.dims)[::-1]


@mutation
def declared(rng: Rng, model: ModelProto) -> None:
    """A dim or the type of an input, an output or a value in between."""
    graph = _graph(rng, model)
    values = [*graph.input, *graph.output, *graph.value_info]
    kind = values[int(rng.integers(len(values)))].type.tensor_type
    if rng.random() < 0.3:
        kind.elem_type = int(rng.integers(0, 30))
    elif rng.random() < 0.5 and kind.shape.dim:
        dim = kind.shape.dim[int(rng.integers(len(kind.shape.dim)))]
        dim.dim_value = _pick(rng, INTEGERS)
    elif kind.shape.dim and rng.random() < 0.5:
        kind.shape.dim[int(rng.integers(len(kind.shape.dim)))].dim_param = str(_pick(rng, TEXTS))
    elif rng.random() < 0.5:
        kind.shape.dim.add().dim_value = int(rng.integers(0, 5))
    else:
        kind.ClearField("shape")


@mutation
def attributes(rng: Rng, model: ModelProto) -> None:
    """An attribute's value, type or name; one more, or one less."""
    node = _node(rng, model)
    kind = int(rng.integers(4))
    if kind == 0 and node.attribute:
        del node.attribute[int(rng.integers(len(node.attribute)))]
    elif kind == 1:
        name = str(
            _pick(
                rng,
                (
                    "axis",
                    "axes",
                    "perm",
                    "keepdims",
                    "group",
                    "strides",
                    "pads",
                    "kernel_shape",
                    "to",
                    "alpha",
                ),
            )
        )
        value = _pick(rng, [*INTEGERS, *FLOATS, [1, 1], [int(_pick(rng, INTEGERS))] * 2, "x"])
        node.attribute.append(helper.make_attribute(name, value))
    elif node.attribute:
        _change(rng, node.attribute[int(rng.integers(len(node.attribute)))])


def _change(rng: Rng, attribute: AttributeProto) -> None:
    if rng.random() < 0.15:
        attribute.type = int(rng.integers(0, 15))
    elif attribute.type == AttributeProto.INT:
        attribute.i = _pick(rng, INTEGERS)
    elif attribute.type == AttributeProto.INTS:
        values = list(attribute.ints)
        if values and rng.random() < 0.7:
            values[int(rng.integers(len(values)))] = _pick(rng, INTEGERS)
        else:
            values = values[:-1] if rng.random() < 0.5 else [*values, int(rng.integers(-3, 4))]
        attribute.ints[:] = values
    elif attribute.type == AttributeProto.FLOAT:
        attribute.f = _pick(rng, FLOATS)
    elif attribute.type == AttributeProto.STRING:
        attribute.s = _pick(
            rng, (b"", b"x", b"\xff", b"SAME_LOWER", b"constant", b"linear", b"%%", b"a" * 3000)
        )
    elif attribute.type == AttributeProto.FLOATS and attribute.floats:
        attribute.floats[0] = _pick(rng, FLOATS)
    else:
        attribute.name = "other"


@mutation
def arity(rng: Rng, model: ModelProto) -> None:
    """One input or output more, less, or empty."""
    node = _node(rng, model)
    side = node.input if rng.random() < 0.6 else node.output
    kind = int(rng.integers(4))
    if kind == 0 and side:
        del side[int(rng.integers(len(side)))]
    elif kind == 1 and side:
        side[int(rng.integers(len(side)))] = ""
    elif kind == 2:
        side.append(str(_pick(rng, _names(model))))
    elif side:
        side.append(side[0])


@mutation
def edges(rng: Rng, model: ModelProto) -> None:
    """A node reads, or an output is, another value; a cycle, or something that isn't there, among them."""
    if rng.random() < 0.2:
        model.graph.output[0].name = str(_pick(rng, _names(model)))
        return
    node = _node(rng, model)
    node.input[int(rng.integers(len(node.input)))] = str(_pick(rng, _names(model)))


@mutation
def opsets(rng: Rng, model: ModelProto) -> None:
    """Versions of operator sets and of the format."""
    kind = int(rng.integers(4))
    if kind == 0:
        model.ir_version = int(_pick(rng, (0, 3, 4, 7, 10, 13, 14, 99)))
    elif kind == 1:
        model.opset_import.append(
            helper.make_opsetid(str(_pick(rng, ("", "ai.onnx", "com.microsoft", "x"))), 1)
        )
    elif kind == 2 and len(model.opset_import):
        del model.opset_import[0]
    else:
        model.opset_import[0].version = int(_pick(rng, OPSETS))


@mutation
def names(rng: Rng, model: ModelProto) -> None:
    """A name that is empty, taken, endless, or meant for a terminal."""
    graph = model.graph
    kind, text = int(rng.integers(4)), str(_pick(rng, [*TEXTS, *_names(model)]))
    if kind == 0:
        _node(rng, model).name = text
    elif kind == 1:
        old = str(_pick(rng, _names(model)))
        for node in graph.node:
            for side in (node.input, node.output):
                side[:] = [text if n == old else n for n in side]
        for value in (*graph.input, *graph.output, *graph.initializer):
            value.name = text if value.name == old else value.name
    elif kind == 2:
        _node(rng, model).domain = text[:100]
    else:
        _tensor(rng, model).name = text


@mutation
def types(rng: Rng, model: ModelProto) -> None:
    """The element type of a weight, with or without its bytes."""
    tensor = _tensor(rng, model)
    if rng.random() < 0.5:
        tensor.data_type = int(rng.integers(0, 28))
        return
    array = numpy_helper.to_array(tensor).astype(
        _pick(rng, (np.float32, np.float64, np.int64, np.int8, np.bool_, np.float16))
    )
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


@mutation
def values(rng: Rng, model: ModelProto) -> None:
    """Values of a weight: extremes, not a number, fewer bytes than it says."""
    tensor = _tensor(rng, model)
    array = numpy_helper.to_array(tensor).copy()
    if rng.random() < 0.2:
        tensor.raw_data = array.tobytes()[: int(rng.integers(0, max(1, array.nbytes)))]
        return
    flat = array.reshape(-1)
    at = int(rng.integers(flat.size))
    if array.dtype.kind == "f":
        flat[at] = _pick(rng, FLOATS)
    elif array.dtype.kind in "iu":
        limits = np.iinfo(array.dtype)
        flat[at] = int(np.clip(int(_pick(rng, INTEGERS)), limits.min, limits.max))
    tensor.CopyFrom(numpy_helper.from_array(flat.reshape(array.shape), tensor.name))


@mutation
def nodes(rng: Rng, model: ModelProto) -> None:
    """A node less, twice, elsewhere, or of another op."""
    graph = _graph(rng, model)
    at, kind = int(rng.integers(len(graph.node))), int(rng.integers(4))
    if kind == 0:
        del graph.node[at]
    elif kind == 1:
        graph.node.add().CopyFrom(graph.node[at])
    elif kind == 2:
        moved = NodeProto()
        moved.CopyFrom(graph.node[at])
        del graph.node[at]
        graph.node.insert(int(rng.integers(len(graph.node) + 1)), moved)
    else:
        schemas = onnx.defs.get_all_schemas()
        graph.node[at].op_type = schemas[int(rng.integers(len(schemas)))].name


@mutation
def inputs(rng: Rng, model: ModelProto) -> None:
    """An input that is a weight too, one less, or a weight that became an input."""
    graph = model.graph
    kind = int(rng.integers(3))
    if kind == 0 and graph.initializer:
        tensor = graph.initializer[int(rng.integers(len(graph.initializer)))]
        graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    elif kind == 1 and graph.input:
        del graph.input[int(rng.integers(len(graph.input)))]
    elif graph.initializer:
        at = int(rng.integers(len(graph.initializer)))
        tensor = graph.initializer[at]
        graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
        del graph.initializer[at]
