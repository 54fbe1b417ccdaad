"""How much memory one run needs at its peak: an estimate from shapes alone, quick to take again when widths change.

The model is that of a runtime which executes nodes one by one in the file's order:

1. all weights are there all the time, and so are the graph's inputs, which belong to the caller;
2. a tensor is there from the node that writes it to the last node that reads it, a graph output to the end;
3. a view (`VIEWS`) takes no memory of its own; it keeps alive what it shows;
4. an element-wise op (`OVERWRITES`) writes into an input of the same shape and type that nobody reads later, as
   runtimes do that fuse or reuse buffers;
5. scratch memory of kernels, packed copies of weights and what the arena holds back are not counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.cut.kept import Kept
from onnxprune.files import payload
from onnxprune.graph.coupling import Coupling, Dims
from onnxprune.graph.trace import Typed, captured
from onnxprune.model import Model

__all__ = ["Memory", "Peak", "Step", "memory_of", "peak", "weight_bytes"]

VIEWS = frozenset({"Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Dropout"})
_ELEMENTWISE = (
    "Abs Add BatchNormalization BiasGelu Ceil Clip Cos Div Elu Erf Exp FastGelu Floor Gelu HardSigmoid HardSwish "
    "LeakyRelu Log Mish Mul Neg Pow PRelu QuickGelu Reciprocal Relu Round Selu Sigmoid Sign Sin Softplus Softsign "
    "Sqrt Sub Tanh ThresholdedRelu"
)
OVERWRITES = frozenset(_ELEMENTWISE.split())


@dataclass(frozen=True, slots=True)
class Step:
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


def schedule(steps: Sequence[Step], inputs: Iterable[str], outputs: Iterable[str]) -> Schedule:
    """Return when each buffer is taken and given back.

    Parameters
    ----------
    steps : sequence of Step
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


def _home(step: Step, number: int, root: Mapping[str, str], until: Mapping[str, int]) -> str:
    """Return the buffer that the first output of a step lives in; empty where it takes one of its own."""
    if step.shows in root:
        return root[step.shows]
    return next((root[n] for n in step.over if n in root and until[root[n]] <= number), "")


def peak(
    steps: Sequence[Step], sizes: Mapping[str, float], inputs: Iterable[str], outputs: Iterable[str]
) -> Peak:
    """Return the peak of the activations.

    Parameters
    ----------
    steps : sequence of Step
        In the order of execution.
    sizes : mapping
        Tensor -> bytes.
    inputs, outputs : iterables of str
        Of the graph.

    Examples
    --------
    >>> chain = [Step(("x",), ("a",)), Step(("a",), ("b",), over=("a",)), Step(("b",), ("y",))]
    >>> peak(chain, {"x": 10, "a": 40, "b": 40, "y": 5}, ["x"], ["y"])
    Peak(bytes=55.0, step=2)
    """
    return schedule(steps, inputs, outputs).peak(lambda name: sizes[name])


@dataclass
class Memory:
    """The activations of a coupled graph, as lengths of dims.

    Attributes
    ----------
    plan : Schedule
    dims : dict
        Buffer -> its dims.
    item : dict
        Buffer -> bytes of one element.
    names : list of str
        The node of each step.
    unknown : int
        Tensors whose shape or type isn't known before the run; they count as nothing.
    """

    plan: Schedule
    dims: dict[str, Dims]
    item: dict[str, float]
    names: list[str]
    unknown: int = 0

    @classmethod
    def of(cls, coupling: Coupling, types: Mapping[str, Typed], outputs: Iterable[str]) -> Memory:
        """Lay out the activations of a graph.

        Parameters
        ----------
        coupling : Coupling
        types : mapping
            Tensor -> (element type, shape), as in `onnxprune.graph.trace.Tracer.types`.
        outputs : iterable of str
            Of the graph.
        """
        made = {name for a in coupling.nodes for name in a.node.outputs}
        weights = {i.tensor for i in coupling.instances} | {
            name for a in coupling.nodes if a.node.op == "Constant" for name in a.node.outputs
        }
        inputs = [name for name in coupling.dims if name not in made and name not in weights]
        steps, names = [], []
        for applied in coupling.nodes:
            if applied.node.op != "Constant" or applied.node.inputs:
                steps.append(_step(coupling, applied.node, captured(applied.proto), types))
                names.append(applied.node.name or applied.node.outputs[0])
        plan = schedule(steps, inputs, outputs)
        buffers = [*plan.first, *(name for step in plan.taken for name in step)]
        item = {name: _bytes(types.get(name)) for name in buffers}
        known = {name for name in buffers if name in coupling.dims and item[name]}
        return cls(
            plan,
            {name: coupling.dims[name] for name in buffers if name in known},
            {name: item[name] for name in buffers if name in known},
            names,
            sum(name not in known for name in buffers),
        )

    def peak(self, length: Callable[[int], float]) -> Peak:
        """Return the peak of the activations in bytes.

        Parameters
        ----------
        length : callable
            Dim -> how many indices of it are there.
        """
        sizes = {name: prod(map(length, dims)) * self.item[name] for name, dims in self.dims.items()}
        return self.plan.peak(lambda name: sizes.get(name, 0.0))


def _step(coupling: Coupling, node: Any, inner: Iterable[str], types: Mapping[str, Typed]) -> Step:
    reads = tuple(name for name in (*node.inputs, *inner) if name)
    writes = tuple(name for name in node.outputs if name)
    if node.domain not in ("", "ai.onnx", "com.microsoft") or not writes:
        return Step(reads, writes)
    if node.op in VIEWS:
        return Step(reads, writes, shows=node.inputs[0])
    if node.op not in OVERWRITES:
        return Step(reads, writes)

    def kind(name: str) -> object:
        dims = coupling.dims.get(name)
        return name if dims is None else (types.get(name, (0, None))[0], *map(coupling.space.find, dims))

    return Step(reads, writes, over=tuple(name for name in reads if kind(name) == kind(writes[0])))


def _bytes(typed: Typed | None) -> float:
    """Bytes of one element; 0 where the type is unknown."""
    try:
        return payload.bits(typed[0]) / 8 if typed is not None else 0.0
    except (KeyError, ValueError):
        return 0.0


def weight_bytes(model: Model) -> int:
    """Return the bytes of all weights, each once."""
    return sum(model.info(name).nbytes for name in model.names())


def memory_of(
    memory: Memory, coupling: Coupling, weights: int, dead: Mapping[int, NDArray[np.bool_]] | None = None
) -> dict[str, Any]:
    """Return the estimate for a model that has lost the dead channels.

    Parameters
    ----------
    memory : Memory
    coupling : Coupling
        The same that ``memory`` was made of.
    weights : int
        Bytes of the weights that are left.
    dead : mapping, optional
        Root dim -> which of its indices go.

    Returns
    -------
    dict
        ``bytes``, the sum of ``weights`` and ``activations``; ``at``, the node at the peak (empty: before the first).
    """
    kept = Kept(coupling, dead or {})
    found = memory.peak(kept.size)
    at = memory.names[found.step] if found.step >= 0 else ""
    return {
        "bytes": weights + round(found.bytes),
        "weights": weights,
        "activations": round(found.bytes),
        "at": at,
    }
