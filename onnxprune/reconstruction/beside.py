"""A cut model beside its original: what descent changes, and what of the original's tensors stays.

The model that layers were fitted in has the original's shape, with zeros where channels will go. Descent works on the
model as it will be when they are gone; what it changes is put back into the model of the original's shape, so that the
proof of the cut stays what it was.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxprune.calibration.samples import Samples
from onnxprune.cut.rewrite import rewrite
from onnxprune.errors import ModelError, UsageError
from onnxprune.gradient.floats import in_floats
from onnxprune.graph.analysis import Analysis, analyse
from onnxprune.graph.coupling import Applied, Instance
from onnxprune.graph.kept import Kept, Masks, read_by
from onnxprune.graph.trace import TraceError
from onnxprune.graph.widen import has_halves, widen
from onnxprune.model import Model
from onnxprune.reconstruction.stored import Floats
from onnxprune.reconstruction.thaw import OnGrid, thawed
from onnxprune.runtime.binding import Shape

__all__ = ["Beside", "alike", "covers", "in_units", "mixable", "together"]

Array = NDArray[Any]
Batch = dict[str, Array]

#: Batches that samples are cut into at least, and the most samples of one.
UNITS, LARGEST = 25, 16


@dataclass
class Beside:
    """A cut model beside its original.

    Attributes
    ----------
    fitted : Analysis
        Of a model of the original's shape; `put_back` changes its weights in place.
    original : Analysis
    cut : Model
        ``fitted`` without the channels that go.
    kept : Kept
        What stays of the original's tensors.
    once : dict
        Weight that one place alone uses -> that place: these may change. Weights of which an output is a function that
        the cut leaves as it was aren't here, such as states that a caller carries on: what is exact stays so.
    samples : Samples
    settle : callable
        Weights of the cut model -> what they become in the file.
    frozen : dict
        Weight of a thawed cut model -> how it is stored.
    """

    fitted: Analysis
    original: Analysis
    cut: Model
    kept: Kept
    once: dict[str, Instance]
    samples: Samples
    settle: Callable[[Mapping[str, Array]], Mapping[str, Array]] = dict
    frozen: Mapping[str, OnGrid] = field(default_factory=dict)

    @classmethod
    def of(cls, fitted: Analysis, original: Analysis, dead: Masks, samples: Samples) -> Beside:
        """Cut a fitted model.

        Parameters
        ----------
        fitted, original : Analysis
        dead : mapping
            Root dim -> which of its indices will be cut.
        samples : Samples
            Their shapes are those that the cut model is analysed at.
        """
        cut = rewrite(fitted.model, fitted.coupling, fitted.tracer, dead, fitted.other_values()).model
        places: defaultdict[str, list[Instance]] = defaultdict(list)
        for instance in fitted.coupling.instances:
            if instance.uses or instance.outer:
                places[instance.tensor].append(instance)
        held = _exact(fitted, original, dead)
        once = {
            n: found[0]
            for n, found in places.items()
            if len(found) == 1 and not found[0].outer and n not in held
        }
        return cls(fitted, original, cut, Kept(fitted.coupling, dead), once, samples)

    @cached_property
    def left(self) -> Samples:
        """The samples as the cut model takes them, whose inputs may have been cut as well."""
        return self.samples.taken(self.kept.take)

    @cached_property
    def analysis(self) -> Analysis:
        """Of the cut model, at the shapes of the samples."""
        return _analysed(self.cut, self.left, self.original.given)

    @property
    def floats(self) -> Beside:
        """The same as descent needs it: half floats widened, and quantised weights as floats.

        What descent makes of it is put into this one by `take`.

        Raises
        ------
        CalibrationError
            If half floats are too many to be widened.
        """
        wide = self.widened or self
        return wide.thawed or wide

    @cached_property
    def widened(self) -> Beside | None:
        """The same with models and samples of 32-bit floats, whose weights are rounded to half; None without such."""
        if not has_halves(self.analysis.types.values()):
            return None
        original, samples = in_floats(self.original, self.samples)
        return replace(self, original=original, cut=widen(self.cut), samples=samples, settle=self._halved)

    def _halved(self, weights: Mapping[str, Array]) -> dict[str, Array]:
        """Return weights with the values that this cut model can hold."""
        names = {n for n in weights if n in self.cut}
        return {
            n: w.astype(self.cut.weight(n).dtype).astype(w.dtype) if n in names else w
            for n, w in weights.items()
        }

    @cached_property
    def thawed(self) -> Beside | None:
        """The same with a cut model of floats, whose weights know their grid; None where nothing is quantised."""
        found = thawed(self.analysis)
        if found is None:
            return None
        own = {n: self.once[f.codec.name] for n, f in found.frozen.items() if f.codec.name in self.once}
        return replace(
            self, cut=found.model, once={**self.once, **own}, frozen=found.frozen,
            settle=lambda weights: found.settle(self.settle(weights)),
        )  # fmt: skip

    def take(self, other: Beside, name: str) -> None:
        """Put a weight of another's cut model, as it is stored there or thawed, into both models of this one."""
        if name in other.frozen:
            other.frozen[name].write(self.cut, other.cut.weight(name))
            self.put_back(other.frozen[name].codec.name)
            return
        Floats(name).write(self.cut, other.cut.weight(name))
        self.put_back(name)

    def put_back(self, name: str) -> None:
        """Put a weight of the cut model into the model of the original's shape."""
        whole = np.array(self.fitted.model.weight(name))
        axes = self.kept.axes(self.once[name].dims)
        index = [axes.get(axis, np.arange(size)) for axis, size in enumerate(whole.shape)]
        whole[np.ix_(*index)] = self.cut.weight(name)
        self.fitted.model.put(name, whole)


def _exact(fitted: Analysis, original: Analysis, dead: Masks) -> set[str]:
    """Return the weights behind those outputs that a fitted model computes just as the original does.

    That is by the same nodes, from the same weights, none of whose axes lose a channel; a bias of zeros that fits have
    added changes nothing, and stays zero. None where all are the same. States that callers give back to the model
    aren't looked at by anyone else, so they may move with what reads them.
    """
    one, two = fitted.model, original.model

    def added(name: str) -> bool:
        return name in one and name not in two and not np.any(one.weight(name))

    def kept(weight: str) -> bool:
        return added(weight) or (weight in two and np.array_equal(one.weight(weight), two.weight(weight)))

    def bare(node: onnx.NodeProto) -> bytes:
        while node.input and (not node.input[-1] or added(node.input[-1])):
            node, whole = onnx.NodeProto(), node
            node.CopyFrom(whole)
            del node.input[-1]
        return bytes(node.SerializeToString())

    before = {tuple(a.node.outputs): bare(a.proto) for a in original.coupling.nodes}

    def changed(applied: Applied) -> bool:
        same = before.get(tuple(applied.node.outputs)) == bare(applied.proto)
        return not same or not all(kept(n) for n in read_by(applied) if n in one)

    others = Kept(fitted.coupling, dead).reached(changed)
    reads = {name: read_by(applied) for applied in fitted.coupling.nodes for name in applied.node.outputs}
    states = _states(fitted)
    outputs = [v.name for v in fitted.model.proto.graph.output if v.name not in states]
    found, todo = set[str](), [n for n in outputs if n not in others] if others else []
    while todo:
        more = reads.get(todo.pop(), set()) - found
        found |= more
        todo += more
    return {n for n in found if n in fitted.model}


def _states(analysis: Analysis) -> set[str]:
    """Return the outputs that a caller carries to the next run: theirs is an axis of an input and of weights."""
    space, dims, graph = analysis.coupling.space, analysis.coupling.dims, analysis.model.proto.graph

    def roots(names: Iterable[str]) -> set[int]:
        return {space.find(d) for n in names for d in dims.get(n) or ()}

    weights = set(analysis.model.names())
    given = roots(weights) & roots(v.name for v in graph.input if v.name not in weights)
    return {v.name for v in graph.output if roots([v.name]) & given}


def in_units(samples: Samples) -> Samples:
    """Cut samples into small batches: where these are the units, some of them must be held out."""
    return samples.cut_into(min(max(samples.count // UNITS, 1), LARGEST))


def mixable(parts: Sequence[Batch], counts: Sequence[int], *, free: bool) -> bool:
    """Whether samples of different batches may be put into one, where batches may have any size."""
    pairs = zip(parts, counts, strict=True)
    whole = free and all(a.ndim and len(a) == n for part, n in pairs for a in part.values())
    return whole and all(alike([part[n] for part in parts]) for n in parts[0])


def together(parts: list[Batch], counts: Sequence[int], *, free: bool) -> tuple[list[Batch], list[int], bool]:
    """Put the samples of all batches together where batches may have any size; what is given is emptied.

    Returns
    -------
    parts, counts : list
        A single one where they could be put together.
    free : bool
        Whether they could.
    """
    if not mixable(parts, counts, free=free):
        return parts, list(counts), False
    return [{n: np.concatenate([part.pop(n) for part in parts]) for n in list(parts[0])}], [sum(counts)], True


def alike(arrays: list[Array]) -> bool:
    """Whether arrays differ along axis 0 at most."""
    return len({a.shape[1:] for a in arrays}) == 1 and all(a.ndim for a in arrays)


def covers(valid: Array | None, goal: Array) -> bool:
    """Whether a mask of sequences says which positions of a goal [batch, sequence, channels] count."""
    return valid is not None and goal.ndim == 3 and goal.shape[:2] == valid.shape


def _analysed(model: Model, samples: Samples, given: dict[str, Shape]) -> Analysis:
    """Analyse a model at the shapes of its samples: only the batch is dynamic there, and that only where it is free."""
    shapes = [{name: a.shape for name, a in batch.items()} for batch in samples.batches]
    if len({tuple((n, s[1:]) for n, s in found.items()) for found in shapes}) == 1:
        with suppress(ModelError, TraceError, UsageError):
            found = analyse(model, input_shapes=shapes[0])
            more = {n: (s[0] + 1, *s[1:]) if s else s for n, s in shapes[0].items()}
            found.vary(more if samples.free else None)
            return found
    return analyse(model, input_shapes=given)
