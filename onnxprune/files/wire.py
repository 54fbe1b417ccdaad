"""Take the weights out of a serialised ModelProto, and put them back, without parsing them.

A protobuf message is a run of fields, each a tag (number, wire type) and a value; a nested message is a field
whose value is a length and that many bytes. So a weight can be cut out of the bytes by walking the tags down
to its tensor, and the lengths on the way down are all that must be written anew. What remains is small,
whatever the model weighs:

- `split` gives those light bytes, in which every large weight is a short *token* in ``raw_data``, and for
  each token the span of the weight in the original bytes, which are typically a memory-mapped file;
- `join` is the inverse: it gives the pieces of a complete file, with the weights where the canonical order
  has them.

Only weights that lie in the file as plain little-endian values are taken out: ``raw_data``, and packed
``float_data`` and ``double_data``. Reference: https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

__all__ = ["DOUBLE_DATA", "FLOAT_DATA", "RAW_DATA", "Span", "WireError", "join", "split"]

# Field numbers, of onnx.proto.
FLOAT_DATA, RAW_DATA, DOUBLE_DATA = 4, 9, 10
_DATA_TYPE = 2
_DATA_FIELDS = frozenset((4, 5, 6, 7, 9, 10, 11))
_TYPES_OF = {FLOAT_DATA: (1, 14), DOUBLE_DATA: (11, 15)}  # FLOAT, COMPLEX64; DOUBLE, COMPLEX128
_CHILDREN: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {},
}
_VARINT, _FIXED64, _LENGTH, _GROUP, _GROUP_END, _FIXED32 = range(6)
#: Fields of one message: those that hold a number, where ONNX repeats none, and any.
_MOST_NUMBERS, _MOST_FIELDS = 10_000, 1_000_000
_DEPTH = 100  # protobuf's own limit on nested messages


class WireError(ValueError):
    """The bytes aren't a well-formed protobuf message."""


@dataclass(frozen=True)
class Span:
    """Where the data of one tensor lies: `length` bytes from `start`, as the value of field `field`."""

    start: int
    length: int
    field: int


@dataclass(frozen=True)
class _Field:
    number: int
    wire: int
    tag: int  # where the field starts
    start: int  # where its value starts, after the length
    end: int


Payload = TypeVar("Payload")
_Lookup = Callable[[bytes], tuple[int, int, Payload] | None]


def _varint(data: memoryview, pos: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while pos < end and shift < 64:
        byte = data[pos]
        pos += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, pos
        shift += 7
    raise WireError("a number runs past the end of its message")


def _encode_varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _fields(data: memoryview, start: int, end: int) -> Iterator[_Field]:
    """Iterate over the fields of the message in ``data[start:end]``."""
    pos = start
    while pos < end:
        key, value = _varint(data, pos, end)
        number, wire = key >> 3, key & 7
        if wire == _LENGTH:
            length, value = _varint(data, value, end)
            stop = value + length
        elif wire == _VARINT:
            _, stop = _varint(data, value, end)
        elif wire in (_FIXED32, _FIXED64):
            stop = value + (4 if wire == _FIXED32 else 8)
        else:
            raise WireError(f"wire type {wire} at byte {pos} isn't used by ONNX")
        if number == 0 or stop > end:
            raise WireError(
                f"the field at byte {pos} runs {stop - end} bytes past the end of its message"
                if number
                else f"field number 0 at byte {pos}"
            )
        yield _Field(number, wire, pos, value, stop)
        pos = stop


class _Splitter:
    def __init__(self, data: memoryview, limit: int, token: Callable[[int], bytes]) -> None:
        self.data, self.limit, self.token = data, limit, token
        self.spans: dict[bytes, Span] = {}

    def message(self, kind: str, start: int, end: int, depth: int) -> list[bytes | memoryview] | None:
        """Give the message without its large weights, or None where it has none."""
        if depth > _DEPTH:
            raise WireError(f"messages are nested more than {_DEPTH} deep")
        children, out, done = _CHILDREN[kind], list[bytes | memoryview](), start
        few = kind != "attribute"  # it holds numbers, one field each
        numbers = 0
        for count, field in enumerate(_fields(self.data, start, end)):
            numbers += few and field.wire != _LENGTH
            if numbers > _MOST_NUMBERS or count > _MOST_FIELDS:
                raise WireError(f"a {kind} of more than {count:,} fields is no {kind} of ONNX")
            child = children.get(field.number)
            if child is None or field.wire != _LENGTH or field.end - field.start <= self.limit:
                continue
            walk = self.tensor if child == "tensor" else self.message
            inside = walk(child, field.start, field.end, depth + 1)
            if inside is not None:
                length = sum(map(len, inside))
                out += [self.data[done : field.tag], _header(length, field.number), *inside]
                done = field.end
        return [*out, self.data[done:end]] if out else None

    def tensor(self, _kind: str, start: int, end: int, _depth: int) -> list[bytes | memoryview] | None:
        data_type, fields = 0, list[_Field]()
        for field in _fields(self.data, start, end):
            if field.number in _DATA_FIELDS:
                fields.append(field)
            elif field.number == _DATA_TYPE and field.wire == _VARINT:
                data_type = _varint(self.data, field.start, field.end)[0]
        if len(fields) != 1 or fields[0].wire != _LENGTH:  # none, or several to merge: left to protobuf
            return None
        field = fields[0]
        length = field.end - field.start
        plain = field.number == RAW_DATA or data_type in _TYPES_OF.get(field.number, ())
        if length <= self.limit or not plain:
            return None
        token = self.token(len(self.spans))
        self.spans[token] = Span(field.start, length, field.number)
        return [self.data[start : field.tag], _header(len(token)), token, self.data[field.end : end]]


def _header(length: int, number: int = RAW_DATA) -> bytes:
    return _encode_varint(number << 3 | _LENGTH) + _encode_varint(length)


def split(data: memoryview, limit: int, token: Callable[[int], bytes]) -> tuple[bytes, dict[bytes, Span]]:
    """Take the weights of more than `limit` bytes out of a serialised ModelProto.

    Parameters
    ----------
    data : memoryview
        The bytes of the model.
    limit : int
        Bytes; smaller weights stay.
    token : callable
        Gives the token, a short bytes object, of the weight with a given number.

    Returns
    -------
    light : bytes
        The model with tokens for weights.
    spans : dict
        Token -> where the weight lies in `data`.

    Raises
    ------
    WireError
        If the bytes are no protobuf message, or end too early.
    """
    splitter = _Splitter(data, limit, token)
    pieces = splitter.message("model", 0, len(data), 0)
    return b"".join(pieces) if pieces else bytes(data), splitter.spans


def _positions(light: bytes, prefix: bytes) -> list[int]:
    positions, pos = [], light.find(prefix)
    while pos >= 0:
        positions.append(pos)
        pos = light.find(prefix, pos + 1)
    return positions


def join(
    light: bytes, prefix: bytes, payload: _Lookup[Payload]
) -> tuple[int, list[memoryview | bytes | Payload]]:
    """Put the weights back: the inverse of `split`.

    Parameters
    ----------
    light : bytes
        A serialised ModelProto, with tokens in ``raw_data``.
    prefix : bytes
        What every token starts with, and nothing else contains.
    payload : callable
        Token -> (field number, bytes, anything that stands for the data), or None to leave the data out.

    Returns
    -------
    length : int
        Bytes of the complete model.
    pieces : list
        What to write, in order: bytes, or what stands for the data of a weight.
    """
    data, spots = memoryview(light), _positions(light, prefix)

    def message(kind: str, start: int, end: int) -> tuple[int, list[memoryview | bytes | Payload]]:
        if kind == "tensor":
            return _join_tensor(data, start, end, payload)
        out, done, total = list[memoryview | bytes | Payload](), start, 0
        for field in _fields(data, start, end):
            child = _CHILDREN[kind].get(field.number)
            here = bisect_left(spots, field.start)
            if child is None or field.wire != _LENGTH or here == len(spots) or spots[here] >= field.end:
                continue
            length, inside = message(child, field.start, field.end)
            header = _header(length, field.number)
            out += [data[done : field.tag], header, *inside]
            total += field.tag - done + len(header) + length
            done = field.end
        return total + end - done, [*out, data[done:end]]

    return message("model", 0, len(data)) if spots else (len(light), [light])


def _join_tensor(
    data: memoryview, start: int, end: int, payload: _Lookup[Payload]
) -> tuple[int, list[memoryview | bytes | Payload]]:
    fields = list(_fields(data, start, end))
    token = next((f for f in fields if f.number == RAW_DATA), None)
    if token is None:  # the prefix is elsewhere: in a location
        return end - start, [data[start:end]]
    known = payload(bytes(data[token.start : token.end]))
    rest = [f for f in fields if f is not token]
    total = sum(f.end - f.tag for f in rest)
    if known is None:
        return total, [data[f.tag : f.end] for f in rest]
    number, length, stand_in = known
    header = _header(length, number)
    before: list[memoryview | bytes | Payload] = [data[f.tag : f.end] for f in rest if f.number < number]
    after: list[memoryview | bytes | Payload] = [data[f.tag : f.end] for f in rest if f.number > number]
    return total + len(header) + length, [*before, header, stand_in, *after]
