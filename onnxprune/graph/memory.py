"""How much memory one sample needs at its peak: an estimate from shapes alone, quick to take again when widths change.

The model is that of a runtime which executes nodes one by one in the file's order:

1. all weights are there all the time, and so are the graph's inputs, which belong to the caller;
2. a tensor is there from the node that writes it to the last node that reads it, a graph output to the end;
3. a view (`Trait.VIEW`) takes no memory of its own; it keeps alive what it shows;
4. an element-wise op (`Trait.OVERWRITES`) writes into an input of the same shape and type that nobody reads later, as
   runtimes do that fuse or reuse buffers;
5. scratch memory of kernels, packed copies of weights and what the arena holds back are not counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

from onnxprune.files import payload
from onnxprune.files.protowalk import captured
from onnxprune.graph.analysis import Analysis
from onnxprune.graph.coupling import Applied
from onnxprune.graph.kept import Kept
from onnxprune.ops import Trait

__all__ = [
    "Peak",
    "MemoryStep",
    "activations",
    "element_bytes",
    "moments",
    "peak",
    "peak_bytes",
    "weight_bytes",
]


@dataclass(frozen=True, slots=True)
class MemoryStep:
    """One node.

    Attributes
    ----------
    reads, writes : tuple of str
        Tensors; weights may be among what is read.
    shows : str
        The input that the first output is a view of; empty where it is none.
    over : tuple of str
        Inputs that the first output may overwrite, if they aren't needed any more.
    """

    reads: tuple[str, ...]
    writes: tuple[str, ...]
    shows: str = ""
    over: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Peak:
    """The greatest sum of what is there at once: bytes, and the number of the step (-1: before the first)."""

    bytes: float
    step: int


@dataclass(frozen=True)
class Schedule:
    """When each buffer is taken and given back; a buffer is named by the tensor that is written to it first."""

    first: tuple[str, ...]
    taken: tuple[tuple[str, ...], ...]
    freed: tuple[tuple[str, ...], ...]

    @property
    def buffers(self) -> list[str]:
        """All buffers, in the order in which they are taken."""
        return [*self.first, *(name for names in self.taken for name in names)]

    def peak(self, size: Callable[[str], float]) -> Peak:
        """Return the peak for these sizes of buffers, in bytes."""
        now = float(sum(size(name) for name in self.first))
        most = Peak(now, -1)
        for number, (taken, freed) in enumerate(zip(self.taken, self.freed, strict=True)):
            now += sum(size(name) for name in taken)
            if now > most.bytes:
                most = Peak(now, number)
            now -= sum(size(name) for name in freed)
        return most


def schedule(steps: Sequence[MemoryStep], inputs: Iterable[str], outputs: Iterable[str]) -> Schedule:
    """Return when each buffer is taken and given back.

    Parameters
    ----------
    steps : sequence of MemoryStep
        In the order of execution.
    inputs, outputs : iterables of str
        Of the graph. What a step reads that is neither an input nor written before is a weight.
    """
    inputs, outputs = tuple(dict.fromkeys(inputs)), set(outputs)
    root = {name: name for name in inputs}
    last: dict[str, int] = {}  # tensor -> the last step that reads it
    for number, step in enumerate(steps):
        last |= dict.fromkeys(step.reads, number)
    end = len(steps)
    until: dict[str, int] = dict.fromkeys(inputs, end)  # buffer -> the last step that needs it
    taken: list[tuple[str, ...]] = []
    for number, step in enumerate(steps):
        fresh = []
        for slot, name in enumerate(step.writes):
            need = end if name in outputs else last.get(name, number)
            home = _home(step, number, root, until) if slot == 0 else ""
            if home:
                root[name] = home
                until[home] = max(until[home], need)
            elif not (slot == 0 and step.shows):  # a view of a weight takes nothing
                root[name] = name
                until[name] = need
                fresh.append(name)
        taken.append(tuple(fresh))
    freed: list[list[str]] = [[] for _ in steps]
    for name, number in until.items():
        if number < end:
            freed[number].append(name)
    return Schedule(inputs, tuple(taken), tuple(tuple(names) for names in freed))


def _home(step: MemoryStep, number: int, root: Mapping[str, str], until: Mapping[str, int]) -> str:
    """Return the buffer that the first output of a step lives in; empty where it takes one of its own."""
    if step.shows in root:
        return root[step.shows]
    return next((root[n] for n in step.over if n in root and until[root[n]] <= number), "")


def peak(
    steps: Sequence[MemoryStep], sizes: Mapping[str, float], inputs: Iterable[str], outputs: Iterable[str]
) -> Peak:
    """Return the peak of the activations.

    Parameters
    ----------
    steps : sequence of MemoryStep
        In the order of execution.
    sizes : mapping
        Tensor -> bytes.
    inputs, outputs : iterables of str
        Of the graph.

    Examples
    --------
    >>> chain = [MemoryStep(("x",), ("a",)), MemoryStep(("a",), ("b",), over=("a",)), MemoryStep(("b",), ("y",))]
    >>> peak(chain, {"x": 10, "a": 40, "b": 40, "y": 5}, ["x"], ["y"])
    Peak(bytes=55.0, step=2)
    """
    return schedule(steps, inputs, outputs).peak(lambda name: sizes[name])


def element_bytes(analysis: Analysis, tensor: str) -> float:
    """Return the bytes of one element of a tensor (a half where two share a byte), 0 where that is unknown."""
    kind = analysis.tracer.types.get(tensor, (0, None))[0]
    if tensor in analysis.tracer.weights:
        kind = analysis.tracer.weights[tensor].elem
    return payload.bits(kind) / 8 if payload.known_type(kind) else 0.0


def activations(analysis: Analysis) -> tuple[Schedule, list[str]]:
    """Return when each activation of a model is there, and the name of the node at each step."""
    coupling, steps, names = analysis.coupling, [], []
    made = {name for a in coupling.nodes for name in a.node.outputs}
    inputs = [n for n in coupling.dims if n not in made and n not in analysis.tracer.weights]
    for applied in coupling.nodes:
        if applied.node.op != "Constant" or applied.node.inputs:
            steps.append(_step(analysis, applied))
            names.append(applied.node.name or next((n for n in applied.node.outputs if n), ""))
    outputs = [value.name for value in analysis.model.proto.graph.output]
    return schedule(steps, inputs, outputs), names


def moments(analysis: Analysis) -> list[tuple[str, ...]]:
    """Return the buffers that are there together, for each moment that no other one holds entirely.

    A buffer is named by the tensor that is written to it first; those of unknown shape or type are left out. The peak
    of the activations is the greatest sum over these sets, whatever the widths are.
    """
    plan, _ = activations(analysis)
    known = {n for n in plan.buffers if n in analysis.coupling.dims and element_bytes(analysis, n)}
    alive, buffers, grown = dict.fromkeys(n for n in plan.first if n in known), [], True
    for taken, freed in zip(plan.taken, plan.freed, strict=True):
        fresh, going = [n for n in taken if n in known], [n for n in freed if n in alive or n in taken]
        alive |= dict.fromkeys(fresh)
        grown = grown or bool(fresh)
        if grown and going:  # the set is largest just before something goes
            buffers.append(tuple(alive))
            grown = False
        for name in going:
            alive.pop(name, None)
    if grown:
        buffers.append(tuple(alive))
    return [names for names in buffers if names]


def weight_bytes(analysis: Analysis, dead: Mapping[int, NDArray[np.bool_]] | None = None) -> int:
    """Return the bytes of all weights; a vector that several nodes share counts once, as wide as its widest use."""
    kept = Kept(analysis.coupling, dead or {})
    left: dict[str, int] = {}
    for instance in analysis.coupling.instances:
        left[instance.tensor] = max(left.get(instance.tensor, 0), prod(kept.shape(instance.dims)))
    total, gone = 0.0, {name for passage in kept.passages for name in passage.weights}
    for name, weight in ((n, w) for n, w in analysis.tracer.weights.items() if n not in gone):
        total += left.get(name, prod(weight.shape)) * element_bytes(analysis, name)
    return round(total)


def peak_bytes(analysis: Analysis, dead: Mapping[int, NDArray[np.bool_]] | None = None) -> int:
    """Return the estimate of the peak memory of one sample (`onnxprune.graph.per_sample`), in bytes.

    Parameters
    ----------
    analysis : Analysis
    dead : mapping, optional
        Root dim -> which of its indices go.
    """
    kept, dims, space = Kept(analysis.coupling, dead or {}), analysis.coupling.dims, analysis.coupling.space

    def size(name: str) -> float:
        if name not in dims:
            return 0.0
        return prod(kept.shape(dims[name])) * element_bytes(analysis, name) * space.share(dims[name])

    plan, _ = activations(analysis)
    return round(plan.peak(size).bytes) + weight_bytes(analysis, dead)


def _step(analysis: Analysis, applied: Applied) -> MemoryStep:
    node, coupling, types = applied.node, analysis.coupling, analysis.tracer.types
    inner = captured(applied.proto) if applied.proto.attribute else ()
    reads = tuple(name for name in (*node.inputs, *inner) if name)
    writes = tuple(name for name in node.outputs if name)
    if not writes or node.attr("training_mode", 0):
        return MemoryStep(reads, writes)
    if Trait.VIEW in node.traits:
        return MemoryStep(reads, writes, shows=node.inputs[0])
    if Trait.OVERWRITES not in node.traits:
        return MemoryStep(reads, writes)

    def kind(name: str) -> object:
        dims = coupling.dims.get(name)
        return name if dims is None else (types.get(name, (0, None))[0], *map(coupling.space.find, dims))

    return MemoryStep(reads, writes, over=tuple(name for name in reads if kind(name) == kind(writes[0])))
