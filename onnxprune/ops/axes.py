"""Axis arithmetic that several rows share: broadcasting, regrouping, reading and writing text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache, lru_cache
from itertools import pairwise
from string import ascii_lowercase

from onnxprune.ops.base import Shape

__all__ = ["broadcast", "join", "mark", "names", "onto", "quant", "regroup", "text"]


@cache
def names(count: int, prefix: str = "") -> tuple[str, ...]:
    """Return ``count`` different letters: a, b, c, ... or prefix0, prefix1, ..."""
    if not prefix and count <= 26:
        return tuple(ascii_lowercase[:count])
    return tuple(f"{prefix or 'x'}{i}" for i in range(count))


def text(axes: Iterable[str]) -> str:
    """Write one operand."""
    return " ".join(axes) or "()"


def join(inputs: Iterable[str], outputs: Iterable[str]) -> str:
    """Write a signature."""
    return ", ".join(inputs) + " -> " + ", ".join(outputs)


def mark(axes: Iterable[str], at: Iterable[int], sign: str = "!") -> list[str]:
    """Put a mark on the letters at some positions."""
    places = set(at)
    return [axis + sign if i in places and axis != "1" else axis for i, axis in enumerate(axes)]


def onto(shape: Shape, whole: Shape, letters: Sequence[str]) -> list[str]:
    """Return the axes of an operand that numpy broadcasts to ``whole``: a letter where the sizes agree, else ``1``.

    Raises
    ------
    ValueError
        If it doesn't broadcast to it.
    """
    skip = len(whole) - len(shape)
    if skip < 0 or any(size not in (1, wide) for size, wide in zip(shape, whole[skip:], strict=False)):
        raise ValueError(f"a shape {list(shape)} is broadcast to {list(whole)}")
    axes = zip(letters[skip:], shape, whole[skip:], strict=True)
    return [name if size == wide != 1 else "1" for name, size, wide in axes]


@lru_cache(maxsize=4096)
def broadcast(shapes: tuple[Shape | None, ...], prefix: str = "") -> tuple[tuple[str, ...], ...]:
    """Tie axes as numpy broadcasts them, from the right; the last entry of the result is the output.

    An axis of length 1 is ``1``. None stands for an absent operand.

    Raises
    ------
    ValueError
        If the shapes don't broadcast.

    Examples
    --------
    >>> broadcast(((2, 3, 4), (3, 1), ()))
    (('a', 'b', 'c'), ('b', '1'), (), ('a', 'b', 'c'))
    """
    rank = max((len(shape) for shape in shapes if shape is not None), default=0)
    sizes = [1] * rank
    for shape in shapes:
        for i, size in enumerate(reversed(shape or ())):
            old = sizes[-1 - i]
            if size != 1 and old not in (1, size):
                raise ValueError(f"shapes {list(shapes)} don't broadcast")
            sizes[-1 - i] = size if old == 1 else old
    letters = tuple("1" if size == 1 else name for size, name in zip(sizes, names(rank, prefix), strict=True))

    def axes(shape: Shape | None) -> tuple[str, ...]:
        own = letters[rank - len(shape) :] if shape else ()
        return tuple("1" if size == 1 else name for size, name in zip(shape or (), own, strict=True))

    return (*(axes(shape) for shape in shapes), letters)


@lru_cache(maxsize=4096)
def regroup(
    old: Shape, new: Shape
) -> tuple[tuple[str, ...], tuple[str, ...], tuple[tuple[str, int], ...], frozenset[str]]:
    """Describe a reshape in atoms.

    Both shapes are cut into segments of equal product; where the running products inside a segment divide each
    other, the segment's atoms are their quotients, and an axis is a product of consecutive atoms.

    Returns
    -------
    axes of the old shape, axes of the new shape, sizes of the atoms, atoms that are locked because their segment
    has no common factors (for them, cuts of one shape are no cuts of the other).

    Raises
    ------
    ValueError
        If the two shapes don't hold the same number of elements.

    Examples
    --------
    >>> regroup((2, 7, 12), (2, 7, 3, 4))[:2]
    (('a', 'b', '(c d)'), ('a', 'b', 'c', 'd'))
    """
    left: list[list[str]] = [[] for _ in old]
    right: list[list[str]] = [[] for _ in new]
    sizes: list[tuple[str, int]] = []
    locked: set[str] = set()
    if 0 in old or 0 in new:
        return (
            tuple(f"a{i}!" for i in range(len(old))),
            tuple(f"b{i}!" for i in range(len(new))),
            (),
            frozenset(),
        )

    def atom(size: int, lock: bool = False) -> str:
        name = ascii_lowercase[len(sizes)] if len(sizes) < 26 else f"x{len(sizes)}"
        sizes.append((name, size))
        if lock:
            locked.add(name)
        return name + "!" * lock

    for olds, news in _segments(old, new):
        if len(olds) == 1 and len(news) == 1:
            name = atom(old[olds[0]])
            left[olds[0]].append(name)
            right[news[0]].append(name)
            continue
        ends = sorted(set(_running([old[i] for i in olds])) | set(_running([new[i] for i in news])))
        if any(large % small for small, large in pairwise(ends)):
            for axes, shape, side in ((olds, old, left), (news, new, right)):
                for i in axes:
                    side[i].append(atom(shape[i], lock=True))
            continue
        # running products from the left: atom i is ends[i] / ends[i - 1]
        atoms = [atom(large // small) for small, large in zip([1, *ends], ends, strict=False)]
        for axes, shape, side in ((olds, old, left), (news, new, right)):
            at = 0
            for i, end in zip(axes, _running([shape[i] for i in axes]), strict=True):
                stop = ends.index(end) + 1
                side[i].extend(atoms[at:stop])
                at = stop
    return _axes(left), _axes(right), tuple(sizes), frozenset(locked)


def _axes(factors: Sequence[Sequence[str]]) -> tuple[str, ...]:
    return tuple("1" if not f else f[0] if len(f) == 1 else f"({' '.join(f)})" for f in factors)


def _running(sizes: Iterable[int]) -> list[int]:
    product, products = 1, []
    for size in sizes:
        product *= size
        products.append(product)
    return products


def _segments(old: Shape, new: Shape) -> list[tuple[list[int], list[int]]]:
    """Cut both shapes, their axes of length 1 left out, at every common running product."""
    olds = [i for i, size in enumerate(old) if size != 1]
    news = [i for i, size in enumerate(new) if size != 1]
    segments: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(olds) and j < len(news):
        a, b, i0, j0 = old[olds[i]], new[news[j]], i, j
        while a != b:
            if a < b:
                i += 1
                if i == len(olds):
                    break
                a *= old[olds[i]]
            else:
                j += 1
                if j == len(news):
                    break
                b *= new[news[j]]
        if a != b:
            break
        i, j = i + 1, j + 1
        segments.append((olds[i0:i], news[j0:j]))
    if i < len(olds) or j < len(news):
        raise ValueError(f"{list(old)} can't be reshaped to {list(new)}")
    return segments


def quant(shape: Shape | None, size: int, letter: str, what: str) -> str:
    """Write a scale or zero point: one for the whole tensor, or one for each index of ``letter``.

    Raises
    ------
    ValueError
        If it is neither.
    """
    if shape is None or shape == ():
        return "()"
    if shape == (1,):
        return "1"
    if shape == (size,):
        return letter
    raise ValueError(f"{what} of shape {list(shape)} for an axis of length {size}")
