"""What kind of value an option has, as its annotation says: checked, and brought to that kind."""

from __future__ import annotations

import numbers
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

from onnxprune.errors import UsageError

__all__ = ["Shapes", "Texts", "as_kind", "texts_of"]

#: One text or several; an option holds several.
Texts: TypeAlias = str | tuple[str, ...]
Shapes: TypeAlias = Mapping[str, tuple[int, ...]]


def as_kind(name: str, kind: str, value: Any) -> Any:
    """Return a value in the kind that an annotation names.

    Parameters
    ----------
    name : str
        The option's, for the message.
    kind : str
        Such as ``"float | None"``; ``"Any"`` takes all.
    value : object

    Raises
    ------
    UsageError
        If it is of another kind.

    Examples
    --------
    >>> as_kind("--target", "Texts", "macs=0.5"), as_kind("--cap", "float", 1)
    (('macs=0.5',), 1.0)
    """
    kinds = kind.split(" | ")
    if "Any" in kinds or (value is None and "None" in kinds):
        return value
    for one in kinds:
        if one in _KINDS:
            made = _KINDS[one][1](value)
            if made is not None:
                return made
    wanted = " or ".join(_KINDS[one][0] for one in kinds if one in _KINDS)
    raise UsageError(f"{name} must be {wanted}; got {type(value).__name__} {value!r:.80}.")


def texts_of(value: Texts) -> tuple[str, ...]:
    """Return one text or several as several."""
    return (value,) if isinstance(value, str) else value


def _flag(value: Any) -> bool | None:
    return value if isinstance(value, bool) else None


def _whole(value: Any) -> int | None:
    return int(value) if isinstance(value, numbers.Integral) and not isinstance(value, bool) else None


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, numbers.Real) and not isinstance(value, bool) else None


def _text(value: Any) -> str | None:
    text = os.fspath(value) if isinstance(value, os.PathLike) else value
    return text if isinstance(text, str) else None


def _texts(value: Any) -> tuple[str, ...] | None:
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, Iterable) or isinstance(value, (bytes, Mapping)):
        return None
    texts = tuple(value)
    return texts if all(isinstance(text, str) for text in texts) else None


def _shapes(value: Any) -> dict[str, tuple[int, ...]] | None:
    if not isinstance(value, Mapping):
        return None
    shapes: dict[str, tuple[int, ...]] = {}
    for name, given in value.items():
        sizes = [_whole(size) for size in given] if isinstance(given, Iterable) else [None]
        known = [size for size in sizes if size is not None]
        if not isinstance(name, str) or isinstance(given, str) or len(known) < len(sizes):
            return None
        shapes[name] = tuple(known)
    return shapes


_KINDS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "bool": ("True or False", _flag),
    "int": ("a whole number", _whole),
    "float": ("a number", _number),
    "str": ("a text", _text),
    "Texts": ("a text or several", _texts),
    "Shapes": ("a mapping of inputs to shapes, such as {'x': (1, 3, 224, 224)}", _shapes),
}
