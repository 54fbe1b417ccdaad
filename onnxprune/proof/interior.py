"""Compare two models inside of their graphs: behind ops that jump, and where outputs say nothing.

An op that jumps (Round, QuantizeLinear, TopK, a comparison) turns a difference in the last bit into a whole
step, and all that follows differs, without anything being wrong. So a graph with such ops is compared piece
by piece: the pruned model gets, behind each jump, the value that the masked twin has there, less the channels
that were cut. Each piece is continuous and is compared up to rounding; equal pieces, one after the other,
make equal models. What a jump itself makes of its nearly equal input is compared too, where it acts on each
element: at most one element in a hundred may be one step off.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto

from onnxprune.files.bodies import is_joint
from onnxprune.graph.analysis import Analysis
from onnxprune.graph.coupling import Applied
from onnxprune.graph.kept import Kept
from onnxprune.graph.live import names_of, needed, remove
from onnxprune.model import Model
from onnxprune.ops import FLOATS, Node, Trait
from onnxprune.proof.branches import Choice
from onnxprune.proof.compare import STEP, Difference, compare, worst
from onnxprune.runtime.session import Feeds, Session, open_session

__all__ = ["Case", "compare_any", "inside", "pieces", "steps", "trouble"]

#: Tensors that are looked at first where the outputs say nothing; and how often both models are run in search of some
#: that say anything, each time for up to twice as many.
FIRST_SEARCHED, MOST_SEARCHES = 8, 8
#: Bytes of tensors inside of a model that are held at once, about; and the most parts (powers of two, so that few sets
#: of sessions are opened) into which they are dealt for that: each runs what is in front of it once more.
HELD, MOST_PARTS = 32_000_000, 8
#: Share of elements that a jump may put one step off.
MOST_FLIPPED = 0.01

_STEPS = frozenset({TensorProto.INT8, TensorProto.UINT8, TensorProto.INT16, TensorProto.UINT16})


@dataclass
class Case:
    """One input, what the twin gives on it, the sizes of the dynamic axes that it was drawn at, and which branches of
    Ifs both models take whatever the input says.
    """

    feeds: Feeds
    reference: dict[str, Any]
    sizes: Mapping[str, int] = field(default_factory=dict)
    choice: Choice = field(default_factory=dict)


def steps(nodes: Iterable[Node]) -> dict[str, float]:
    """Return by how much values of tensors may differ without anything being wrong, where that isn't relative to them.

    Parameters
    ----------
    nodes : iterable of Node
        Of a graph, in their order.

    Returns
    -------
    dict
        Tensor -> the step that its values are computed in; the others aren't there.
    """
    steps: dict[str, float] = {}
    for node in nodes:
        if node.op == "Sigmoid" or (node.moved and all(name in steps for name in node.moved)):
            steps |= dict.fromkeys(node.outputs, STEP)
    return steps


def compare_any(a: Any, b: Any, step: float = 0.0) -> Difference:
    """Compare outputs of any type: tensors, or sequences and maps of them; see `compare`.

    None stands for an optional output of an op that a runtime gives no value.
    """
    if a is None or b is None:
        return Difference(0.0 if a is b else np.inf, "without a value")
    if isinstance(a, np.ndarray):
        if a.dtype.kind in "OUS":
            return Difference(float(not np.array_equal(a, b)), "no numbers")
        return compare(a, b, step)
    if isinstance(a, dict) and isinstance(b, dict) and list(a) == list(b):
        return _all(a.values(), b.values())
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        return _all(a, b)
    return compare(np.asarray(a), np.asarray(b)) if np.isscalar(a) else Difference(np.inf)


def trouble(a: Any) -> int:
    """Return how little an output says: 0 if all of it is finite and varies."""
    void = compare_any(a, a).void
    if void in ("NaN", "nothing finite"):
        return 100
    infinite = isinstance(a, np.ndarray) and a.dtype.kind == "f" and not np.isfinite(a).all()
    return 10 * bool(void) + infinite


def _all(a: Any, b: Any) -> Difference:
    differences = [compare_any(x, y) for x, y in zip(a, b, strict=True)]
    return worst(differences) if differences else Difference(0.0, "empty")


class _Inside:
    """Names of tensors that both models have, and what the cut leaves of them."""

    def __init__(self, analysis: Analysis, kept: Kept, models: tuple[Model, Model]) -> None:
        self.analysis, self.kept = analysis, kept
        self.twin, self.pruned = models
        self.made = {o for n in self.pruned.proto.graph.node for o in n.output if o}
        self.types = analysis.tracer.types
        self.steps = steps(a.node for a in analysis.coupling.nodes)

    def compare(self, name: str, want: Mapping[str, Any], have: Mapping[str, Any]) -> Difference:
        """Compare one tensor on one input."""
        return compare_any(want[name], have[name], self.steps.get(name, 0.0))

    def at(self, names: Sequence[str], cases: Iterable[Case], prepack: bool) -> dict[str, Difference]:
        """Compare some tensors; the values of one input are gone before those of the next are there."""
        right, session = (open_session(m, names, prepack=prepack) for m in (self.twin, self.pruned))

        def looked(case: Case) -> list[Difference]:
            want = self.kept.take(right.run(case.feeds, names))
            have = session.run(self.kept.take(case.feeds), names)
            return [self.compare(n, want, have) for n in names]

        return {n: worst(ds) for n, *ds in zip(names, *map(looked, cases), strict=True)}

    def size(self, name: str) -> int:
        """Return about how many bytes a tensor has at the sizes of the analysis."""
        elem, shape = self.types.get(name, (0, None))
        return (4 if elem in FLOATS else 1) * math.prod(s for s in shape or () if isinstance(s, int))

    def together(self, cases: Iterable[Case], names: Sequence[str]) -> dict[int, list[Case]]:
        """Put inputs together by the number of parts in which these tensors are to be held."""
        graph = self.analysis.model.proto.graph
        whole = any(is_joint(node) for node in graph.node)  # bodies are run as a whole
        here = sum(math.prod(self.types[v.name][1] or ()) for v in graph.input if v.name in self.types)
        size = sum(map(self.size, names)) / max(1, here)
        found: dict[int, list[Case]] = {}
        for case in cases:
            elements = sum(np.size(a) for a in case.feeds.values())
            number = 1
            while not whole and number < min(MOST_PARTS, len(names)) and size * elements > HELD * number:
                number *= 2
            found.setdefault(number, []).append(case)
        return found

    def parts(self, names: Sequence[str], number: int) -> list[list[str]]:
        """Deal tensors, in their order, into so many parts of about as many bytes each."""
        parts: list[list[str]] = [[] for _ in range(number)]
        sizes = [self.size(n) + 1 for n in names]
        before = 0
        for name, size in zip(names, sizes, strict=True):
            parts[before * number // sum(sizes)].append(name)
            before += size
        return parts

    def silent(self, said: Collection[str]) -> tuple[list[str], list[str]]:
        """Follow the outputs back to what says something.

        Returns
        -------
        list of str
            The first tensors on each way that are in ``said``: where they are equal, all in front of them is.
        list of str
            Those behind them that can be compared, the last ones first.
        """
        open_ = {v.name for v in self.analysis.model.proto.graph.output if v.name not in self.kept.gone}
        first: list[str] = []
        behind: list[str] = []
        for applied in reversed(self.analysis.coupling.nodes):
            made = [o for o in applied.node.outputs if o in open_]
            left = [o for o in made if o not in said]
            first += [o for o in made if o in said]
            behind += [o for o in left if self.shared(o) and self.types.get(o, (0, None))[0] in FLOATS]
            if left and Trait.SIZE not in applied.node.traits:
                open_.update(applied.node.inputs)
        return first, behind

    def some(self, names: Sequence[str], most: int) -> Sequence[str]:
        """Return the first of some tensors, fewer than ``most`` where they are large."""
        end = held = 0
        while end < min(len(names), most) and (held <= HELD or end < FIRST_SEARCHED):
            held += self.size(names[end])
            end += 1
        return names[:end]

    def shared(self, name: str) -> bool:
        """Whether both models compute a tensor and its axes are known."""
        known = name in self.analysis.coupling.dims and name not in self.analysis.tracer.weights
        return known and name in self.made


def inside(
    analysis: Analysis, kept: Kept, models: tuple[Model, Model], cases: Sequence[Case], prepack: bool
) -> dict[str, Difference]:
    """Compare the last float tensors of a graph that say something, on each way to its outputs, which say nothing.

    Behind a threshold that nothing passes all tensors are empty, however many there are. What is in front of a tensor
    that says something isn't compared: a lossless rewrite, or a norm of which channels are cut, may change that (the
    mean of squares), and what differs by a fault differs behind as well.

    Parameters
    ----------
    analysis : Analysis
    kept : Kept
    models : (Model, Model)
        The masked twin and the pruned model.
    cases : sequence of Case
    prepack : bool
        See `onnxprune.runtime.session.open_session`.

    Returns
    -------
    dict
        Tensor -> difference.
    """
    look = _Inside(analysis, kept, models)
    found: dict[str, Difference] = {}
    seen = set[str]()
    for search in range(MOST_SEARCHES):
        names = [n for n in look.silent(found)[1] if n not in seen]
        if not names:
            break
        part = look.some(names, FIRST_SEARCHED << search)
        seen.update(part)
        found |= {n: d for n, d in look.at(part, cases, prepack).items() if not d.void}
    return {n: found[n] for n in look.silent(found)[0]}


def _jumps(look: _Inside) -> Iterator[tuple[Applied, str]]:
    """Yield the nodes that jump, and how: "step" on each element, or "choice" between elements."""
    for applied in look.analysis.coupling.nodes:
        node = applied.node
        outputs = [o for o in node.outputs if o]
        # shape arithmetic is known before the model runs, and doesn't jump
        plain = Trait.SIZE in node.traits or node.op in ("Constant", "ConstantOfShape")
        if plain or all(o in look.analysis.tracer.values for o in outputs):
            continue
        if not outputs or not all(look.shared(o) for o in outputs):
            continue
        weights = look.analysis.tracer.weights
        read = {look.types.get(n, (0, None))[0] for n in node.inputs if n and n not in weights}
        made = {look.types.get(o, (0, None))[0] for o in outputs}
        if node.traits & (Trait.CHOICE | Trait.RANDOM):
            yield applied, "choice"
            continue
        requantises = node.op.startswith("QLinear") and made & _STEPS
        if Trait.JUMP in node.traits or requantises or (read & FLOATS and made - FLOATS):
            yield applied, "step"


def pieces(
    analysis: Analysis,
    kept: Kept,
    models: tuple[Model, Model],
    cases: Sequence[Case],
    prepack: bool,
    also: Iterable[str] = (),
) -> dict[str, Difference]:
    """Compare two models piece by piece between the ops that jump.

    Parameters and result are those of `inside`, ``also`` names tensors to be compared besides; empty where
    nothing jumps. A difference of elements that a jump put one step off counts as none. Inputs whose tensors inside
    would take much memory are compared in several parts, of which each runs what it needs of both models.
    """
    look = _Inside(analysis, kept, models)
    jumps = list(_jumps(look))
    if not jumps:
        return {}
    forced = {o: how for applied, how in jumps for o in applied.node.outputs if o}
    outputs = {v.name for v in analysis.model.proto.graph.output if v.name not in kept.gone}
    entries = {
        n for applied, _ in jumps for n in applied.node.inputs
        if look.shared(n) and look.types.get(n, (0, None))[0] in FLOATS
    }  # fmt: skip
    compared = (entries | outputs | set(also)) - forced.keys() | {
        n for n, how in forced.items() if how == "step"
    }
    places = {o: i for i, node in enumerate(look.pruned.proto.graph.node) for o in node.output}
    names = sorted(compared, key=lambda n: (places.get(n, -1), n))
    cut, own = _cut_at(look, forced)
    found: dict[str, list[Difference]] = {}
    for number, alike in look.together(cases, [*names, *forced]).items():
        for part in filter(None, look.parts(names, number)):
            mine = [own.get(n, n) for n in part]
            left = _leading_to(cut, mine) if number > 1 else cut
            given = [v.name for v in left.proto.graph.input if v.name in forced]
            wanted = [*dict.fromkeys([*part, *given])]
            right = _leading_to(look.twin, wanted) if number > 1 else look.twin
            sessions = [open_session(m, n, prepack=prepack) for m, n in ((right, wanted), (left, mine))]
            for case in alike:
                want = kept.take(_run(sessions[0], case.feeds, wanted))
                have = _run(sessions[1], {**kept.take(case.feeds), **{n: want[n] for n in given}}, mine)
                for n in part:
                    found.setdefault(n, []).append(
                        _stepped(want[n], have[own[n]]) if n in forced else look.compare(n, want, have)
                    )
                del want, have  # or they would be there beside those of the next case
    return {n: worst(differences) for n, differences in found.items()}


def _run(session: Session, feeds: Feeds, names: Sequence[str]) -> dict[str, Any]:
    """Run what may be a part of a model, which doesn't read all inputs."""
    return session.run({n: a for n, a in feeds.items() if n in session.shapes}, names)


def _leading_to(model: Model, names: Sequence[str]) -> Model:
    """Return the part of a model that some tensors need, without outputs of its own."""
    part = model.fork()
    graph = part.proto.graph
    del graph.output[:]
    used = needed(part, names)
    remove(part, names_of(part) - used)
    for i in reversed(range(len(graph.input))):
        if graph.input[i].name not in used:
            del graph.input[i]
    part.refresh()
    return part


def _cut_at(look: _Inside, forced: dict[str, str]) -> tuple[Model, dict[str, str]]:
    """Return the pruned model with these tensors as inputs, and the names under which it has its own."""
    model = look.pruned.fork()
    graph = model.proto.graph
    own = {name: f"onnxprune/own/{i}" for i, name in enumerate(forced)}
    for node in graph.node:
        for i, name in enumerate(node.output):
            if name in own:
                node.output[i] = own[name]
    for name in forced:
        graph.input.append(onnx.helper.make_tensor_value_info(name, look.types[name][0], None))
    for kind in (graph.output, graph.value_info):
        for i in reversed(range(len(kind))):
            if kind[i].name in own:
                del kind[i]
    return model, own


def _stepped(a: NDArray[Any], b: NDArray[Any]) -> Difference:
    """Compare what a jump makes of nearly equal inputs."""
    plain = compare(a, b)
    if plain.error == 0 or a.shape != b.shape or a.dtype != b.dtype or a.size == 0:
        return plain
    if a.dtype.kind == "f":
        far = ~np.isclose(a, b, rtol=1e-4, atol=1e-4 * float(np.abs(a).max()), equal_nan=True)
        whole = True
    else:
        far = a != b
        whole = a.dtype.kind == "b" or int(np.abs(a.astype(np.int64) - b.astype(np.int64)).max()) <= 1
    few = int(far.sum()) <= max(1, int(MOST_FLIPPED * a.size))
    return Difference(0.0 if few and whole else plain.error, plain.void)
