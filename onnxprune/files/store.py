"""The weights of a light ModelProto: found by name, read, replaced.

In a light proto the data of a weight may be a *token*, in ``raw_data`` or, where the weight is external, in
the location. A token names a `Payload` of the store. It moves and is copied with its tensor, so the graph may
be edited freely.
"""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import onnx
from onnx import numpy_helper

from onnxprune.errors import ModelError
from onnxprune.files import payload, wire
from onnxprune.files.external import Folder, is_external, point
from onnxprune.files.fold import fold
from onnxprune.files.payload import Array, Payload
from onnxprune.files.protowalk import is_constant, tensors
from onnxprune.files.scratch import Scratch

__all__ = [
    "DETACH_ABOVE",
    "Piece",
    "Store",
    "WeightInfo",
    "joined",
    "new_token",
    "stored",
    "token_of",
    "weights",
]

DETACH_ABOVE = 1024  # bytes; smaller weights (shapes, scalars) stay in the proto

# A token is unique in this process and can't be forged by a file, which was written before.
_PREFIX = f"onnxprune-weight-{secrets.token_hex(8)}-"
_counter = itertools.count()
_FIELDS = (
    "raw_data",
    "float_data",
    "int32_data",
    "int64_data",
    "uint64_data",
    "double_data",
    "string_data",
    "external_data",
    "data_location",
)
_VALUES: dict[str, tuple[str, Any]] = {
    "value_float": ("f", np.float32),
    "value_floats": ("floats", np.float32),
    "value_int": ("i", np.int64),
    "value_ints": ("ints", np.int64),
}

Piece = memoryview | bytes | Payload


def new_token() -> str:
    """A token that no other weight has."""
    return f"{_PREFIX}{next(_counter):016x}"


def token_of(tensor: onnx.TensorProto) -> str | None:
    """The token that stands for a tensor's data, if one does."""
    if is_external(tensor):
        return next((e.value for e in tensor.external_data if e.value.startswith(_PREFIX)), None)
    if tensor.HasField("raw_data") and tensor.raw_data.startswith(_PREFIX.encode()):
        return tensor.raw_data.decode()
    return None


def strip(tensor: onnx.TensorProto) -> None:
    """Remove the data of a tensor, wherever it says it is."""
    for field in _FIELDS:
        tensor.ClearField(field)


def constant_attribute(node: onnx.NodeProto) -> onnx.AttributeProto | None:
    """The attribute of a Constant node that holds numbers; None for any other node and other values."""
    if not is_constant(node) or not node.output:
        return None
    return next((a for a in node.attribute if a.name == "value" or a.name in _VALUES), None)


def weights(graph: onnx.GraphProto) -> Iterator[tuple[str, bool, int]]:
    """Name, whether it's a Constant node, and index, of every weight of a graph."""
    for index, tensor in enumerate(graph.initializer):
        yield tensor.name, False, index
    for index, node in enumerate(graph.node):
        if constant_attribute(node) is not None:
            yield node.output[0], True, index


def joined(light: bytes, payloads: Mapping[str, Payload]) -> tuple[int, list[Piece]]:
    """The length and the pieces of a complete model, from a light one with its tokens in ``raw_data``."""

    def lookup(token: bytes) -> tuple[int, int, Payload]:
        data = payloads[token.decode()]
        return data.slot, data.nbytes, data

    return wire.join(light, _PREFIX.encode(), lookup)


def stored(piece: Piece) -> memoryview | bytes:
    """The bytes of a piece; a weight is read, and cut, here and not before."""
    return piece.stored().data if isinstance(piece, Payload) else piece


@dataclass(frozen=True)
class WeightInfo:
    """What is known of a weight without reading it.

    Attributes
    ----------
    dims : tuple of int
    elem_type : int
        ONNX's number of the element type.
    nbytes : int
        Bytes in storage; 0 for strings.
    kind : str
        ``"initializer"`` or ``"constant"``.
    node_index : int or None
        The index of the Constant node in ``proto.graph.node``.
    """

    dims: tuple[int, ...]
    elem_type: int
    nbytes: int
    kind: Literal["initializer", "constant"]
    node_index: int | None


class Store:
    """The weights of the main graph of a light proto.

    Parameters
    ----------
    proto : onnx.ModelProto
        The light proto; it's edited in place.
    folder : Folder or None
        Where external data is.
    payloads : dict
        Token -> data.
    unfolded : bool
        Whether bodies are laid open in the main graph (`onnxprune.files.bodies`).
    scratch : Scratch, optional
        Of the model that this is a fork of.
    """

    def __init__(
        self,
        proto: onnx.ModelProto,
        folder: Folder | None,
        payloads: dict[str, Payload],
        unfolded: bool = False,
        scratch: Scratch | None = None,
    ) -> None:
        self.proto = proto
        self.scratch: Scratch = scratch or Scratch()
        self.folder = folder
        self.payloads = payloads
        self.unfolded = unfolded
        self._index: dict[str, tuple[bool, int]] = {}
        self._stamp = (-1, -1)

    def of(self, proto: onnx.ModelProto) -> Store:
        """Return the store of a copy of the proto; payloads are shared."""
        return Store(proto, self.folder, dict(self.payloads), self.unfolded, self.scratch)

    def some(self, proto: onnx.ModelProto, names: Iterable[str]) -> Store:
        """Return the store of another proto, which gets some of these weights as initializers; none is copied."""
        other = Store(proto, None, {}, self.unfolded, self.scratch)
        for name in names:
            source, tensor = self.tensor(name), proto.graph.initializer.add(name=name)
            data = self.payload(source, repr(name))
            if data is None:
                tensor.CopyFrom(numpy_helper.from_array(self.array(source, repr(name)), name))
            else:
                other.hold(tensor, data)
        return other

    def refresh(self) -> dict[str, tuple[bool, int]]:
        """Find all weights anew."""
        graph = self.proto.graph
        self._index = {name: (is_node, index) for name, is_node, index in weights(graph)}
        self._stamp = (len(graph.initializer), len(graph.node))
        return self._index

    def find(self, name: str) -> tuple[bool, int] | None:
        """Whether a weight is a Constant node, and its index; None where there is no such weight."""
        graph = self.proto.graph
        if self._stamp != (len(graph.initializer), len(graph.node)):
            self.refresh()
        place = self._index.get(name)
        if place is None:
            return None
        is_node, index = place
        if is_node:
            node = graph.node[index]
            same = bool(node.output) and node.output[0] == name and is_constant(node)
        else:
            same = graph.initializer[index].name == name
        return place if same else self.refresh().get(name)  # the graph was edited at equal length

    def place(self, name: str) -> tuple[bool, int]:
        """As `find`, but a name that isn't a weight is an error."""
        place = self.find(name)
        if place is None:
            raise ModelError(
                f"The model has no weight {name!r}: no initializer and no Constant node of its "
                "main graph has that name."
            )
        return place

    def tensor(self, name: str, edit: bool = False) -> onnx.TensorProto:
        """The tensor of a weight; with `edit`, one that is part of the proto.

        A Constant node may hold its value in another attribute than ``value``; to be edited it's moved there.
        """
        is_node, index = self.place(name)
        tensor: onnx.TensorProto
        if not is_node:
            tensor = self.proto.graph.initializer[index]
            return tensor
        attribute = constant_attribute(self.proto.graph.node[index])
        assert attribute is not None  # it's in the index
        if attribute.name == "value":
            return attribute.t
        field, dtype = _VALUES[attribute.name]
        tensor = numpy_helper.from_array(np.array(getattr(attribute, field), dtype))
        if not edit:
            return tensor
        attribute.ClearField(field)
        attribute.name, attribute.type = "value", onnx.AttributeProto.TENSOR
        attribute.t.CopyFrom(tensor)
        return attribute.t

    def payload(self, tensor: onnx.TensorProto, what: object) -> Payload | None:
        """The data of a tensor, or None where the proto itself holds it."""
        token = token_of(tensor)
        if token is not None:
            return self.payloads[token]
        if not is_external(tensor):
            return None
        if self.folder is None:
            raise ModelError(
                f"The data of {what} is external, but a model in memory has no folder to look "
                "in; load the model from its path, or give base_dir."
            )
        dims, kind = tuple(tensor.dims), tensor.data_type
        return Payload(self.folder.span(tensor, payload.nbytes(dims, kind), what), dims, kind)

    def array(self, tensor: onnx.TensorProto, what: object) -> Array:
        """The values of a tensor, read-only."""
        data = self.payload(tensor, what)
        if data is not None:
            return data.array()
        array = numpy_helper.to_array(tensor)
        array.flags.writeable = False
        return array

    def hold(self, tensor: onnx.TensorProto, data: Payload) -> None:
        """Give a tensor other data, embedded or external as it was; the rest of it stays."""
        external = is_external(tensor)
        strip(tensor)  # the old payload stays: copies of this tensor may have the same token
        tensor.dims[:] = data.kept_dims
        tensor.data_type = data.elem_type
        if external or data.nbytes > DETACH_ABOVE:
            token = new_token()
            self.payloads[token] = data
            if external:
                point(tensor, token)
            else:
                tensor.raw_data = token.encode()
        else:
            tensor.raw_data = data.stored().tobytes()

    def put(self, tensor: onnx.TensorProto, array: Array) -> None:
        """Give a tensor other values, of any shape and type."""
        if array.dtype == object or array.dtype.kind in "US":
            plain = numpy_helper.from_array(array)
            strip(tensor)
            tensor.dims[:], tensor.data_type = plain.dims, plain.data_type
            tensor.string_data.extend(plain.string_data)
            return
        data = payload.from_array(array, onnx.helper.np_dtype_to_tensor_dtype(array.dtype))
        self.hold(tensor, replace(data, data=self.scratch.hold(data.data)))

    def drop(self, names: set[str]) -> None:
        """Remove initializers and Constant nodes."""
        graph = self.proto.graph
        for is_node, index in sorted((self.place(name) for name in names), reverse=True):
            if is_node:
                del graph.node[index]
            else:
                del graph.initializer[index]
        self.refresh()

    def closed(self, wanted: Iterable[str] = ()) -> onnx.ModelProto:
        """A light copy as files have it: bodies hold what is theirs, but for what is wanted in the main graph."""
        proto = onnx.ModelProto()
        proto.CopyFrom(self.proto)
        if self.unfolded:
            fold(proto, wanted)
        return proto

    def embedded(self, wanted: Iterable[str] = ()) -> tuple[onnx.ModelProto, dict[str, Payload]]:
        """A light copy with no external tensor, and the payloads of its tokens; see `closed`."""
        proto, payloads = self.closed(wanted), dict(self.payloads)
        for place, tensor in tensors(proto):
            if is_external(tensor):
                data = self.payload(tensor, place)
                assert data is not None  # it's external
                strip(tensor)
                token = new_token()
                payloads[token] = data
                tensor.raw_data = token.encode()
        return proto, payloads
