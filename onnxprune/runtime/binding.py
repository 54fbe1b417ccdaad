"""Concrete sizes for the dynamic axes of a model's inputs.

Any sizes under which the graph's shapes agree will do: no axis of an input is ever cut. Sizes are tried in
turn, since a graph may demand a multiple of 32 or a window of 7; ``--input-shape`` says them where no guess
fits.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import onnx

from onnxprune.errors import UsageError

Shape: TypeAlias = tuple[int, ...]
Typed: TypeAlias = tuple[int, Shape | None]  # element type (0 unknown), shape (None unknown)

#: (batch, sizes of large axes such as height and width, sizes of other axes), tried in this order.
_GUESSES = (
    (2, 64, 12), (1, 64, 12), (2, 224, 16), (1, 224, 16), (1, 256, 64), (1, 192, 128), (1, 640, 256),
    (1, 16000, 100), (1, 1, 1),
)  # fmt: skip
#: A second binding, to tell sizes that follow the input from those that don't.
_OTHERS = (
    (3, 96, 20),
    (3, 128, 24),
    (2, 448, 32),
    (1, 96, 20),
    (1, 128, 24),
    (1, 320, 24),
    (3, 64, 12),
    (2, 64, 12),
)


def real_inputs(graph: onnx.GraphProto) -> list[onnx.ValueInfoProto]:
    """Return the inputs that are not initializers as well."""
    weights = {t.name for t in graph.initializer}
    return [v for v in graph.input if v.name not in weights]


def declared(value: onnx.ValueInfoProto) -> tuple[int | str, ...] | None:
    """Return an input's axes: a size, or a name for a dynamic one; None where even the rank is unknown."""
    tensor = value.type.tensor_type
    if not value.type.HasField("tensor_type") or not tensor.HasField("shape"):
        return None
    axes: list[int | str] = []
    for n, dim in enumerate(tensor.shape.dim):
        fixed = dim.HasField("dim_value") and dim.dim_value > 0
        axes.append(dim.dim_value if fixed else dim.dim_param or f"{value.name}.{n}")
    return tuple(axes)


def input_axes(graph: onnx.GraphProto) -> dict[str, tuple[int | str, ...] | None]:
    """Return the axes of all inputs, with those that are a total by their names as the sum that they stand for.

    ``total_sequence_length`` is ``past_sequence_length + sequence_length`` where inputs have axes of these names.
    """
    inputs = {v.name: declared(v) for v in real_inputs(graph)}
    plain = {a for axes in inputs.values() for a in axes or () if isinstance(a, str)}
    return {
        name: axes and tuple(_sum(a, plain) if isinstance(a, str) else a for a in axes)
        for name, axes in inputs.items()
    }


def _sum(axis: str, names: Collection[str]) -> str:
    """Return an axis's name, or past and new ones added where it says that it is their total."""
    past = axis.replace("total", "past", 1)
    rest = re.sub(r"total_?|_total", "", axis, count=1)
    return f"{past} + {rest}" if axis not in (past, rest) and {past, rest} <= set(names) else axis


def check_given(graph: onnx.GraphProto, given: Mapping[str, Shape]) -> None:
    """Refuse input shapes that the model contradicts.

    Raises
    ------
    UsageError
        If a name isn't an input, or a rank or a fixed size differs.
    """
    inputs = {v.name: declared(v) for v in real_inputs(graph)}
    for name, shape in given.items():
        if name not in inputs:
            raise UsageError(
                f"--input-shape names '{name}', which isn't an input of the model; "
                f"its inputs are {', '.join(inputs)}."
            )
        axes = inputs[name]
        fits = axes is None or (
            len(axes) == len(shape)
            and all(isinstance(a, str) or a == s for a, s in zip(axes, shape, strict=True))
        )
        if any(s < 1 for s in shape):
            raise UsageError(
                f"--input-shape {name}:{','.join(map(str, shape))} has a size below 1; give sizes of at least 1, and "
                "inputs with an empty axis with --inputs."
            )
        if not fits:
            text = ",".join(map(str, axes or ()))
            raise UsageError(
                f"--input-shape {name}:{','.join(map(str, shape))} contradicts the model, whose input "
                f"'{name}' has the shape ({text}): give a size for each dynamic axis and leave the fixed ones "
                "as they are."
            )


def bindings(
    graph: onnx.GraphProto, given: Mapping[str, Shape], *, other: bool = False
) -> Iterator[dict[str, Shape]]:
    """Yield shapes for all inputs, the likeliest first; one only where no axis is dynamic.

    Parameters
    ----------
    graph : GraphProto
    given : mapping
        Shapes that the user says.
    other : bool
        Yield sizes that differ from those of the first round.
    """
    inputs = input_axes(graph)
    open_ = [axes for name, axes in inputs.items() if name not in given]
    if all(axes is not None and all(isinstance(a, int) for a in axes) for axes in open_):
        yield {n: given.get(n) or tuple(int(a) for a in axes or ()) for n, axes in inputs.items()}
        return
    fixed = _said(inputs, given)
    dynamic = {a for axes in inputs.values() for a in axes or () if isinstance(a, str)}
    for guess in _OTHERS if other else _GUESSES:
        sizes = dict(fixed)
        for name, axes in inputs.items():  # what is calculated waits for what it is calculated from
            if name not in given and axes is not None:
                late = tuple(1 if isinstance(a, str) and terms(a) & dynamic else a for a in axes)
                _shape(late, sizes, guess)
        yield {n: given.get(n) or _shape(axes, sizes, guess) for n, axes in inputs.items()}


def others(graph: onnx.GraphProto, given: Mapping[str, Shape]) -> Iterator[dict[str, Shape]]:
    """Yield shapes in which every dynamic axis has another size, also where the user said one.

    What the user says are sizes to work with; that doesn't make an axis fixed.
    """
    inputs = input_axes(graph)
    for smaller in (True, False) if given else ():
        resized = {}
        for name, shape in given.items():
            axes = inputs[name] or ("",) * len(shape)
            resized[name] = tuple(
                size
                if isinstance(axis, int)
                else size // 2
                if smaller and size > 3
                else size + (1 if smaller else size)
                for axis, size in zip(axes, shape, strict=True)
            )
        yield from bindings(graph, resized, other=True)
    yield from bindings(graph, {}, other=True)


def option(inputs: Mapping[str, Shape], graph: onnx.GraphProto) -> str:
    """Return shapes as options of the command line: of the inputs that have a dynamic axis."""
    axes = input_axes(graph)
    open_ = [n for n in inputs if (a := axes.get(n)) is None or any(isinstance(s, str) for s in a)]
    return " ".join(f"--input-shape {name}:{','.join(map(str, inputs[name]))}" for name in open_)


def is_dynamic(graph: onnx.GraphProto, given: Mapping[str, Shape]) -> bool:
    """Whether any input axis has no size of its own."""
    return any(
        axes is None or any(isinstance(a, str) for a in axes)
        for v in real_inputs(graph) if v.name not in given for axes in (declared(v),)
    )  # fmt: skip


def _said(inputs: Mapping[str, tuple[int | str, ...] | None], given: Mapping[str, Shape]) -> dict[str, int]:
    """Sizes of named axes that the given shapes fix for other inputs too."""
    return {
        axis: size
        for name, shape in given.items()
        for axis, size in zip(inputs[name] or (), shape, strict=False)
        if isinstance(axis, str)
    }


_BATCH = re.compile(r"batch|^n$|^b$|^N$|^bs$|unk__|DynamicDimension\.0$", re.IGNORECASE)


def _shape(axes: tuple[int | str, ...] | None, sizes: dict[str, int], guess: tuple[int, int, int]) -> Shape:
    batch, large, small = guess
    shape = []
    for n, axis in enumerate(axes or ()):
        if isinstance(axis, int):
            shape.append(axis)
            continue
        if axis not in sizes:
            total = _value(axis, sizes)
            first = _is_batch(axis, n, len(axes or ()))
            sizes[axis] = (
                total if total is not None else batch if first else large if len(axes or ()) >= 4 else small
            )
        shape.append(sizes[axis])
    return tuple(shape)


def _is_batch(axis: str, place: int, rank: int) -> bool:
    return bool(_BATCH.search(axis)) or (place == 0 and rank > 1)


def _value(axis: str, sizes: Mapping[str, int]) -> int | None:
    """Value of an axis named like ``past_length + 1`` or ``2*(s0 - 1)``, where its terms are known."""
    names = terms(axis)
    if not names or any(name not in sizes for name in names):
        return None
    tree = _arithmetic(axis)
    if tree is not None:
        return _evaluated(tree, sizes)
    return sum(int(t) if t.isdigit() else sizes[t] for t in _summands(axis))


def terms(axis: str) -> frozenset[str]:
    """Return the names that an axis is calculated from; none where it is a plain name.

    Examples
    --------
    >>> sorted(terms("past + sequence")), sorted(terms("batch"))
    (['past', 'sequence'], [])
    """
    if not re.search(r"[-+*/]", axis):
        return frozenset()
    tree = _arithmetic(axis)
    if tree is not None:
        return frozenset(node.id for node in ast.walk(tree) if isinstance(node, ast.Name))
    return frozenset(t for t in _summands(axis) if not t.isdigit()) if "+" in axis else frozenset()


def _summands(axis: str) -> list[str]:
    return [term.strip(" ()") for term in axis.split("+")]


def _arithmetic(axis: str) -> ast.expr | None:
    """Return an axis's name as arithmetic on names and integers, None where it is something else."""
    try:
        tree = ast.parse(axis.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    return tree if all(isinstance(node, _ARITHMETIC) for node in ast.walk(tree)) else None


_ARITHMETIC = (
    ast.BinOp, ast.Add, ast.Sub, ast.Mult, ast.FloorDiv, ast.Div, ast.Name, ast.Load, ast.Constant,
)  # fmt: skip


def _evaluated(tree: ast.expr, sizes: Mapping[str, int]) -> int | None:
    if isinstance(tree, ast.Name):
        return sizes[tree.id]
    if isinstance(tree, ast.Constant):
        return tree.value if type(tree.value) is int else None
    assert isinstance(tree, ast.BinOp)
    left, right = _evaluated(tree.left, sizes), _evaluated(tree.right, sizes)
    if left is None or right is None:
        return None
    match tree.op:
        case ast.Add():
            return left + right
        case ast.Sub():
            return left - right
        case ast.Mult():
            return left * right
    return left // right if right else None


@dataclass
class Axes:
    """The dynamic axes of a model's inputs, by name.

    Attributes
    ----------
    axes_of : dict
        Input -> its axes: a size where it is fixed, else the name of the axis, or what it is calculated from.
    sizes : dict
        Name -> the size that it is bound to.
    batch : set of str
        The names that are a batch, as far as a name can tell.
    """

    axes_of: dict[str, tuple[int | str, ...]]
    sizes: dict[str, int] = field(default_factory=dict)
    batch: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, graph: onnx.GraphProto, inputs: Mapping[str, Shape]) -> Axes:
        """Name the dynamic axes of a graph whose inputs are bound to these shapes.

        An axis whose name has another size at another place gets a name of its own: its input's, and its number.
        """
        named = {name: axes for name, axes in input_axes(graph).items() if name in inputs}
        axes_of = {n: axes if axes is not None else tuple(f"{n}.{i}" for i in range(len(inputs[n])))
                  for n, axes in named.items()}  # fmt: skip
        every = [
            (name, at, axis, inputs[name][at])
            for name, axes in axes_of.items()
            for at, axis in enumerate(axes)
            if isinstance(axis, str)
        ]
        plain = {axis: size for _, _, axis, size in every}
        clash = {axis for _, _, axis, size in every if plain[axis] != size}
        dynamic = cls({})
        for name, at, axis, size in every:
            if axis in clash or (_value(axis, plain) not in (None, size)):
                axes = axes_of[name]
                axes_of[name] = (*axes[:at], f"{name}.{at}", *axes[at + 1 :])
        dynamic.axes_of = axes_of
        for name, axes in axes_of.items():
            named_batch = any(isinstance(a, str) and _BATCH.search(a) for a in axes)
            for at, own in enumerate(axes):
                if isinstance(own, str) and _value(own, plain) is None:
                    dynamic.sizes[own] = inputs[name][at]
                    if _BATCH.search(own) if named_batch else _is_batch(own, at, len(axes)):
                        dynamic.batch.add(own)
        return dynamic

    def shapes(self, sizes: Mapping[str, int]) -> dict[str, Shape] | None:
        """Return the shapes of the inputs under these sizes; None where a calculated axis would be negative."""
        shapes = {}
        for name, axes in self.axes_of.items():
            shape = [a if isinstance(a, int) else sizes[a] if a in sizes else _value(a, sizes) for a in axes]
            if any(size is None or size < 0 for size in shape):
                return None
            shapes[name] = tuple(int(size or 0) for size in shape)
        return shapes
