"""The op table: one row an op. Importing this package fills it."""

from onnxprune.ops import (  # noqa: F401  fill the table
    attention,
    bodies,
    contrib,
    elementwise,
    emitters,
    experts,
    index,
    linear,
    movement,
    norm,
    quant,
    recurrent,
    reduce,
    spatial,
)  # fmt: skip
from onnxprune.ops.base import (
    EMITTERS,
    FLOATS,
    PACKED,
    TABLE,
    ZEROED,
    Cut,
    Edit,
    Elem,
    Map,
    Multiplied,
    Node,
    Pick,
    Refusal,
    Row,
    SetAttr,
    SetInput,
    emit,
    lookup,
)  # fmt: skip
from onnxprune.ops.notation import NotationError, parse
from onnxprune.ops.traits import Trait, moved, traits_of

__all__ = [
    "EMITTERS", "FLOATS", "TABLE", "Cut", "Edit", "Elem", "Map", "Node", "NotationError", "PACKED", "Pick", "Refusal",
    "Row", "SetAttr", "SetInput", "Multiplied", "Trait", "ZEROED", "emit", "lookup", "moved", "parse", "traits_of",
]  # fmt: skip
