"""Gradients of recurrent layers: steps are run once more for what they give inside, and then back.

With ``p`` what a step's gates are before their activations, ``d`` gradients and ``s`` the logistic function:

    LSTM    i, o, f = s(p_i), s(p_o), s(p_f),  g = tanh(p_g),  c' = f c + i g,  h' = o tanh(c')
            e = d_h' o (1 - tanh(c')^2) + d_c',  d_i, d_f, d_g = e g, e c, e i,  d_o = d_h' tanh(c'),  d_c = e f
    GRU     z, r = s(p_z), s(p_r),  n = tanh(p_n + r q),  h' = (1 - z) n + z h,    q = R_n h + b_n
            or  n = tanh(p_n + R_n q),  q = r h,  where the reset comes first
    RNN     h' = tanh(p)

    d_W = sum over steps of d_p' x,  d_R = sum of d_p' h,  d_x = d_p W,  d_h = d_p R.

Behind the end of a sequence that has a length of its own states stay as they are, and gradients pass.

References
----------
Werbos, "Backpropagation Through Time: What It Does and How to Do It", Proceedings of the IEEE 78, 1990.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from onnx import TensorProto, helper

from onnxprune.gradient.tape import Grads, NoGradient, Tape, vjp
from onnxprune.ops.base import Node

#: The first opset with Range.
RANGE = 11
#: What a body's states and slices become -> new states, and what each step gives.
Step = Callable[[list[str], list[str]], tuple[list[str], list[str]]]


@dataclass(frozen=True)
class _Way:
    """One direction of a layer: its weights, what it reads and the gradients of what it gives.

    Attributes
    ----------
    x : str
        [steps, batch, inputs].
    w, r : str
        [gates x units, inputs], [gates x units, units].
    input_bias, state_bias : str
        [gates x units]; empty where there are none.
    states : list of str
        What it begins with, [batch, units] each.
    steps : str
        Gradient of what all steps give [steps, batch, units].
    ends : list of str
        Of the last states.
    back : bool
        Whether it runs from the last step to the first.
    valid : str
        1 where a sequence goes on and 0 behind its end [steps, batch, 1]; empty where all go on.
    """

    x: str
    w: str
    r: str
    input_bias: str
    state_bias: str
    states: list[str]
    steps: str
    ends: list[str]
    back: bool
    valid: str = ""


@dataclass(frozen=True)
class _Got:
    """Gradients of a direction: by its input, its weights, both biases and what it began with."""

    x: str
    w: str
    r: str
    biases: list[str]
    states: list[str]


def scan(
    t: Tape, states: Sequence[str], read: Sequence[str], step: Step, *, back: bool, valid: str = ""
) -> list[str]:
    """Write a Scan whose body ``step`` writes; what it reads and gives runs along axis 0.

    Where ``valid`` is 0 states stay as they are, and what it gives is 0, as is the first that it reads.

    Returns
    -------
    list of str
        The last states, then what all steps give.
    """
    if valid:
        read, step = [*read, valid], _held(t, step)
    names, outer = t.fresh(len(states) + len(read)), t.nodes
    t.nodes = []
    made, given = step(names[: len(states)], names[len(states) :])
    ends = [t.op("Identity", name) for name in (*made, *given)]  # a body gives out what it makes, once
    nodes, t.nodes = t.nodes, outer
    elem = helper.np_dtype_to_tensor_dtype(t.dtype)
    taken, out = ([helper.make_tensor_value_info(n, elem, None) for n in some] for some in (names, ends))
    body = helper.make_graph(nodes, ends[0], taken, out)
    return t.several(
        "Scan", len(ends), *states, *read, body=body, num_scan_inputs=len(read),
        scan_input_directions=[int(back)] * len(read), scan_output_directions=[int(back)] * len(given),
    )  # fmt: skip


def _held(t: Tape, step: Step) -> Step:
    """Return a step that does nothing where the last that it reads is 0."""

    def held(states: list[str], read: list[str]) -> tuple[list[str], list[str]]:
        valid = read[-1]
        made, given = step(states, [t.mul(read[0], valid), *read[1:-1]])
        pairs = zip(states, made, strict=True)
        kept = [t.op("Add", old, t.mul(valid, t.op("Sub", new, old))) for old, new in pairs]
        return kept, [t.mul(value, valid) for value in given]

    return held


def _valid(t: Tape, x: str, lengths: str) -> str:
    """Return 1 where a sequence goes on and 0 behind its end [steps, batch, 1]."""
    if t.opset < RANGE:
        raise NoGradient(f"it has lengths of its own, in opset {t.opset}")
    steps = _squeeze(t, t.slice(t.op("Shape", x), [0], [0], [1]), 0)
    steps = t.op("Range", t.ints_const(np.array(0)), steps, t.ints_const(np.array(1)))
    ends = t.op("Cast", lengths, to=TensorProto.INT64)
    return t.unsqueeze(t.mask(t.op("Less", t.unsqueeze(steps, [1]), t.unsqueeze(ends, [0]))), [2])


@vjp("LSTM", "GRU", "RNN")
def recurrent(t: Tape, node: Node, dy: Sequence[str], need: frozenset[int]) -> Grads:
    _refuse(node)
    x, w, r = node.inputs[:3]
    (ways, units) = t.static(r, [0, 2])
    begins = [5, 6] if node.op == "LSTM" else [5]
    zeros = t.op("Expand", t.const(0), _batch(t, x, units))
    valid = _valid(t, x, node.inputs[4]) if node.has(4) else ""
    got = []
    for way in range(ways):

        def own(name: str, at: int = way, axis: int = 0) -> str:
            return _squeeze(t, t.slice(name, [axis], [at], [at + 1]), axis)

        bias = own(node.inputs[3]) if node.has(3) else ""
        size = t.static(w, [1])[0]
        halves = [t.slice(bias, [0], [low], [low + size]) for low in (0, size)] if bias else ["", ""]
        ends = [own(dy[n]) if n < len(dy) and dy[n] else zeros for n in range(1, len(begins) + 1)]
        reverse = node.attr("direction", b"forward") in ("reverse", b"reverse") or way == 1
        got.append(
            _CELLS[node.op](t, node, _Way(
                x, own(w), own(r), halves[0], halves[1],
                [own(node.inputs[n]) if node.has(n) else zeros for n in begins],
                own(dy[0], axis=1) if dy[0] else "", ends, reverse, valid,
            ))
        )  # fmt: skip
    grads = {}
    if 0 in need:
        grads[0] = got[0].x if ways == 1 else t.op("Add", *(one.x for one in got))
    each = {1: [g.w for g in got], 2: [g.r for g in got], 3: [t.op("Concat", *g.biases, axis=0) for g in got]}
    each |= {slot: [g.states[n] for g in got] for n, slot in enumerate(begins)}
    for slot, parts in each.items():
        if slot in need:
            grads[slot] = t.op("Concat", *(t.unsqueeze(part, [0]) for part in parts), axis=0)
    if need - grads.keys():
        raise NoGradient(f"input {min(need - grads.keys())} is computed from what is to be changed")
    return grads


def _refuse(node: Node) -> None:
    """Raise where a layer isn't the plain one."""
    plain = {"LSTM": ["sigmoid", "tanh", "tanh"], "GRU": ["sigmoid", "tanh"], "RNN": ["tanh"]}[node.op]
    names = [a.decode() if isinstance(a, bytes) else str(a) for a in node.attr("activations", [])]
    other = any(a.lower() != plain[n % len(plain)] for n, a in enumerate(names))
    odd = {
        "it has peepholes": node.has(7), "its activations are others": other, "it is clipped": "clip" in node.attrs,
        "its gates are coupled": bool(node.attr("input_forget", 0)),
        "its layout has the batch first": bool(node.attr("layout", 0)),
    }  # fmt: skip
    for why, found in odd.items():
        if found:
            raise NoGradient(why)


def _batch(t: Tape, x: str, units: int) -> str:
    """Return the shape [batch, units]."""
    return t.op("Concat", t.slice(t.op("Shape", x), [0], [1], [2]), t.ints_const([units]), axis=0)


def _squeeze(t: Tape, value: str, axis: int) -> str:
    if t.opset < 13:
        return t.op("Squeeze", value, axes=[axis])
    return t.op("Squeeze", value, t.ints_const([axis]))


def _one_less(t: Tape, value: str) -> str:
    return t.op("Sub", t.const(1), value)


def _slope(t: Tape, value: str) -> str:
    """Return the slope of a logistic function where it gives this."""
    return t.mul(value, _one_less(t, value))


def _flat_slope(t: Tape, value: str) -> str:
    """Return the slope of a hyperbolic tangent where it gives this."""
    return _one_less(t, t.mul(value, value))


def _gates(t: Tape, value: str, units: int, count: int, axis: int) -> list[str]:
    return [t.slice(value, [axis], [n * units], [(n + 1) * units]) for n in range(count)]


def _turned(t: Tape, matrix: str) -> str:
    return t.transpose(matrix, [1, 0])


def _before(t: Tape, way: _Way, biases: Sequence[str]) -> str:
    """Return what a direction's gates get from its input and its biases."""
    value = t.matmul(way.x, _turned(t, way.w))
    for bias in biases:
        value = t.op("Add", value, bias) if bias else value
    return value


def _flat(t: Tape, value: str, width: int) -> str:
    """Put steps and batch into one axis."""
    return t.reshape(value, [-1, width])


def _outer(t: Tape, grad: str, read: str) -> str:
    """Return the sum over rows of products."""
    return t.matmul(_turned(t, grad), read)


def _sum(t: Tape, rows: str) -> str:
    return t.reduce("ReduceSum", rows, [0], keep=False)


def _sizes(t: Tape, node: Node) -> tuple[int, int]:
    """Return the inputs and the units."""
    return t.static(node.inputs[1], [2])[0], t.static(node.inputs[2], [2])[0]


def _seed(t: Tape, way: _Way, like: str) -> str:
    """Return the gradient of what all steps give."""
    return way.steps or t.op("Sub", like, like)


def _lstm(t: Tape, node: Node, way: _Way) -> _Got:
    inputs, units = _sizes(t, node)
    turned = _turned(t, way.r)

    def forward(states: list[str], read: list[str]) -> tuple[list[str], list[str]]:
        h, c = states
        gates = _gates(t, t.op("Add", read[0], t.matmul(h, turned)), units, 4, 1)
        i, o, f = (t.op("Sigmoid", gate) for gate in gates[:3])
        g = t.op("Tanh", gates[3])
        new = t.op("Add", t.mul(f, c), t.mul(i, g))
        flat = t.op("Tanh", new)
        return [t.mul(o, flat), new], [i, o, f, g, flat, h, c]

    before = _before(t, way, (way.input_bias, way.state_bias))
    *_, i, o, f, g, flat, h, c = scan(t, way.states, [before], forward, back=way.back, valid=way.valid)

    def backward(states: list[str], read: list[str]) -> tuple[list[str], list[str]]:
        (dh, dc), (dy, i, o, f, g, flat, c) = states, read
        dh = t.op("Add", dh, dy)
        e = t.op("Add", dc, t.mul(t.mul(dh, o), _flat_slope(t, flat)))
        parts = [
            t.mul(t.mul(e, g), _slope(t, i)), t.mul(t.mul(dh, flat), _slope(t, o)),
            t.mul(t.mul(e, c), _slope(t, f)), t.mul(t.mul(e, i), _flat_slope(t, g)),
        ]  # fmt: skip
        grad = t.op("Concat", *parts, axis=1)
        return [t.matmul(grad, way.r), t.mul(e, f)], [grad]

    read = [_seed(t, way, h), i, o, f, g, flat, c]
    *states, grad = scan(t, way.ends, read, backward, back=not way.back, valid=way.valid)
    rows = _flat(t, grad, 4 * units)
    w, r = (_outer(t, rows, _flat(t, value, width)) for value, width in ((way.x, inputs), (h, units)))
    return _Got(t.matmul(grad, way.w), w, r, [_sum(t, rows)] * 2, states)


def _gru(t: Tape, node: Node, way: _Way) -> _Got:
    inputs, units = _sizes(t, node)
    late = bool(node.attr("linear_before_reset", 0))
    first, last = (
        t.slice(way.r, [0], [low], [high]) for low, high in ((0, 2 * units), (2 * units, 3 * units))
    )
    first_turned, last_turned = _turned(t, first), _turned(t, last)
    inner = t.slice(way.state_bias, [0], [2 * units], [3 * units]) if late and way.state_bias else ""
    outer = way.state_bias
    if inner:  # what is added to the state's product alone
        outer = t.op("Concat", t.slice(outer, [0], [0], [2 * units]), t.scaled(inner, 0), axis=0)

    def forward(states: list[str], read: list[str]) -> tuple[list[str], list[str]]:
        (h,) = states
        two = t.slice(read[0], [1], [0], [2 * units])
        z, r = _gates(t, t.op("Sigmoid", t.op("Add", two, t.matmul(h, first_turned))), units, 2, 1)
        if late:
            q = t.matmul(h, last_turned)
            q = t.op("Add", q, inner) if inner else q
            added = t.mul(r, q)
        else:
            q = t.mul(r, h)
            added = t.matmul(q, last_turned)
        n = t.op("Tanh", t.op("Add", t.slice(read[0], [1], [2 * units], [3 * units]), added))
        return [t.op("Add", n, t.mul(z, t.op("Sub", h, n)))], [z, r, n, q, h]

    before = _before(t, way, (way.input_bias, outer))
    _, z, r, n, q, h = scan(t, way.states, [before], forward, back=way.back, valid=way.valid)

    def backward(states: list[str], read: list[str]) -> tuple[list[str], list[str]]:
        dy, z, r, n, q, h = read
        d = t.op("Add", states[0], dy)
        dn = t.mul(t.mul(d, _one_less(t, z)), _flat_slope(t, n))
        dz = t.mul(t.mul(d, t.op("Sub", h, n)), _slope(t, z))
        inside = t.mul(dn, r) if late else t.matmul(dn, last)
        dr = t.mul(t.mul(dn, q) if late else t.mul(inside, h), _slope(t, r))
        rest = t.matmul(inside, last) if late else t.mul(inside, r)
        two = t.op("Concat", dz, dr, axis=1)
        kept = t.op("Add", t.mul(d, z), t.matmul(two, first))
        return [t.op("Add", kept, rest)], [t.op("Concat", two, dn, axis=1), inside if late else dn]

    read = [_seed(t, way, h), z, r, n, q, h]
    state, grad, third = scan(t, way.ends, read, backward, back=not way.back, valid=way.valid)
    rows, rows_third = _flat(t, grad, 3 * units), _flat(t, third, units)
    two = t.slice(rows, [1], [0], [2 * units])
    of_two = _outer(t, two, _flat(t, h, units))
    of_third = _outer(t, rows_third, _flat(t, h if late else q, units))
    biases = [_sum(t, rows), t.op("Concat", _sum(t, two), _sum(t, rows_third), axis=0)]
    w = _outer(t, rows, _flat(t, way.x, inputs))
    return _Got(t.matmul(grad, way.w), w, t.op("Concat", of_two, of_third, axis=0), biases, [state])


def _rnn(t: Tape, node: Node, way: _Way) -> _Got:
    inputs, units = _sizes(t, node)
    turned = _turned(t, way.r)

    def forward(states: list[str], read: list[str]) -> tuple[list[str], list[str]]:
        new = t.op("Tanh", t.op("Add", read[0], t.matmul(states[0], turned)))
        return [new], [new, states[0]]

    before = _before(t, way, (way.input_bias, way.state_bias))
    _, new, h = scan(t, way.states, [before], forward, back=way.back, valid=way.valid)

    def backward(states: list[str], read: list[str]) -> tuple[list[str], list[str]]:
        grad = t.mul(t.op("Add", states[0], read[0]), _flat_slope(t, read[1]))
        return [t.matmul(grad, way.r)], [grad]

    state, grad = scan(t, way.ends, [_seed(t, way, h), new], backward, back=not way.back, valid=way.valid)
    rows = _flat(t, grad, units)
    w, r = (_outer(t, rows, _flat(t, value, width)) for value, width in ((way.x, inputs), (h, units)))
    return _Got(t.matmul(grad, way.w), w, r, [_sum(t, rows)] * 2, [state])


_CELLS: dict[str, Callable[[Tape, Node, _Way], _Got]] = {"LSTM": _lstm, "GRU": _gru, "RNN": _rnn}
