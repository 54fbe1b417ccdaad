"""What kind of value an option has, as its annotation says: checked, and brought to that kind."""

from __future__ import annotations

import numbers
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, TypeAlias

from onnxprune.errors import UsageError

__all__ = ["Shapes", "Share", "Texts", "as_kind", "meant_in_percent", "share_of", "texts_of"]

#: One text or several; an option holds several.
Texts: TypeAlias = str | tuple[str, ...]
Shapes: TypeAlias = Mapping[str, tuple[int, ...]]
#: A part of a whole, as a number from 0 to 1; where it is written it may be in percent.
Share: TypeAlias = Annotated[float, "share"]


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


def share_of(text: str) -> float:
    """Return a share that is written as a number or in percent.

    Raises
    ------
    ValueError
        If it is neither.

    Examples
    --------
    >>> share_of("0.5"), share_of("12.5 %")
    (0.5, 0.125)
    """
    number, percent, rest = text.strip().partition("%")
    if rest:
        raise ValueError(f"{text!r} goes on behind the sign of percent")
    return float(number) / 100 if percent else float(number)


def meant_in_percent(value: object) -> str:
    """Return what a share above 1 seems to mean, as a question behind a sentence."""
    number = _number(value)
    return f" Did you mean {number:g}%?" if number is not None and 1 < number < 100 else ""


def _share(value: Any) -> float | None:
    if not isinstance(value, str) or "%" not in value:
        return _number(value)
    try:
        return share_of(value)
    except ValueError:
        return None


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
    "Share": ("a number, or a text such as '50%'", _share),
    "str": ("a text", _text),
    "Texts": ("a text or several", _texts),
    "Shapes": ("a mapping of inputs to shapes, such as {'x': (1, 3, 224, 224)}", _shapes),
}
