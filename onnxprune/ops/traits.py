"""What other rooms need to know of an op besides its row: a trait is a law that holds for each of its nodes.

Traits stand where the row stands, ``@op("Relu", traits=Trait.ELEMENTWISE)``, also where the row is a refusal. Who has a
traced node asks ``node.traits``; who has a file's node, `traits_of`. A trait speaks of the nodes that the row describes
(a Dropout in training is refused, and no view); ``RANDOM`` alone speaks of the others, too.
``tests/ops/test_traits.py`` runs the laws on ONNX's own node models.
"""

from __future__ import annotations

from enum import Flag, auto

__all__ = ["TRAITS", "Trait", "declare", "moved", "traits_of"]


class Trait(Flag):
    """A class of ops. "The output" is the first one, unless another is named.

    Attributes
    ----------
    ELEMENTWISE : an element of the output depends on the inputs' elements at its place only; they are broadcast.
    OVERWRITES : the output may be written where an input of its shape and type is, element by element.
    VIEW : the output has the bytes of the first input, in their order.
    MOVEMENT : the elements of the outputs are elements of the first input (of all inputs: Concat), whatever they are.
    REPEATS : a movement whose other inputs say how many elements there are, not which.
    EXACT : IEEE 754 and ONNX fix the last bit of each float result.
    LINEAR : the output is linear in the first input, and no element of an axis that passes is treated unlike another.
    MEAN : an element of the output lies between elements of the first input: of equal ones it is that number.
    ZEROS : zeros in the first input give zeros, if nothing else is filled in at the border.
    NATURAL : no element of the output is below zero.
    JUMP : a small change of an element can change a result by a whole step.
    CHOICE : elements or positions are chosen by comparison, so that a small change can give others.
    COMPARISON : elements are compared one by one.
    RANDOM : two runs may differ, if only in training.
    BY_DATA : the lengths of the outputs depend on the values of inputs.
    LOOKUP : rows of an input are picked by positions that another input gives.
    WINDOW : windows of the attribute ``kernel_shape`` run over the axes behind the first two.
    SIZE : the shape of the input is read, and none of its elements.
    GEMM : a plain matrix product or convolution, as tensor cores do it.
    RECURRENT : weights are used once for each step of a sequence.
    SUM : the output is the sum of all inputs, broadcast.
    IDEMPOTENT : applied to what it gives, with the same other inputs, it gives that.
    ASIDE : the outputs behind the first are optional, and the first one is the same without them.
    """

    ELEMENTWISE = auto()
    OVERWRITES = auto()
    VIEW = auto()
    MOVEMENT = auto()
    REPEATS = auto()
    EXACT = auto()
    LINEAR = auto()
    MEAN = auto()
    ZEROS = auto()
    NATURAL = auto()
    JUMP = auto()
    CHOICE = auto()
    COMPARISON = auto()
    RANDOM = auto()
    BY_DATA = auto()
    LOOKUP = auto()
    WINDOW = auto()
    SIZE = auto()
    GEMM = auto()
    RECURRENT = auto()
    SUM = auto()
    IDEMPOTENT = auto()
    ASIDE = auto()

    @property
    def names(self) -> list[str]:
        """The traits in it, as words."""
        return [(one.name or "").lower().replace("_", " ") for one in self]


#: (domain, op type) -> its traits; filled beside the rows.
TRAITS: dict[tuple[str, str], Trait] = {}


def declare(key: tuple[str, str], traits: Trait) -> None:
    """Add traits to an op."""
    if traits:
        TRAITS[key] = TRAITS.get(key, Trait(0)) | traits


def traits_of(op: str, domain: str = "") -> Trait:
    """Return the traits of an op type; none for one that isn't known."""
    return TRAITS.get(("" if domain == "ai.onnx" else domain, op), Trait(0))


def moved(op: str, inputs: int, domain: str = "") -> range:
    """Return the slots whose elements a movement moves; none for other ops."""
    if Trait.MOVEMENT not in traits_of(op, domain):
        return range(0)
    return range(inputs if op == "Concat" else min(inputs, 1))
