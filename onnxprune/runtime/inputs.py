"""Random values for a model's inputs, and types of tensors found by running it on them."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto

from onnxprune.model import Model
from onnxprune.runtime.binding import Shape, Typed, real_inputs
from onnxprune.runtime.categories import categories
from onnxprune.runtime.ids import Ids, id_bounds
from onnxprune.runtime.said import said_in_values
from onnxprune.runtime.session import Array, RunError, Session, open_session

__all__ = ["NoValues", "Trial", "random_inputs", "texts", "verdict"]


class NoValues(RunError):
    """No values can be drawn for an input."""


def random_inputs(
    model: Model, shapes: Mapping[str, Shape], rng: np.random.Generator, *,
    scale: float = 1.0, sizes: Mapping[str, Typed] | None = None, ones: bool = False,
) -> dict[str, Array]:  # fmt: skip
    """Draw values for the inputs of a model.

    Floats are normal; booleans are drawn, integers too: ids that a Gather looks up stay within the table,
    those that say a size have it, a single one that is compared with a constant is that, others are 0 or 1.
    Texts are those that the model looks up.
    Inputs named like a mask are ones, so that nothing is masked. Inputs that double as
    initializers are left out.

    Parameters
    ----------
    model : Model
    shapes : mapping
        Input -> shape.
    rng : numpy.random.Generator
    scale : float
        Standard deviation of floats.
    sizes : mapping, optional
        Tensor -> (element type, shape), to find tables that are not weights.
    ones : bool
        Give ones to all integers.

    Raises
    ------
    NoValues
        If none can be drawn for an input: a map, or texts where the model lists none.
    """
    graph = model.proto.graph
    ids = id_bounds(model, sizes or {})
    lengths, known = said_in_values(graph, shapes), compared(model)
    feed: dict[str, Any] = {}
    for value in real_inputs(graph):
        name, shape = value.name, shapes.get(value.name, ())
        kind = value.type.WhichOneof("value")
        if kind == "sequence_type":
            feed[name] = [_element(value, rng) * scale for _ in range(2)]
        elif kind == "optional_type":
            feed[name] = _element(value, rng) * scale
        elif kind != "tensor_type":
            raise NoValues(f"no random values can be drawn for the input '{name}', which is no tensor")
        elif value.type.tensor_type.elem_type == TensorProto.STRING:
            feed[name] = texts(graph, name, shape, rng)
        elif name in known and prod(shape) == 1:
            feed[name] = np.full(shape, known[name])
        elif name in lengths:
            dtype = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
            feed[name] = np.full(shape, lengths[name], dtype)
        else:
            feed[name] = _numbers(value, shape, ids, rng, scale, ones)
    return feed


def compared(model: Model) -> dict[str, Array]:
    """Return the first constant that each integer input is compared with: a sampling rate, the number of a mode."""
    graph = model.proto.graph
    integers = {
        v.name
        for v in real_inputs(graph)
        if v.type.tensor_type.elem_type in (TensorProto.INT64, TensorProto.INT32)
    }
    known: dict[str, Array] = {}
    for node in graph.node if integers else ():
        if node.op_type == "Equal" and not node.domain:
            for name, constant in (tuple(node.input), tuple(node.input)[::-1]):
                if name in integers and constant in model and np.prod(model.info(constant).dims) == 1:
                    known.setdefault(name, np.asarray(model.weight(constant)).reshape(()))
    return known


def texts(graph: onnx.GraphProto, name: str, shape: Shape, rng: np.random.Generator) -> Array:
    """Draw from the texts that the model itself lists for an input of strings.

    Raises
    ------
    NoValues
        If it lists none.
    """
    known = categories(graph, name)
    if not known:
        raise NoValues(
            f"no values can be drawn for the input '{name}', which takes texts, since no node behind it lists any"
        )
    return np.array(known, object)[rng.integers(0, len(known), shape)].reshape(shape)


def _element(value: onnx.ValueInfoProto, rng: np.random.Generator) -> Array:
    """Draw one tensor of a sequence, or the tensor of an optional value."""
    inner = getattr(value.type, str(value.type.WhichOneof("value"))).elem_type.tensor_type
    if inner.elem_type not in _FLOATS or not inner.HasField("shape"):
        raise NoValues(
            f"no random values can be drawn for the input '{value.name}', whose elements aren't floats of a known shape"
        )
    shape = [dim.dim_value if dim.HasField("dim_value") else 2 for dim in inner.shape.dim]
    return rng.standard_normal(shape).astype(onnx.helper.tensor_dtype_to_np_dtype(inner.elem_type))


_FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16)


def _numbers(
    value: onnx.ValueInfoProto,
    shape: Shape,
    ids: Mapping[str, Ids],
    rng: np.random.Generator,
    scale: float,
    ones: bool,
) -> Array:
    dtype = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
    if dtype.kind not in "biu":
        return np.asarray(rng.standard_normal(shape) * scale).astype(dtype)
    flat = ones or "mask" in value.name.lower()
    free = Ids.below(256 if dtype.kind != "b" and dtype.itemsize == 1 else 2)
    own = ids.get(value.name, free)
    return (own.ones(shape) if flat else own.draw(shape, rng)).astype(dtype)


class Trial:
    """Runs a model on random inputs to see whether it takes them; its session is opened once."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self._session: Session | None = None
        self._off = False

    def __call__(self, shapes: Mapping[str, Shape]) -> str:
        """Say why inputs of these shapes can't be run; nothing where they can, or where nothing can be said."""
        feeds = []
        try:
            if self._session is None and not self._off:
                self._off = True  # unless it opens
                self._session = open_session(self.model)
            for ones in (False, True):
                feeds.append(random_inputs(self.model, shapes, np.random.default_rng(0), ones=ones))
        except RunError:
            return ""
        if self._session is None:
            return ""
        why = ""
        for feed in feeds:
            try:
                self._session.run(feed)
            except RunError as error:
                why = why or str(error)
            else:
                return ""
        return why


def verdict(model: Model, inputs: Mapping[str, Shape]) -> str:
    """Say what onnxruntime makes of a model whose shapes don't agree, as the end of a sentence.

    Parameters
    ----------
    model : Model
    inputs : mapping
        Input -> shape.
    """
    try:
        session = open_session(model)
    except RunError:
        return "and onnxruntime doesn't load it either"
    try:
        session.run(random_inputs(model, inputs, np.random.default_rng(0)))
    except NoValues as error:
        return f"and whether onnxruntime runs it can't be seen ({error})"
    except RunError:
        return "and onnxruntime doesn't run it on random inputs either"
    return "though onnxruntime runs it"
