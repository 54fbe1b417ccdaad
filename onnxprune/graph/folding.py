"""Weights that a graph computes from other weights, folded: weight standardisation, W + B A, chains of movement.

A computed weight has axes that can't be cut (an average of the weights runs over them), no values that a fit could
replace, and nowhere to put zeros. So before the analysis such a tensor becomes a weight, under its own name, where
that helps (`Folded.names`), and what was left untouched is put back as it was in the end (`restored`).
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto

from onnxprune.files.external import is_external
from onnxprune.graph.computed import Computed, Finder
from onnxprune.graph.known import opsets_of, weights_of
from onnxprune.graph.live import needed, remove
from onnxprune.graph.trace import Tracer
from onnxprune.model import Model

__all__ = [
    "Folded",
    "fold",
    "fold_all",
    "merged",
    "restored",
    "weight_protos",
]

Array = NDArray[Any]

_log = logging.getLogger("onnxprune.graph")

#: Bytes of a result that is folded whatever goes with it.
SMALL = 1024
#: Bytes of results that are computed in one run.
TOGETHER = 1 << 28
#: Larger results lie in a file, from where they are mapped.
IN_MEMORY = 1 << 24
#: Elements that are computed without onnxruntime, where it has no kernel.
BY_REFERENCE = 1 << 22


@dataclass
class Folded:
    """A model in which computed tensors are weights.

    Attributes
    ----------
    model : Model
        A fork; the original itself if nothing was folded.
    original : Model
    tensors : dict
        Name -> what each tensor that is a weight now followed from.
    """

    model: Model
    original: Model
    tensors: dict[str, Computed] = field(default_factory=dict)

    @cached_property
    def aliases(self) -> dict[str, tuple[str, ...]]:
        """Folded tensor -> names of the weights and nodes that went into it and are no more."""
        graph = self.original.proto.graph
        live = {node.name for node in self.model.proto.graph.node}
        aliases = {}
        for name, computed in self.tensors.items():
            nodes = [graph.node[n].name for n in computed.nodes if graph.node[n].name not in live]
            aliases[name] = (*(w for w in computed.weights if w not in self.model), *filter(None, nodes))
        return aliases


def fold(model: Model, finder: Finder, names: Iterable[str]) -> Folded:
    """Make computed tensors weights; what only led to them goes.

    Parameters
    ----------
    model : Model
    finder : Finder
        Of the model.
    names : iterable of str
        Computed tensors; with one output of a node all its outputs that are read are folded.

    Returns
    -------
    Folded
        Without those that neither onnxruntime nor ONNX's reference can compute.
    """
    wanted: dict[str, Computed] = {}
    for name in names:
        for output in filter(None, finder.nodes[finder.maker[name]].output):
            if output == name or finder.readers[output] or output in finder.outer:
                wanted[output] = finder.of(output)
    values = _values(model, finder, wanted)
    made = {n: c for n, c in wanted.items() if all(o in values for o in _beside(finder, n, wanted))}
    if not made:
        return Folded(model, model)
    fork, before = model.fork(), needed(model)
    graph = fork.proto.graph
    # what can't be given by an array alone: whether its data is in the file or beside it
    outside = {n: all(is_external(t) for t in _large(model, c.weights)) for n, c in made.items()}
    gone = {finder.maker[name] for name in made}
    nodes = [NodeProto.FromString(n.SerializeToString()) for i, n in enumerate(graph.node) if i not in gone]
    del graph.node[:]
    graph.node.extend(nodes)
    for name in made:
        tensor = graph.initializer.add(name=name)
        if outside[name]:
            tensor.data_location = TensorProto.EXTERNAL
    fork.refresh()
    for name in made:
        fork.put(name, values[name])
    remove(fork, before - needed(fork) - made.keys())
    return Folded(fork, model, made)


def fold_all(model: Model, growth: float = 1.0) -> Folded:
    """Turn all computed tensors into weights, but for outputs and for what would make the file larger.

    Parameters
    ----------
    model : Model
        Of one graph, without local functions.
    growth : float
        How many times the bytes of what goes a tensor may have; small ones may always be weights.
    """
    finder = Finder(model, Tracer(opsets_of(model), weights_of(model)))
    outputs = {value.name for value in model.proto.graph.output}
    ends = [finder.of(name) for name in finder.ends() if name not in outputs]
    names = [one.name for one in ends if one.nbytes <= max(SMALL, growth * one.gone)]
    if len(names) < len(ends):
        _log.info("%d tensors would make the file larger, and are still computed", len(ends) - len(names))
    return fold(model, finder, names)


def _beside(finder: Finder, name: str, wanted: Mapping[str, Computed]) -> list[str]:
    return [o for o in finder.nodes[finder.maker[name]].output if o in wanted]


def _large(model: Model, names: Sequence[str]) -> list[TensorProto]:
    """Return the weights that are no small numbers, or the one that is largest."""
    infos = {n: model.info(n) for n in names}
    most = max(infos[n].nbytes for n in names)
    graph = model.proto.graph
    own = {t.name: t for t in graph.initializer}
    large = [own.get(n, TensorProto()) for n in names if infos[n].nbytes * 4 > most]
    return large or [TensorProto()]


def _values(model: Model, finder: Finder, wanted: Mapping[str, Computed]) -> dict[str, Array]:
    """Compute tensors, a few at a time; what can't be computed is left out."""
    values: dict[str, Array] = {}
    batch: list[Computed] = []
    todo = list(wanted.values())
    while todo:
        batch.append(todo.pop(0))
        if not todo or sum(c.nbytes for c in batch) + todo[0].nbytes > TOGETHER:
            values |= _batch(model, finder, batch)
            batch = []
    return values


def _batch(model: Model, finder: Finder, batch: Sequence[Computed]) -> dict[str, Array]:
    from onnxprune.runtime.session import RunError, open_session

    part = _part(model, finder, batch)
    try:
        got = open_session(part).run({})
        arrays = {c.name: np.asarray(got[c.name]) for c in batch}
        return {c.name: _kept(arrays[c.name]) for c in batch if _is_one(arrays[c.name], c)}
    except RunError:
        if len(batch) > 1:  # one of them alone may have no kernel
            return {n: a for c in batch for n, a in _batch(model, finder, [c]).items()}
    if prod(batch[0].typed[1] or ()) > BY_REFERENCE:
        return {}
    try:
        from onnx.reference import ReferenceEvaluator

        with np.errstate(all="ignore"):
            value: Any = next(iter(ReferenceEvaluator(part.to_proto()).run(None, {})))
    except Exception:  # it has no errors of its own
        return {}
    array = np.asarray(value)
    return {batch[0].name: _kept(array)} if _is_one(array, batch[0]) else {}


def _is_one(array: Array, computed: Computed) -> bool:
    """Whether an array has the type and the shape that a tensor was said to have."""
    elem, shape = computed.typed
    return array.shape == shape and array.dtype == onnx.helper.tensor_dtype_to_np_dtype(elem)


def _kept(array: Array) -> Array:
    """Return an array that doesn't take memory: a large one lies in a file that goes with it."""
    if array.nbytes <= IN_MEMORY:
        return array
    with tempfile.TemporaryFile() as file:
        array.tofile(file)
        file.flush()
        return np.memmap(file, array.dtype, "r", shape=array.shape)


def _part(model: Model, finder: Finder, batch: Sequence[Computed]) -> Model:
    """Return a model of the nodes that lead to some tensors, with these as its outputs."""
    part = model.fork()
    graph = part.proto.graph
    numbers = sorted({n for c in batch for n in c.nodes})
    weights = {w for c in batch for w in c.weights}
    unused = [n for n in part.names() if n not in weights]
    place = {number: rank for rank, number in enumerate(model.order)}
    nodes = [finder.nodes[n] for n in sorted(numbers, key=lambda number: place[number])]
    constants = [n for n in graph.node if n.op_type == "Constant" and n.output[0] in weights]
    copies = [NodeProto.FromString(n.SerializeToString()) for n in (*constants, *nodes)]
    if unused:
        part.drop(*unused)
    del graph.node[:], graph.input[:], graph.output[:], graph.value_info[:]
    del graph.sparse_initializer[:], graph.quantization_annotation[:], part.proto.training_info[:]
    graph.node.extend(copies)
    for one in batch:
        elem, shape = one.typed
        graph.output.append(onnx.helper.make_tensor_value_info(one.name, elem, shape))
    part.refresh()
    return part


def restored(result: Model, folded: Folded, but: Collection[str] = ()) -> Model:
    """Put what made a weight back in its place, where the weight is still what was folded.

    Parameters
    ----------
    result : Model
        Made from `folded.model`; nothing else may have been renamed.
    folded : Folded
    but : collection of str
        Folded tensors that stay weights in any case.

    Returns
    -------
    Model
        The same one, if every folded weight has changed.
    """
    new, old = weight_protos(result), weight_protos(folded.model)
    source = weight_protos(folded.original)
    names = {n for n in folded.tensors if n in new and new[n] == old[n] and n not in but}
    changed = folded.tensors.keys() - names
    while True:  # what follows from something that has changed can't be what it was
        bad = {n for n in names if not _possible(folded, n, changed, new, source)}
        if not bad:
            break
        names, changed = names - bad, changed | bad
    return _put_back(result, folded, names) if names else result


def weight_protos(model: Model) -> dict[str, bytes]:
    """Name -> the light proto of each weight: equal bytes are equal weights."""
    graph = model.proto.graph
    weights = {t.name: t.SerializeToString(deterministic=True) for t in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.output and node.output[0] in model:
            weights[node.output[0]] = node.SerializeToString(deterministic=True)
    return weights


def _possible(
    folded: Folded, name: str, changed: Iterable[str], new: Mapping[str, bytes], source: Mapping[str, bytes]
) -> bool:
    computed, nodes = folded.tensors[name], folded.original.proto.graph.node
    made = {o for n in computed.nodes for o in nodes[n].output if o}
    return not made & set(changed) and all(new.get(w, source[w]) == source[w] for w in computed.weights)


def _put_back(result: Model, folded: Folded, names: set[str]) -> Model:
    fork, graph = result.fork(), folded.original.proto.graph
    fork.drop(*sorted(names))
    have = {o for node in fork.proto.graph.node for o in node.output if o} | set(fork.names())
    missing = {
        n for name in names for n in folded.tensors[name].nodes if not set(graph.node[n].output) & have
    }
    weights = {w for name in names for w in folded.tensors[name].weights if w not in have}
    missing |= {i for i, n in enumerate(graph.node) if n.op_type == "Constant" and n.output[0] in weights}
    copies = merged(fork.proto.graph.node, graph.node, missing)
    del fork.proto.graph.node[:]
    fork.proto.graph.node.extend(copies)
    number = {t.name: i for i, t in enumerate(graph.initializer)}
    tensors = [*fork.proto.graph.initializer, *(t for t in graph.initializer if t.name in weights)]
    tensors.sort(key=lambda t: number.get(t.name, len(number)))
    own = [TensorProto.FromString(t.SerializeToString()) for t in tensors]
    del fork.proto.graph.initializer[:]
    fork.proto.graph.initializer.extend(own)
    fork.refresh()
    return fork


def merged(
    kept: Iterable[NodeProto], original: Sequence[NodeProto], missing: Collection[int]
) -> list[NodeProto]:
    """Return copies of nodes with some of the original's put back in their places."""
    first = {next(o for o in node.output if o): i for i, node in enumerate(original) if any(node.output)}
    nodes = list(kept)
    keys, key = [0.0] * len(nodes), float(len(original))
    for at in reversed(range(len(nodes))):  # a node that is new stands in front of the next that isn't
        key = float(next((first[o] for o in nodes[at].output if o in first), key))
        keys[at] = key
    both = sorted(
        [*zip(keys, nodes, strict=True), *((float(i), original[i]) for i in missing)], key=lambda p: p[0]
    )
    return [NodeProto.FromString(n.SerializeToString()) for _, n in both]
