"""Joints of bodies that are laid open (`onnxprune.files.bodies`): which axes inside are which around them."""

from __future__ import annotations

from collections.abc import Sequence

from onnxprune.ops.axes import join, names, text
from onnxprune.ops.base import Elem, Node, Row, Shape, normal, op

#: Of the joints; `onnxprune.files.bodies` writes them.
DOMAIN = "onnxprune.bodies"


@op("If", domain=DOMAIN)
def either(node: Node) -> Row:
    """An output is that of one branch or the other: where their sizes agree, an axis of both is the same."""
    outs = len(node.outputs)
    ins, ends = ["*if"], list[str]()
    why: dict[str, str] = {}
    for n in range(outs):
        then, other = (node.shape(1 + slot) for slot in (n, outs + n))
        own, reasons = _tied((then, other), f"o{n}")
        ins.insert(1 + n, own[0])
        ins.append(own[1])
        ends.append(own[0])
        why |= reasons
    return Row(join(ins, ends), why=why, elems={n: 1 + n for n in range(outs)})


@op("LoopEntry", domain=DOMAIN)
def loop_entry(node: Node) -> Row:
    """Number of steps, condition and carried values -> number of the step, condition and carried values."""
    carried = [text(names(node.rank(slot), f"v{slot}x")) for slot in range(2, len(node.inputs))]
    ranks = node.attr("ranks", [0, 0])
    outs = [text(["1"] * rank) for rank in ranks]
    kinds = {0: Elem.INT64, 1: Elem.BOOL} | {slot: slot for slot in range(2, len(node.inputs))}
    return Row(join(["*steps?", "*go?", *carried], [*outs, *carried]), elems=kinds)


@op("Loop", domain=DOMAIN)
def loop(node: Node) -> Row:
    """What is carried has the same axes in each step; what is gathered has one more."""
    return _ends(node, 1, [0] * len(node.outputs))


@op("ScanEntry", domain=DOMAIN)
def scan_entry(node: Node) -> Row:
    """Carried values stay as they are; of what is stepped through, the body sees one step at a time."""
    count = len(node.inputs)
    stepped = int(node.attr("num_scan_inputs"))
    axes = node.attr("scan_input_axes", [0] * stepped)
    ins, outs, why = [], [], dict[str, str]()
    for slot in range(count):
        letters = list(names(node.rank(slot), f"v{slot}x"))
        inside = letters
        if slot >= count - stepped:
            at = normal(axes[slot - count + stepped], len(letters))
            inside = [*letters[:at], *letters[at + 1 :]]
            why[letters[at]] = "stepped through by a Scan"
            letters[at] += "!"
        ins.append(text(letters))
        outs.append(text(inside))
    return Row(join(ins, outs), why=why, elems={slot: slot for slot in range(count)})


@op("Scan", domain=DOMAIN)
def scan(node: Node) -> Row:
    """What is carried has the same axes in each step; what is gathered has one more."""
    carried = len(node.inputs) - len(node.outputs)
    axes = node.attr("scan_output_axes", [0] * (len(node.outputs) - carried))
    return _ends(node, 0, [0] * carried + list(axes))


def _ends(node: Node, first: int, axes: Sequence[int]) -> Row:
    """Tie the outputs of a body that runs many times to its carried inputs, and to the outputs around it.

    Parameters
    ----------
    node : Node
    first : int
        Inputs before the first output of the body that is carried or gathered.
    axes : sequence of int
        Output -> the axis along which what each step gives is gathered.
    """
    count = len(node.outputs)
    carried = len(node.inputs) - first - count
    ins, outs, why = ["*go"] * first, [], dict[str, str]()
    for slot in range(count):
        letters = list(names(node.rank(first + slot), f"v{slot}x"))
        ins.append(text(letters))
        if slot >= carried:
            at = normal(axes[slot], len(letters) + 1)
            letters.insert(at, f"n{slot}!")
            why[f"n{slot}"] = "one for each step"
        outs.append(text(letters))
    ins += ins[first : first + carried]
    return Row(join(ins, outs), why=why, elems={slot: first + slot for slot in range(count)})


def _tied(shapes: Sequence[Shape], prefix: str) -> tuple[list[str], dict[str, str]]:
    """Return the axes of operands that are the same where the sizes agree, and why the others are locked."""
    alike = len({len(shape) for shape in shapes}) == 1
    texts, why = [], dict[str, str]()
    for k, shape in enumerate(shapes):
        letters = list(names(len(shape), f"{prefix}x"))
        for at, name in enumerate(letters):
            if not alike or len({s[at] for s in shapes}) > 1:
                letters[at] = f"{name}of{k}!"
                why[f"{name}of{k}"] = "the branches differ"
        texts.append(text(letters))
    return texts, why
