"""An ONNX model whose weights stay where they are.

`Model.proto` is the truth, an ordinary ModelProto that may be edited in place, but a *light* one: the data of
every weight of more than 1 KiB is left in the file, which is mapped and not read. In the light proto such a
weight has its name, type and dimensions, and for data a short token that only its Model can resolve. So a
proto of 100 MB parses, copies and goes through C++ in no time, and a model of any size fits in memory. Read
data with `Model.weight`, never from the proto; a complete proto or file comes from `Model.to_proto` and
`Model.save`.

Tensors in external data keep ``data_location == EXTERNAL``, embedded ones stay embedded.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import ArrayLike, NDArray

from onnxprune.errors import ModelError
from onnxprune.files import checks, opening, output, payload
from onnxprune.files.bodies import own_names
from onnxprune.files.digest import digests
from onnxprune.files.external import is_external, point, stays_inline
from onnxprune.files.foreign import Source, path_of
from onnxprune.files.payload import Array, Payload
from onnxprune.files.protowalk import all_names, tensors
from onnxprune.files.store import (
    DETACH_ABOVE,
    Piece,
    Store,
    WeightInfo,
    joined,
    stored,
    strip,
    token_of,
    weights,
)
from onnxprune.files.unfold import unfold
from onnxprune.wall import board as wall

__all__ = ["Model", "WeightInfo"]

_MOST_BYTES = 2**31 - 1  # of a serialised message, protobuf's limit


class Model:
    """An ONNX model whose weights stay where they are; made by `Model.load`.

    Attributes
    ----------
    path : pathlib.Path or None
        The file that it was loaded from.
    files : dict
        This and its data files, with the `reading.identity` of each when it was read or last replaced; forks share it.
    fixed : mapping
        Constant that a rewriting has made, such as the shares of a mean -> its dims: as long as it has these no weight.
    """

    def __init__(
        self, store: Store, path: Path | None, source: NDArray[np.uint8] | None,
        origin: tuple[bytes, Mapping[str, Payload]],
    ) -> None:  # fmt: skip
        self.path, self.files = path, dict[Path, Any]()
        self.fixed: Mapping[str, tuple[int, ...]] = {}
        self._store = store
        self._source = source  # the bytes of the input
        self._origin = origin  # the light proto and the payloads of the input
        self._digests: tuple[str, str] | None = None
        self._taken: set[str] | None = None

    @property
    def proto(self) -> onnx.ModelProto:
        """The light proto; see the module's text. Nodes, values and small tensors may be edited in place."""
        return self._store.proto

    @classmethod
    def load(cls, source: Source | Model, base_dir: str | os.PathLike[str] | None = None) -> Model:
        """Open a model and check it.

        Parameters
        ----------
        source : path, bytes, file object, ModelProto, model of onnx-ir, or Model
            Of a folder the only .onnx file in it is taken. A ModelProto is copied; a Model is given back as it is.
        base_dir : path, optional
            Where the external data of a ModelProto or of bytes lies; a file's is beside it.

        Raises
        ------
        ModelError
            If the input is no sound ONNX model; see `onnxprune.files.opening`.
        """
        if isinstance(source, Model):
            return source
        path = path_of(source) if isinstance(source, str | os.PathLike) else None
        opened = opening.open_model(path or source, None if base_dir is None else Path(base_dir))
        wall.grow(weights=opened.nbytes, nodes=len(opened.store.proto.graph.node))
        model = cls(opened.store, path, opened.source, opened.origin)
        model.files = dict(opened.files)
        return model

    @property
    def sha256(self) -> str:
        """sha256 of the input as loaded, in hexadecimal: of the file, or of the deterministic serialisation.

        External data is part of it: what tensors read follows the file's bytes, in the order of the tensors.
        """
        if self._digests is None:
            self._digests = digests(self._pristine(), self._origin[0], self._store.folder)
        return self._digests[1]

    @property
    def file_sha256(self) -> str:
        """As `sha256`, without the external data; the same where there is none."""
        whole = self.sha256
        return whole if self._digests is None else self._digests[0]

    def _pristine(self) -> list[Piece]:
        return joined(*self._origin)[1] if self._source is None else [self._source.data]

    @property
    def nbytes(self) -> int:
        """Bytes of the complete model with all its weights, external ones too; nothing is read to find it."""
        proto, payloads = self._store.embedded()
        return joined(proto.SerializeToString(deterministic=True), payloads)[0]

    @property
    def edited(self) -> bool:
        """Whether the model differs from its input."""
        proto = self._store.closed() if self._store.unfolded else self.proto
        return bool(proto.SerializeToString(deterministic=True) != self._origin[0])

    @property
    def order(self) -> list[int]:
        """Indices of ``proto.graph.node`` in an order in which they can be computed, found at each call."""
        return checks.topological_order(self.proto.graph)

    def names(self) -> list[str]:
        """Names of all weights of the main graph: initializers in order, then Constant nodes in order."""
        return list(self._store.refresh())

    def refresh(self) -> None:
        """Find the weights anew; needed after one was renamed in the proto, not after adding or removing."""
        self._store.refresh()

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self._store.find(name) is not None

    def info(self, name: str) -> WeightInfo:
        """What is known of a weight without reading it.

        Raises
        ------
        ModelError
            If the model has no weight of that name.
        """
        is_node, index = self._store.place(name)
        tensor = self._store.tensor(name)
        dims, kind = tuple(tensor.dims), tensor.data_type
        size = payload.nbytes(dims, kind) if payload.known_type(kind) else 0
        if is_node:
            return WeightInfo(dims, kind, size, "constant", index)
        return WeightInfo(dims, kind, size, "initializer", None)

    def weight(self, name: str) -> Array:
        """The values of a weight, read-only; a view of the mapped file where possible.

        Parameters
        ----------
        name : str
            Of an initializer, or of the output of a Constant node, in the main graph.

        Raises
        ------
        ModelError
            If the model has no weight of that name.
        """
        return self._store.array(self._store.tensor(name), repr(name))

    def take(self, name: str, keep: Mapping[int, ArrayLike]) -> None:
        """Keep some positions of some axes of a weight, and cut the others away.

        The dimensions change at once. External data is read when it's next needed, at the latest when it's
        written.

        Parameters
        ----------
        name : str
        keep : mapping
            Axis -> the positions to keep, in the order that they shall have.

        Raises
        ------
        ModelError
            If the model has no weight of that name.
        ValueError
            If an axis or a position is out of range.
        """
        tensor = self._store.tensor(name)
        dims = tuple(tensor.dims)
        cuts = dict(payload.positions(axis, some, dims, name) for axis, some in keep.items())
        cuts = {a: k for a, k in cuts.items() if len(k) != dims[a] or bool(np.any(k != np.arange(dims[a])))}
        if not cuts:
            return
        tensor = self._store.tensor(name, edit=True)
        data = self._store.payload(tensor, repr(name))
        if data is not None and is_external(tensor):
            self._store.hold(tensor, data.cut(cuts))
        else:
            array = payload.take(self._store.array(tensor, repr(name)), cuts)
            self._store.hold(tensor, payload.from_array(array, tensor.data_type))
        self._follow(name, tensor)

    def put(self, name: str, array: ArrayLike) -> None:
        """Give a weight new values, of any shape and type; it stays embedded or external, as it was.

        Raises
        ------
        ModelError
            If the model has no weight of that name.
        """
        tensor = self._store.tensor(name, edit=True)
        self._store.put(tensor, np.asarray(array))
        self._follow(name, tensor)

    def _follow(self, name: str, tensor: onnx.TensorProto) -> None:
        """A graph input of which the weight is the default declares the same type and dimensions."""
        for value in self.proto.graph.input:
            if value.name == name:
                value.type.tensor_type.elem_type = tensor.data_type
                del value.type.tensor_type.shape.dim[:]
                for dim in tensor.dims:
                    value.type.tensor_type.shape.dim.add(dim_value=dim)

    def add(self, name_hint: str, array: ArrayLike) -> str:
        """Add an initializer.

        Returns
        -------
        str
            Its name: `name_hint`, with a number if that is taken.
        """
        if self._taken is None:
            self._taken = {*all_names(self.proto), *own_names(self.proto.graph)}
        name, number = name_hint, 0
        while not name or name in self._taken:
            number += 1
            name = f"{name_hint or 'weight'}_{number}"
        self._taken.add(name)
        self._store.put(self.proto.graph.initializer.add(name=name), np.asarray(array))
        return name

    def drop(self, *names: str) -> None:
        """Remove weights: initializers, or Constant nodes. One call for many is linear in the graph.

        Raises
        ------
        ModelError
            If the model has no weight of one of these names.
        """
        self._store.drop(set(names))

    def fork(self) -> Model:
        """An independently editable Model of the same weights, whose data is shared and not copied."""
        proto = onnx.ModelProto()
        proto.CopyFrom(self.proto)
        store = self._store.of(proto)
        twin = Model(store, self.path, self._source, self._origin)
        twin._digests, twin.files, twin.fixed = self._digests, self.files, self.fixed
        return twin

    def part(self, graph: onnx.GraphProto, weights: Iterable[str]) -> Model:
        """Return a model of a few nodes that read weights of this one, which are shared and not copied.

        Parameters
        ----------
        graph : GraphProto
            Its nodes, inputs and outputs.
        weights : iterable of str
        """
        own = {"functions": self.proto.functions, "opset_import": self.proto.opset_import}
        proto = onnx.ModelProto(ir_version=self.proto.ir_version, graph=graph, **own)
        return Model(self._store.some(proto, weights), None, None, (b"", {}))

    def unfold(self, but: Collection[str] = ()) -> Model:
        """Return a fork whose bodies (If, Loop, Scan) are laid open in its main graph; the model itself if it has none.

        Nodes whose numbers are in ``but`` keep theirs. Who runs or writes it gets it folded (`onnxprune.files.fold`).
        """
        if self._store.unfolded:
            return self
        fork = self.fork()
        fork._store.unfolded = unfold(fork.proto, but)
        fork.refresh()
        return fork if fork._store.unfolded else self

    def fold(self) -> Model:
        """Return a fork with all bodies closed, see `unfold`; the model itself if they are."""
        if not self._store.unfolded:
            return self
        fork = self.fork()
        fork._store.proto, fork._store.unfolded = self._store.closed(), False
        return fork

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the complete model: all of its weights, also those of external data, but not where they came from."""
        digests = self.sha256, self.file_sha256
        return _unpickled, (self.serialize(), digests)

    def skeleton(self) -> onnx.ModelProto:
        """A copy without weights: those of more than 1 KiB have a name, a type and dimensions, no data."""
        proto = self._store.closed()
        for _, tensor in tensors(proto):
            if is_external(tensor) or token_of(tensor) is not None or tensor.ByteSize() > DETACH_ABOVE:
                strip(tensor)
        return proto

    def pieces(self) -> Iterator[memoryview | bytes]:
        """The complete model in pieces, all weights embedded, external ones too, each read when it is its turn;
        ModelError if it would be larger than the 2 GB that protobuf allows.
        """
        proto, payloads = self._store.embedded()
        length, pieces = joined(proto.SerializeToString(deterministic=True), payloads)
        if length > _MOST_BYTES:
            raise ModelError(
                f"The model is {length / 1e9:.1f} GB, more than the 2 GB that protobuf holds in "
                "memory; work on its file instead."
            )
        yield from map(stored, pieces)

    def serialize(self) -> bytes:
        """The complete model as bytes; see `pieces`."""
        return b"".join(self.pieces())

    def to_proto(self) -> onnx.ModelProto:
        """The complete model as a ModelProto of its own; see `serialize`."""
        proto = onnx.ModelProto()
        proto.ParseFromString(self.serialize())
        return proto

    def session_parts(self, wanted: Iterable[str] = ()) -> tuple[bytes, dict[str, Array]]:
        """The model in two parts, for onnxruntime to open without copies of weights; for ``wanted`` see `files.fold`.

        Returns
        -------
        proto : bytes
            A ModelProto in which every large weight of the main graph is external.
        arrays : dict
            Name -> values of those weights, for ``SessionOptions.add_external_initializers``.
        """
        proto, payloads = self._store.embedded(wanted)
        arrays: dict[str, Array] = {}
        parts = Store(proto, None, payloads)
        for name, is_node, index in weights(proto.graph):
            tensor = parts.tensor(name) if is_node else proto.graph.initializer[index]
            token = token_of(tensor)
            if token is not None and not stays_inline(tensor, payloads[token].nbytes):
                arrays[name] = payloads[token].array()
                point(tensor, f"onnxprune-{index}", 0, payloads[token].nbytes)
        _, pieces = joined(proto.SerializeToString(deterministic=True), payloads)
        return b"".join(map(stored, pieces)), arrays

    def save(
        self, path: str | os.PathLike[str], in_place: bool = False, external_threshold: int | None = None
    ) -> str:
        """Write the model, complete or not at all; see `onnxprune.files.output`.

        Parameters
        ----------
        path : path
        in_place : bool
            Whether the file that the model was loaded from may be replaced.
        external_threshold : int, optional
            Bytes; embedded initializers of at least this size go to external data. Without it they stay
            embedded, unless the file would be larger than protobuf allows.

        Returns
        -------
        str
            sha256 of the written file, in hexadecimal.

        Raises
        ------
        OutputError
            If the output would overwrite the input, or can't be written.
        """
        pristine = None if self.edited else self._pristine()
        job = output.WriteJob(Path(path), self.path, in_place, external_threshold, pristine, self.files)
        return output.save(self._store, job)


def _unpickled(data: bytes, digests: tuple[str, str]) -> Model:
    model = Model.load(data)
    model._digests = digests
    return model
