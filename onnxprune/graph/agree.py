"""Whether the shapes of a graph agree under some sizes of its inputs, as strictly as a runtime takes it.

ONNX's inference lets pass what no runtime runs: a Reshape into a shape of other elements, a convolution of other
channels than its kernel's, positions beyond the end of a table. What is seen here of a node that doesn't fit, the
sizes that ought to be equal, is what a search for better sizes goes by.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from math import log, prod

from onnx import NodeProto

from onnxprune.files.protowalk import subgraphs
from onnxprune.graph.trace import TraceError, Tracer
from onnxprune.ops import Node, Refusal, Trait, lookup
from onnxprune.ops.resolve import Misfit, fit
from onnxprune.runtime.binding import Shape

__all__ = ["Agreement", "walk"]

Pair = tuple[int, int]


@dataclass
class Agreement:
    """How far the shapes of a graph agree.

    Attributes
    ----------
    passed : int
        Nodes before the first that doesn't fit.
    whole : bool
        Whether all of them do.
    sure : bool
        Whether a run is not needed: each node is of ONNX itself, without a body, and was held against its row.
    why : str
        What is wrong with the node that doesn't fit.
    hard : bool
        Whether no runtime can run it.
    pairs : list of (int, int)
        Sizes of that node that ought to be equal; the first pair is the likeliest.
    target : tuple of int
        The shape that it asks for, where it does.
    shapes : list of shapes
        Of its inputs.
    trace : (Tracer, list of Node) or None
        Where all nodes fit: what knows their types, and what rules may see of each.
    """

    passed: int
    whole: bool = False
    sure: bool = True
    why: str = ""
    hard: bool = True
    pairs: list[Pair] = field(default_factory=list)
    target: Shape = ()
    shapes: list[Shape] = field(default_factory=list)
    trace: tuple[Tracer, list[Node]] | None = field(default=None, repr=False)
    own: TraceError | None = None

    @property
    def error(self) -> TraceError | None:
        """What is wrong, as an error; None where nothing is."""
        return self.own or (TraceError(self.why) if self.why else None)

    @property
    def gap(self) -> float:
        """How far the sizes that ought to be equal are apart: the sum of their ratios' logarithms."""
        return sum(abs(log(max(a, 1) / max(b, 1))) for a, b in self.pairs)


def walk(tracer: Tracer, nodes: Sequence[NodeProto], ignored: Collection[int] = ()) -> Agreement:
    """Trace the nodes one by one, up to the first that doesn't fit.

    Parameters
    ----------
    tracer : Tracer
        Knows the shapes of the inputs.
    nodes : sequence of NodeProto
        In topological order.
    ignored : collection of int
        Nodes that needn't fit their row.
    """
    sure, visited = True, list[Node]()
    for number, proto in enumerate(nodes):
        try:
            node = tracer.visit(proto)
        except TraceError as error:
            shapes = [s for n in proto.input if n and (s := tracer.types.get(n, (0, None))[1]) is not None]
            target = tuple(int(v) for n in proto.input[1:2] if n in tracer.values
                           for v in tracer.values[n].ravel()[:8] if tracer.values[n].dtype.kind in "iu")  # fmt: skip
            pairs = list(_apart(proto.op_type, shapes, target))
            return Agreement(number, False, sure, str(error), True, pairs, target, shapes, own=error)
        mismatch = _wrong(node) or (None if number in ignored else _misfit(node))
        if mismatch is not None:
            mismatch.passed, mismatch.sure = number, sure
            mismatch.shapes = [s for s in node.shapes if s is not None]
            return mismatch
        visited.append(node)
        known = not node.domain and not any(True for _ in subgraphs(proto))
        sure &= known and not isinstance(lookup(node), Refusal)
    return Agreement(len(nodes), True, sure, trace=(tracer, visited))


def _wrong(node: Node) -> Agreement | None:
    """Return what no runtime runs."""
    title = f"{node.op} '{node.name}'"
    first = node.shapes[0] if node.shapes else None
    if first is None:
        return None
    out = node.out_shapes[0] if node.out_shapes else None
    if node.op == "Reshape" and out is not None and prod(first) != prod(out):
        why = f"{title} would make {out} of {first}"
        return Agreement(0, why=why, pairs=[(prod(first), prod(out))], target=out)
    if node.op == "Gather" and node.values[1] is not None and node.values[1].size and first:
        size, last = first[node.attrs.get("axis", 0)], int(node.values[1].max())
        if last >= size:
            return Agreement(0, why=f"{title} would read place {last} of {size}", pairs=[(last + 1, size)])
    if node.op == "STFT":
        window = next((s[0] for s in node.shapes[2:3] if s), None)
        if window is None and len(node.values) > 3 and node.values[3] is not None:
            window = int(node.values[3])
        if window is not None and len(first) > 1 and window > first[1]:
            why = f"{title} has a window of {window} for a signal of {first[1]}"
            return Agreement(0, why=why, pairs=[(first[1], window)])
    if node.op == "GroupQueryAttention" and node.attrs.get("sliding_window_cache"):
        window, cache = int(node.attrs.get("local_window_size", -1)), node.shapes[3] or ()
        if len(cache) > 2 and cache[2] < window:
            why = f"{title} has a window of {window} for a cache of {cache[2]} positions"
            more = _misfit(node)  # a step toward either is one ahead
            return Agreement(0, why=why, pairs=[(cache[2], window), *(more.pairs if more else [])])
    kernel = node.attrs.get("kernel_shape")
    if Trait.WINDOW in node.traits and kernel:
        small = _too_small(node, first, kernel)
        if small or out is None or any(s < 1 for s in out):
            pairs = small or [(size, k) for size, k in zip(first[2:], kernel, strict=False) if size < k]
            why = f"{title} has a kernel larger than its input {first}"
            return Agreement(0, why=why, pairs=pairs) if pairs else None
    return None


def _too_small(node: Node, first: Shape, kernel: Sequence[int]) -> list[Pair]:
    """Return the axes along which a padded input is shorter than the kernel; to inference these give one."""
    row = lookup(node)
    kernels = (
        not isinstance(row, Refusal) and "weight" in row.roles
    )  # pools, without one, take shorter inputs
    if not kernels or node.attrs.get("auto_pad", "NOTSET") != "NOTSET":
        return []
    rank = len(kernel)
    pads, steps = node.attrs.get("pads") or [0] * 2 * rank, node.attrs.get("dilations") or [1] * rank
    sizes = [size + pads[n] + pads[n + rank] for n, size in enumerate(first[2 : 2 + rank])]
    reach = [(k - 1) * step + 1 for k, step in zip(kernel, steps, strict=True)]
    return [(s, r) for s, r in zip(sizes, reach, strict=False) if s < r]


def _misfit(node: Node) -> Agreement | None:
    """Return what contradicts the op's row."""
    row = lookup(node)
    if isinstance(row, Refusal) or any(node.has(n) and s is None for n, s in enumerate(node.shapes)):
        return None
    try:
        fit(row, node)
    except Misfit as error:
        if error.pair is None:
            return None
        return Agreement(0, why=f"{node.op} '{node.name}': {error}", hard=False, pairs=[error.pair])
    return None


def _apart(op: str, shapes: Sequence[Shape], target: Shape) -> Iterator[Pair]:
    """Yield the sizes of a node's inputs that should be equal, as far as its kind tells."""
    if op == "Reshape" and shapes and target:
        known = prod(v for v in target if v > 0)
        if -1 not in target:
            yield prod(shapes[0]), known
        else:
            yield prod(shapes[0]), max(prod(shapes[0]) // max(known, 1), 1) * known
        return
    if op in ("MatMul", "Gemm") and len(shapes) > 1 and shapes[0] and len(shapes[1]) > 1:
        if shapes[0][-1] != shapes[1][-2]:
            yield shapes[0][-1], shapes[1][-2]
            return
        shapes = [s[:-2] for s in shapes]
    if op == "Expand" and shapes:
        shapes = [shapes[0], target]
    for other in shapes[1:]:
        for a, b in zip_longest(reversed(shapes[0]), reversed(other), fillvalue=1):
            if a != b and (op == "Concat" or 1 not in (a, b)):
                yield a, b
