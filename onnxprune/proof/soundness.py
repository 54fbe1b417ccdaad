"""Checks of a pruned model that need no run: its interface, ONNX's checker, strict shape inference. And one that does:
folded weights against what the original computes.

They look at a copy without weights, in which every large weight is declared like an input: the checker would
serialise the whole model otherwise. That a weight holds as much data as its dimensions say is what
`Model.load` and `Model.save` see to.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx
from onnx import TensorProto, helper

from onnxprune.files.bodies import inner_nodes
from onnxprune.files.payload import nbytes
from onnxprune.files.protowalk import tensors
from onnxprune.graph.folding import Folded
from onnxprune.graph.kept import Kept
from onnxprune.model import Model
from onnxprune.proof.compare import compare
from onnxprune.runtime.session import Feeds, RunError, open_session
from onnxprune.wall import board as wall

__all__ = ["check", "folds", "interface", "strict"]

#: Greatest relative error of a folded weight: what another kernel may round differently.
FOLDED = 1e-4


def interface(original: Model, pruned: Model, kept: Kept | None = None) -> list[str]:
    """Return what differs in the names, types or order of inputs and outputs, and in the versions.

    Parameters
    ----------
    original, pruned : Model
    kept : Kept, optional
        What a cut leaves: axes that it opened, and no others, have the size that it says; what is gone isn't there.
    """
    a, b = original.proto, pruned.proto
    differences = []
    weights = {t.name for t in a.graph.initializer}
    ins = [[v for v in p.graph.input if v.name not in weights] for p in (a, b)]
    for what, before, after in (("inputs", *ins), ("outputs", list(a.graph.output), list(b.graph.output))):
        stay = [v for v in before if kept is None or v.name not in kept.gone]
        if [_bytes(_cut(v, kept)) for v in stay] != [_bytes(v) for v in after]:
            differences.append(f"the {what} differ: {_names(before)} became {_names(after)}")
    if a.ir_version != b.ir_version or [*a.opset_import] != [*b.opset_import]:
        differences.append("the IR version or the opsets differ")
    return differences


def _cut(value: onnx.ValueInfoProto, kept: Kept | None) -> onnx.ValueInfoProto:
    """Return an input or output as a cut must declare it."""
    axes = kept.coupling.opened.get(value.name, frozenset()) if kept is not None else ()
    if kept is None or not axes:
        return value
    smaller = onnx.ValueInfoProto()
    smaller.CopyFrom(value)
    for axis, left in kept.axes(kept.coupling.dims.get(value.name, ())).items():
        if axis in axes:
            smaller.type.tensor_type.shape.dim[axis].dim_value = len(left)
    return smaller


def _bytes(value: onnx.ValueInfoProto) -> bytes:
    return bytes(value.SerializeToString(deterministic=True))


def _names(values: Iterable[onnx.ValueInfoProto]) -> str:
    return ", ".join(f"{v.name} {helper.printable_type(v.type)}" for v in values)[:200]


def check(original: Model, pruned: Model) -> tuple[list[str], list[str]]:
    """Run ONNX's checker; return failures and notes.

    What the checker says about the original as well is a note: it isn't the cut's doing. Nor is it a fault that a fused
    op was spelled by one that onnxruntime alone has under ONNX's domain (SimplifiedLayerNormalization): such nodes
    are passed over, and onnxruntime says of them what is to be said.
    """
    error = _checked(_bare(pruned))
    if error and _checked(_bare(original)):
        return [], [f"ONNX's checker refuses the original too: {error}"]
    if error:
        error = _checked(_without_unknown(_bare(pruned)))
    return ([f"ONNX's checker: {error}"], []) if error else ([], [])


def _checked(bare: onnx.ModelProto) -> str:
    try:
        with wall.stage("The checker of onnx"):
            onnx.checker.check_model(bare)
    except (onnx.checker.ValidationError, ValueError, RuntimeError) as error:
        return _first_line(error)
    return ""


def _without_unknown(bare: onnx.ModelProto) -> onnx.ModelProto:
    """Put nodes of ONNX's domain that it has no schema for into another, in place; return the model."""
    version = next((o.version for o in bare.opset_import if o.domain in ("", "ai.onnx")), 1)
    other, nodes = "onnxprune.unknown", list(inner_nodes(bare.graph))
    unknown = [n for n in nodes if not n.domain and not onnx.defs.has(n.op_type, version, "")]
    for node in unknown:
        node.domain = other
    if unknown:
        bare.opset_import.append(helper.make_opsetid(other, 1))
    return bare


def strict(original: Model, pruned: Model) -> tuple[list[str], list[str]]:
    """Run strict shape inference; return failures and notes, as `check`."""
    if pruned.proto.graph.sparse_initializer:
        return [], ["strict shape inference: skipped, it can't read sparse initializers"]
    error = _inferred(pruned)
    if not error:
        return [], []
    first = _inferred(original)
    if first:
        return [], [f"strict shape inference doesn't apply: of the original it says '{first}'"]
    return [f"strict shape inference: {error}"], []


def _inferred(model: Model) -> str:
    try:
        with wall.stage("ONNX's shape inference"):
            onnx.shape_inference.infer_shapes(_bare(model), check_type=True, strict_mode=True, data_prop=True)
    except (onnx.shape_inference.InferenceError, ValueError, RuntimeError) as error:
        return _first_line(error)
    return ""


def folds(folded: Folded, feeds: Feeds) -> list[str]:
    """Run the original, and return which folded weights aren't what it computes there."""
    names = sorted(folded.tensors)
    types = {v.name: v.type.tensor_type.elem_type for v in folded.original.proto.graph.input}
    given = {  # models of half floats may have been widened
        n: np.asarray(a).astype(helper.tensor_dtype_to_np_dtype(types[n])) if types.get(n) else a
        for n, a in feeds.items()
    }
    try:
        computed = open_session(folded.original, names).run(given, names)
    except RunError as error:
        return [f"onnxruntime doesn't run the model that weights were folded in: {error}"]
    wrong = [n for n in names if compare(np.asarray(computed[n]), folded.model.weight(n)).error > FOLDED]
    return [f"the folded weight {name!r} isn't what the original computes" for name in wrong]


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2])[:300]


def _empty(tensor: TensorProto) -> bool:
    """Whether a tensor's data was left out of a skeleton."""
    typed = (tensor.float_data, tensor.int32_data, tensor.int64_data, tensor.uint64_data, tensor.double_data)
    fields = (tensor.raw_data, *typed)
    numbers = tensor.data_type not in (TensorProto.UNDEFINED, TensorProto.STRING)
    return numbers and all(tensor.dims) and not any(len(f) for f in fields)


def _bare(model: Model) -> onnx.ModelProto:
    """Return a copy whose large weights are inputs; those of bodies hold zeros."""
    proto = model.skeleton()
    graph = proto.graph
    declared = {v.name for v in graph.input}
    for i in reversed(range(len(graph.initializer))):
        tensor = graph.initializer[i]
        if _empty(tensor):
            _declare(graph, declared, tensor.name, tensor)
            del graph.initializer[i]
    for i in reversed(range(len(graph.node))):
        node = graph.node[i]
        if node.op_type == "Constant" and node.output:
            value = next((a.t for a in node.attribute if a.name == "value" and a.HasField("t")), None)
            if value is not None and _empty(value):
                _declare(graph, declared, node.output[0], value)
                del graph.node[i]
    for _, tensor in tensors(proto):
        if _empty(tensor):
            tensor.raw_data = bytes(nbytes(tensor.dims, tensor.data_type))
    return proto


def _declare(graph: onnx.GraphProto, declared: set[str], name: str, tensor: TensorProto) -> None:
    if name not in declared:
        graph.input.append(helper.make_tensor_value_info(name, tensor.data_type, tuple(tensor.dims)))
        declared.add(name)
