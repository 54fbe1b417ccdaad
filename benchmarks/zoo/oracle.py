"""Law 1 checked from outside: is a pruned file the original with the removed slices zeroed? Shares no code
with onnxprune.

The twin is built from the original file and the report's `cuts` alone: every removed slice of every listed
tensor is set to zero (to its zero point where it is quantized). Where that leaves NaN or differs - zeroing
a divisor, say - a second twin zeroes only slices of tensors that feed a contraction, which is what the law
demands; the better of the two counts. A tensor that several nodes read may have been cut for some of them
only: then the shapes in the pruned file say which readers see the zeroed copy.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.reference
from onnx import numpy_helper

Cut = dict[str, Any]  # {"tensor", "axis", "removed"} and, for some readers of a shared tensor only, "copy"
Reader = tuple[int, int]  # node index, input slot

CONTRACTIONS = {
    "Conv",
    "ConvTranspose",
    "Gemm",
    "MatMul",
    "Einsum",
    "LSTM",
    "GRU",
    "RNN",
    "ConvInteger",
    "MatMulInteger",
    "QLinearConv",
    "QLinearMatMul",
    "FusedConv",
    "FusedMatMul",
    "FusedGemm",
    "Attention",
    "MultiHeadAttention",
}
MOVEMENTS = {
    "Transpose",
    "Cast",
    "Identity",
    "Reshape",
    "Unsqueeze",
    "Squeeze",
    "QuantizeLinear",
    "DequantizeLinear",
    "Flatten",
    "Split",
    "Slice",
    "Gather",
    "Concat",
    "Expand",
}
ZERO_POINT = {
    "DequantizeLinear": {0: 2},
    "QLinearConv": {3: 5},
    "QLinearMatMul": {3: 5},
    "ConvInteger": {1: 3},
    "MatMulInteger": {1: 3},
}
COUNTED = {
    onnx.TensorProto.FLOAT,
    onnx.TensorProto.FLOAT16,
    onnx.TensorProto.BFLOAT16,
    onnx.TensorProto.DOUBLE,
    onnx.TensorProto.INT8,
    onnx.TensorProto.UINT8,
}


class OracleError(Exception):
    """The report's cuts do not fit the original file."""


def graphs(proto: onnx.ModelProto) -> Iterator[Any]:
    """Yield the main graph, every subgraph and every model-local function."""
    stack: list[Any] = [proto.graph, *proto.functions]
    while stack:
        graph = stack.pop()
        yield graph
        for node in graph.node:
            for attribute in node.attribute:
                stack.extend(
                    [attribute.g] if attribute.type == onnx.AttributeProto.GRAPH else attribute.graphs
                )


def parameters(proto: onnx.ModelProto) -> int:
    """Count the elements of all float and 8-bit weights, in Constant nodes, subgraphs and functions too."""
    total = 0
    for graph in graphs(proto):
        tensors = list(getattr(graph, "initializer", []))
        tensors += [
            a.t for n in graph.node if n.op_type == "Constant" for a in n.attribute if a.name == "value"
        ]
        total += sum(int(np.prod(t.dims, dtype=np.int64)) for t in tensors if t.data_type in COUNTED)
    return total


def weights(proto: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    """Return the main graph's initializers by name and its Constant nodes' tensors by output name."""
    found = {t.name: t for t in proto.graph.initializer}
    for node in proto.graph.node:
        if node.op_type == "Constant":
            found.update((node.output[0], a.t) for a in node.attribute if a.name == "value")
    return found


def readers(proto: onnx.ModelProto) -> dict[str, list[Reader]]:
    """Return who reads each value of the main graph."""
    found: dict[str, list[Reader]] = defaultdict(list)
    for index, node in enumerate(proto.graph.node):
        for slot, name in enumerate(node.input):
            found[name].append((index, slot))
    return found


def masked(
    original: onnx.ModelProto, pruned: onnx.ModelProto, cuts: list[Cut], contracted_only: bool = False
) -> onnx.ModelProto:
    """Return a copy of `original` in which the slices that `cuts` removes are zero.

    A cut with a key "copy" holds only for those readers of the tensor that read a copy of it in `pruned`.

    Raises
    ------
    OracleError
        A cut names an unknown tensor, or an axis or an index that the tensor does not have.
    """
    original = with_weights(original, {cut["tensor"] for cut in cuts})
    twin = onnx.ModelProto()
    twin.CopyFrom(original)
    tensors, uses, after = weights(twin), readers(original), _Pruned(pruned)
    by_tensor: dict[str, list[Cut]] = defaultdict(list)
    for cut in cuts:
        _validate(cut, tensors)
        by_tensor[cut["tensor"]].append(cut)
    for name, own in by_tensor.items():
        if contracted_only and not _feeds_contraction(original, uses, name):
            continue
        _mask_tensor(twin, tensors[name], own, uses[name], after)
    return twin


def with_weights(original: onnx.ModelProto, names: set[str]) -> onnx.ModelProto:
    """Return a model in which these tensors are weights: those that nodes compute from weights alone are computed.

    Raises
    ------
    OracleError
        If one of them depends on an input.
    """
    wanted = names - weights(original).keys()
    made = {name: node for node in original.graph.node for name in node.output if name}
    if not wanted & made.keys():
        return original
    found = onnx.ModelProto()
    found.CopyFrom(original)
    for name in sorted(wanted & made.keys()):
        array = numpy_helper.from_array(_computed(original, made, name), name)
        found.graph.initializer.append(array)
        node = next(n for n in found.graph.node if name in n.output)
        node.output[list(node.output).index(name)] = f"{name}__computed"
    return found


def _computed(original: onnx.ModelProto, made: dict[str, onnx.NodeProto], name: str) -> np.ndarray:
    known = {t.name for t in original.graph.initializer} | {""}
    needed, stack = set[str](), [name]
    while stack:
        one = stack.pop()
        if one in known or one in needed:
            continue
        if one not in made:
            raise OracleError(f"cuts name {name!r}, which is no weight and depends on the input {one!r}")
        needed.add(one)
        stack.extend(made[one].input)
    nodes = [n for n in original.graph.node if needed & set(n.output)]
    value = onnx.ValueInfoProto(name=name)
    graph = onnx.helper.make_graph(nodes, "computed", [], [value], original.graph.initializer)
    part = onnx.helper.make_model(graph, opset_imports=original.opset_import, ir_version=original.ir_version)
    return np.asarray(onnx.reference.ReferenceEvaluator(part).run(None, {})[0])


def _validate(cut: Cut, tensors: dict[str, onnx.TensorProto]) -> None:
    name, axis, removed = cut["tensor"], cut["axis"], cut["removed"]
    if name not in tensors:
        raise OracleError(f"cuts name {name!r}, which is no initializer or Constant of the original")
    dims = tensors[name].dims
    if not 0 <= axis < len(dims) or not removed or min(removed) < 0 or max(removed) >= dims[axis]:
        raise OracleError(f"cut of axis {axis} of {name!r} does not fit its shape {list(dims)}")
    if len(set(removed)) != len(removed) or len(removed) >= dims[axis]:
        raise OracleError(f"cut of axis {axis} of {name!r} repeats an index or removes everything")


class _Pruned:
    """What the pruned file holds at a reader of the original, found by the name of the node's output."""

    def __init__(self, proto: onnx.ModelProto) -> None:
        self.node = {output: node for node in proto.graph.node for output in node.output if output}
        self.tensors = weights(proto)

    def weight(self, node: onnx.NodeProto, slot: int) -> onnx.TensorProto | None:
        after = next((self.node[o] for o in node.output if o in self.node), None)
        if after is None or after.op_type != node.op_type or slot >= len(after.input):
            return None
        return self.tensors.get(after.input[slot])


def _mask_tensor(
    twin: onnx.ModelProto, tensor: onnx.TensorProto, cuts: list[Cut], uses: list[Reader], after: _Pruned
) -> None:
    """Zero in place where all readers agree; otherwise give each kind of reader a copy of its own."""
    array = numpy_helper.to_array(tensor)
    options = _alternatives(cuts)
    variants: dict[int, list[Reader]] = defaultdict(list)
    for node, slot in uses:
        look = len(uses) > 1 or len(options) > 1
        seen = after.weight(twin.graph.node[node], slot) if look else None
        variants[_chosen(array, options, seen)].append((node, slot))
    if len(variants) == 1:
        chosen = next(iter(variants))
        _store(tensor, _zeroed(twin, array, options[chosen] if chosen >= 0 else [], uses))
        return
    for chosen, users in variants.items():
        zeroed = _zeroed(twin, array, options[chosen] if chosen >= 0 else [], users)
        copy = twin.graph.initializer.add()
        copy.CopyFrom(numpy_helper.from_array(zeroed, f"{cuts[0]['tensor']}__masked_{chosen}"))
        for node, slot in users:
            twin.graph.node[node].input[slot] = copy.name


def _alternatives(cuts: list[Cut]) -> list[list[Cut]]:
    """Return what a reader may have lost: what all lose, or that and what the readers of one copy lose."""
    common = [cut for cut in cuts if "copy" not in cut]
    copies: dict[str, list[Cut]] = {}
    for cut in cuts:
        if "copy" in cut:
            copies.setdefault(cut["copy"], list(common)).append(cut)
    return [common, *copies.values()]


def _chosen(array: np.ndarray, options: list[list[Cut]], seen: onnx.TensorProto | None) -> int:
    """Return which of the alternatives a reader saw, by the content it has now; -1: the whole."""
    if seen is None:
        return 0
    if list(seen.dims) == list(array.shape):
        return -1
    found = numpy_helper.to_array(seen)
    matches = [i for i, cuts in enumerate(options) if np.array_equal(_sliced(array, cuts), found)]
    return matches[0] if matches else 0


def _sliced(array: np.ndarray, cuts: list[Cut]) -> np.ndarray:
    removed: dict[int, set[int]] = defaultdict(set)
    for cut in cuts:
        removed[cut["axis"]] |= set(cut["removed"])
    for axis, indices in removed.items():
        array = np.delete(array, sorted(indices), axis)
    return array


def _zeroed(twin: onnx.ModelProto, array: np.ndarray, cuts: list[Cut], users: list[Reader]) -> np.ndarray:
    result = array.copy()
    zero = np.zeros((), array.dtype)
    if array.dtype.kind in "iu":
        point = _zero_point(twin, users)
        if point is None:
            return result  # an index or a shape: its values are no channels
        zero = point
    for cut in cuts:
        where: list[Any] = [slice(None)] * array.ndim
        where[cut["axis"]] = cut["removed"]
        result[tuple(where)] = zero
    return result


def _zero_point(twin: onnx.ModelProto, users: list[Reader]) -> np.ndarray | None:
    """Return the zero of a quantized tensor (one for all channels); None where no reader has one."""
    tensors = weights(twin)
    for index, slot in users:
        node = twin.graph.node[index]
        if node.op_type == "QLinearConv" and slot == 8:
            return np.zeros((), np.int32)
        if slot not in ZERO_POINT.get(node.op_type, {}):
            continue
        position = ZERO_POINT[node.op_type][slot]
        name = node.input[position] if position < len(node.input) else ""
        values = numpy_helper.to_array(tensors[name]).reshape(-1) if name in tensors else np.zeros(1, np.int8)
        return np.asarray(values[0])
    return None


def _feeds_contraction(proto: onnx.ModelProto, uses: dict[str, list[Reader]], name: str) -> bool:
    stack, seen = [name], {name}
    while stack:
        for index, _ in uses[stack.pop()]:
            node = proto.graph.node[index]
            if node.op_type in CONTRACTIONS:
                return True
            fresh = set(node.output) - seen if node.op_type in MOVEMENTS else set()
            stack.extend(fresh)
            seen |= fresh
    return False


def _store(tensor: onnx.TensorProto, array: np.ndarray) -> None:
    name = tensor.name
    tensor.CopyFrom(numpy_helper.from_array(array, name))


def load(path: Path) -> onnx.ModelProto:
    """Read a model with its external data."""
    return onnx.load(path)


def interface_differences(original: onnx.ModelProto, pruned: onnx.ModelProto) -> list[str]:
    """Compare names, order, types and shapes of inputs and outputs. Empty when nothing changed."""
    found = []
    for kind in ("input", "output"):
        before, after = getattr(original.graph, kind), getattr(pruned.graph, kind)
        weighty = (
            set(weights(original)) if kind == "input" else set()
        )  # an input that doubles as an initializer may be resized
        if [v.name for v in before] != [v.name for v in after]:
            found.append(f"{kind} names changed")
            continue
        for a, b in zip(before, after, strict=True):
            if a.name not in weighty and a.type.SerializeToString() != b.type.SerializeToString():
                found.append(f"type of {kind} {a.name!r} changed")
    return found
