"""What layers are fitted to where it isn't what their own model gives: another model, of which that is a part.

A model without some residual branches is fitted to what the whole one gives. Both have tensors of the same names, and
each layer that stays finds there what it should give; only the positions of nodes differ. Where a tensor stands for
another of the whole model, that one bears its name in the aim.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from onnxprune.calibration.samples import Samples
from onnxprune.calibration.stream import Instead, Runs, stream_of
from onnxprune.graph.analysis import Analysis
from onnxprune.model import Model

__all__ = ["Aim", "renamed"]

Batch = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Aim:
    """Where layers are to get to.

    Attributes
    ----------
    analysis : Analysis
        Of the whole model, in which tensors are called as in its part (`renamed`).
    moved : frozenset of str
        Tensors of the part that are others than in the whole model: layers from there on are fitted.
    """

    analysis: Analysis
    moved: frozenset[str]

    def runs(self, samples: Samples, most_bytes: int) -> Runs:
        """Return the runs of the whole model, which go as far as what is wanted of them."""
        runs = stream_of(self.analysis.model, samples, self.analysis.types, most_bytes)
        made = {n: k for k, a in enumerate(self.analysis.coupling.nodes) for n in a.node.outputs}
        return _Elsewhere(runs, made)

    def first(self, part: Analysis) -> int:
        """Return the position in the part of the first node that reads or gives a tensor that moved."""
        for number, applied in enumerate(part.coupling.nodes):
            if self.moved.intersection((*applied.node.inputs, *applied.node.outputs)):
                return number
        return len(part.coupling.nodes)


def renamed(model: Model, stands: Mapping[str, str]) -> Model:
    """Return a model in which the tensors that stand for others swap their names with these.

    Parameters
    ----------
    model : Model
    stands : mapping
        Tensor -> the one that it stands for.
    """
    swap: dict[str, str] = {}
    for name, other in stands.items():
        if name not in swap and other not in swap:
            swap |= {name: other, other: name}
    fork = model.fork()
    graph = fork.proto.graph
    for node in graph.node:
        for names in (node.input, node.output):
            for slot, name in enumerate(names):
                if name in swap:
                    names[slot] = swap[name]
    for value in graph.value_info:
        value.name = swap.get(value.name, value.name)
    return fork


@dataclass
class _Elsewhere:
    """Runs of a model whose callers count nodes as in another.

    Attributes
    ----------
    runs : Runs
    made : dict
        Tensor -> position of its node in the model.
    """

    runs: Runs
    made: Mapping[str, int]
    reached: int = 0
    model: Model = field(init=False)

    def __post_init__(self) -> None:
        """Name the model that runs."""
        self.model = self.runs.model

    @property
    def keep(self) -> set[str]:
        """Tensors that are held, see `Runs`."""
        return self.runs.keep

    @keep.setter
    def keep(self, names: set[str]) -> None:
        self.runs.keep = names

    @property
    def instead(self) -> Instead:
        """What stands for nodes of the model, see `Runs`."""
        return self.runs.instead

    @instead.setter
    def instead(self, nodes: Instead) -> None:
        self.runs.instead = nodes

    def run(self, to: int, wanted: Sequence[str], *, stay: bool = False) -> Iterator[Batch]:
        """Run as far as the wanted tensors need, see `Runs.run`; ``to`` counts nodes of the part, and isn't asked."""
        ends = [self.made[name] + 1 for name in wanted if name in self.made]
        self.reached = max([self.reached, *ends])
        yield from self.runs.run(self.reached, wanted, stay=stay)

    def each(self, wanted: Sequence[str] | None = None, beside: Any = None) -> Iterator[Batch]:
        """Run the whole model, see `Runs.each`."""
        yield from self.runs.each(wanted, beside)

    def hidden(self) -> tuple[set[str], set[str]]:
        """See `Runs.hidden`."""
        return self.runs.hidden()

    def fork(self, model: Model) -> Runs:
        """See `Runs.fork`."""
        return self.runs.fork(model)
