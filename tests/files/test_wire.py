"""Weights taken out of the bytes and put back, on random messages, noise and damaged models."""

from attacks import chain
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxprune.errors import ModelError
from onnxprune.files import wire
from onnxprune.model import Model


def field(number: int, content: bytes) -> bytes:
    return wire._header(len(content), number) + content


@st.composite
def messages(draw: st.DrawFn, kind: str = "model", depth: int = 0) -> bytes:
    """A random message of ONNX's shape, fields in any order; a tensor's in the canonical one."""
    if kind == "tensor":
        before, content = draw(st.binary(max_size=9)), draw(st.binary(max_size=60))
        return field(8, before) + field(wire.RAW_DATA, content) + field(12, draw(st.binary(max_size=9)))
    children = wire._CHILDREN[kind]
    out = b""
    for _ in range(draw(st.integers(0, 3))):
        number = draw(st.sampled_from([*children, 2, 12]))
        child = children.get(number)
        if child is None or depth > 6:
            number, content = 12, draw(st.binary(max_size=30))
        else:
            content = draw(messages(child, depth + 1))
        out += field(number, content)
    return out


@given(messages(), st.integers(0, 40))
@settings(max_examples=300, deadline=None)
def test_split_and_join_are_inverse(data: bytes, limit: int) -> None:
    light, spans = wire.split(memoryview(data), limit, lambda n: b"token%05d" % n)
    length, pieces = wire.join(light, b"token", lambda t: (spans[t].field, spans[t].length, spans[t]))
    joined = b"".join(data[p.start : p.start + p.length] if isinstance(p, wire.Span) else p for p in pieces)
    assert joined == data
    assert length == len(data)
    assert all(span.length > limit for span in spans.values())


@given(st.binary(max_size=300))
@settings(max_examples=300, deadline=None)
def test_noise_is_refused_or_survives(data: bytes) -> None:
    try:
        light, spans = wire.split(memoryview(data), 4, lambda n: b"token%05d" % n)
    except wire.WireError:
        return
    length, _ = wire.join(light, b"token", lambda t: (spans[t].field, spans[t].length, spans[t]))
    assert length <= len(data) + 20  # lengths may have been written with needless bytes


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_damage_never_ends_in_another_error(data: st.DataObject) -> None:
    content = bytearray(chain().SerializeToString())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        model = Model.load(bytes(content))
    except ModelError:
        return
    for name in model.names():
        model.weight(name)
    model.order  # noqa: B018
    model.skeleton()
