"""The notation of a row: which axes of an op are the same channels.

A signature lists operands, inputs ``->`` outputs, separated by commas; an operand lists its axes::

    n (g i) *s!, (g o) i *k!, (g o)? -> n (g o) *t!

=============  ====================================================================================
``c``          a letter: equal letters are the same channels; in no output: it is contracted
``1``          a unit axis (broadcast or kept by a reduction): never cut, ties nothing
``(g i)``      a composite axis, row-major: ``g`` is the outer factor
``(a + b)``    a concatenation; each part is a letter or a composite: ``(h d + h d + h v)``
``*s``         any number of axes, tied axis by axis with every other ``*s``
``c!`` ``*s!``  hard lock: cutting would change other elements than those cut
``c~``         soft lock: cutting changes an average or a maximum (the width of a LayerNorm)
``c^``         this slot contracts ``c`` although ``c`` is in an output (recurrent weights)
``()``         an operand without axes, a scalar; so is nothing between two commas
``... ?``      after a whole operand: an optional input
=============  ====================================================================================

A lock on one slot of a letter locks the letter everywhere in the row.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import TypeAlias

__all__ = [
    "Axis", "Letter", "NotationError", "Operand", "Parsed", "Product", "Star", "Sum", "Unit", "letters_of", "parse",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Letter:
    """A named axis. ``lock`` is ``""``, ``"!"`` (hard) or ``"~"`` (soft); ``contract`` is the mark ``^``."""

    name: str
    lock: str = ""
    contract: bool = False


@dataclass(frozen=True, slots=True)
class Unit:
    """An axis of length 1 that stands for no channel."""


@dataclass(frozen=True, slots=True)
class Star:
    """Any number of axes."""

    name: str
    lock: str = ""


@dataclass(frozen=True, slots=True)
class Product:
    """A composite axis, row-major: the first factor is the outermost."""

    factors: tuple[Axis, ...]


@dataclass(frozen=True, slots=True)
class Sum:
    """An axis that is the concatenation of its parts."""

    parts: tuple[Axis, ...]


Axis: TypeAlias = Letter | Unit | Star | Product | Sum


@dataclass(frozen=True, slots=True)
class Operand:
    """The axes of one input or output."""

    axes: tuple[Axis, ...]
    optional: bool = False

    def expand(self, rank: int) -> tuple[Axis, ...]:
        """Return one axis for each of ``rank`` dimensions: ``*s`` becomes the letters ``s.0``, ``s.1``, ...

        Raises
        ------
        ValueError
            If no length of the star gives ``rank`` axes.
        """
        at = next((i for i, axis in enumerate(self.axes) if isinstance(axis, Star)), None)
        if at is None:
            if rank != len(self.axes):
                raise ValueError(f"a tensor of rank {rank} where the row has {len(self.axes)} axes")
            return self.axes
        length = rank - len(self.axes) + 1
        if length < 0:
            raise ValueError(f"a tensor of rank {rank} where the row has at least {len(self.axes) - 1} axes")
        star = self.axes[at]
        assert isinstance(star, Star)
        middle = tuple(Letter(f"{star.name}.{i}", star.lock) for i in range(length))
        return self.axes[:at] + middle + self.axes[at + 1 :]


@dataclass(frozen=True, slots=True)
class Parsed:
    """A parsed signature."""

    inputs: tuple[Operand, ...]
    outputs: tuple[Operand, ...]


class NotationError(ValueError):
    """The text of a row does not follow the notation. The message shows the text and points at the place."""

    text: str
    position: int
    expected: str

    def __init__(self, text: str, position: int, expected: str) -> None:
        super().__init__(f"{text}\n{' ' * position}^ expected {expected}")
        self.text, self.position, self.expected = text, position, expected


_TOKEN = re.compile(r"->|[A-Za-z_][A-Za-z0-9_]*|1(?![A-Za-z0-9_])|[*()+!~^?,]")


def _tokens(text: str) -> list[tuple[str, int]]:
    tokens: list[tuple[str, int]] = []
    position = 0
    while position < len(text):
        if text[position].isspace():
            position += 1
            continue
        match = _TOKEN.match(text, position)
        if match is None:
            raise NotationError(text, position, "a letter, 1, *, (, ), +, !, ~, ^, ?, a comma or ->")
        tokens.append((match.group(), position))
        position = match.end()
    tokens.append(("", len(text)))
    return tokens


class _Parser:
    """Recursive descent over the tokens of one signature."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens = _tokens(text)
        self.at = 0

    @property
    def token(self) -> str:
        return self.tokens[self.at][0]

    def fail(self, expected: str) -> NotationError:
        return NotationError(self.text, self.tokens[self.at][1], expected)

    def accept(self, token: str) -> bool:
        if self.token != token:
            return False
        self.at += 1
        return True

    def signature(self) -> Parsed:
        inputs = self.side()
        if not self.accept("->"):
            raise self.fail("an axis, a comma or ->")
        outputs = self.side()
        if self.token:
            raise self.fail("an axis, a comma or the end")
        if any(operand.optional for operand in outputs):
            raise NotationError(self.text, self.text.rindex("?"), "no ? on an output")
        return Parsed(inputs, outputs)

    def side(self) -> tuple[Operand, ...]:
        if self.token in ("->", ""):  # no operand at all; a lone scalar is written ()
            return ()
        operands = [self.operand()]
        while self.accept(","):
            operands.append(self.operand())
        return tuple(operands)

    def operand(self) -> Operand:
        axes: list[Axis] = []
        stars = 0
        while self.token not in (",", "->", "", "?"):
            star = self.token == "*"
            if star and stars:
                raise self.fail("at most one star in an operand")
            stars += star
            axis = self.axis()
            if axis is not None:
                axes.append(axis)
        return Operand(tuple(axes), self.accept("?"))

    def axis(self) -> Axis | None:
        """Parse one axis; ``()`` is none."""
        if self.accept("("):
            return self.composite()
        if self.accept("*"):
            return Star(self.name(), self.lock())
        if self.accept("1"):
            return Unit()
        return self.letter()

    def name(self) -> str:
        token = self.token
        if not (token[:1].isalpha() or token[:1] == "_"):
            raise self.fail("a letter")
        self.at += 1
        return token

    def lock(self) -> str:
        for mark in ("!", "~"):
            if self.accept(mark):
                return mark
        return ""

    def letter(self) -> Letter:
        token = self.token
        if not (token[:1].isalpha() or token[:1] == "_"):
            raise self.fail("a letter, 1, *, or (")
        self.at += 1
        return Letter(token, self.lock(), self.accept("^"))

    def composite(self) -> Axis | None:
        if self.accept(")"):
            return None
        parts = [self.product()]
        while self.accept("+"):
            parts.append(self.product())
        if not self.accept(")"):
            raise self.fail("an axis, + or )")
        return parts[0] if len(parts) == 1 else Sum(tuple(parts))

    def product(self) -> Axis:
        factors: list[Axis] = []
        while self.token not in ("+", ")"):
            if self.accept("("):
                inner = self.composite()
                if inner is None:
                    raise self.fail("a letter before )")
                factors.append(inner)
            else:
                factors.append(self.letter())
        if not factors:
            raise self.fail("a letter or (")
        return factors[0] if len(factors) == 1 else Product(tuple(factors))


@cache
def parse(text: str) -> Parsed:
    """Parse the text of a row.

    Raises
    ------
    NotationError
        With the text, a caret under the place, and what is expected there.

    Examples
    --------
    >>> parse("m k, n k, n? -> m n").inputs[2]
    Operand(axes=(Letter(name='n', lock='', contract=False),), optional=True)
    """
    parsed = _Parser(text).signature()
    return _spread_locks(parsed)


def _spread_locks(parsed: Parsed) -> Parsed:
    """Give every slot of a locked letter (or star) its lock; hard wins over soft."""
    locks: dict[tuple[type, str], str] = {}
    for operand in parsed.inputs + parsed.outputs:
        for leaf in _leaves(*operand.axes):
            if isinstance(leaf, (Letter, Star)) and leaf.lock:
                key = (type(leaf), leaf.name)
                locks[key] = "!" if "!" in (leaf.lock, locks.get(key)) else "~"
    if not locks:
        return parsed

    def locked(axis: Axis) -> Axis:
        if isinstance(axis, (Letter, Star)):
            return replace(axis, lock=locks.get((type(axis), axis.name), ""))
        if isinstance(axis, Product):
            return Product(tuple(map(locked, axis.factors)))
        if isinstance(axis, Sum):
            return Sum(tuple(map(locked, axis.parts)))
        return axis

    def side(operands: tuple[Operand, ...]) -> tuple[Operand, ...]:
        return tuple(Operand(tuple(map(locked, o.axes)), o.optional) for o in operands)

    return Parsed(side(parsed.inputs), side(parsed.outputs))


def letters_of(*axes: Axis) -> list[Letter]:
    """Return the letters of axes, in their order; each as often as it is there.

    Examples
    --------
    >>> [letter.name for letter in letters_of(*parse("n (g i) 1 -> n").inputs[0].axes)]
    ['n', 'g', 'i']
    """
    return [leaf for leaf in _leaves(*axes) if isinstance(leaf, Letter)]


def _leaves(*axes: Axis) -> Iterator[Letter | Unit | Star]:
    for axis in axes:
        if isinstance(axis, Product):
            yield from _leaves(*axis.factors)
        elif isinstance(axis, Sum):
            yield from _leaves(*axis.parts)
        else:
            yield axis
