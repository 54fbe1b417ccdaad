"""What the functions of the front door are given: checked before the work, and progress where nobody asked for it."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, ParamSpec, TypeAlias, TypeVar

from onnxprune.errors import UsageError
from onnxprune.files.reading import reading
from onnxprune.journey.run import Progress

__all__ = ["PathLike", "Told", "front", "is_path"]

P = ParamSpec("P")
T = TypeVar("T")

PathLike: TypeAlias = str | os.PathLike[str]
#: What is told of progress: a function; None for a line where somebody looks, a terminal or a notebook; False for none.
Told: TypeAlias = Progress | Literal[False] | None


def is_path(value: Any) -> bool:
    """Whether something can be a path."""
    return isinstance(value, (str, os.PathLike)) and "\0" not in str(value)


_PATH = "a path"
#: Parameter -> what it must be, and whether a value is that. None is a default and passes, where there is one.
_KINDS: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
    "parts": ("paths", lambda value: isinstance(value, Sequence) and all(map(is_path, value))),
    "output": (_PATH, is_path),
    "progress": ("a function of a text, None or False", lambda value: callable(value) or value is False),
    "each": ("a function", callable),
    "plan": (
        "a Plan or a path",
        lambda value: isinstance(value, (str, os.PathLike)) or hasattr(value, "check_model"),
    ),
    "tensor": ("a name", lambda value: isinstance(value, str)),
    "passes": (
        "a text such as 'prune{ratio=0.5},shrink', or the Path of a recipe",
        lambda value: is_path(value) or hasattr(value, "steps"),
    ),
    "pattern": ("a text such as '2:4'", lambda value: isinstance(value, str)),
    "axis": ("a whole number", lambda value: isinstance(value, int) and not isinstance(value, bool)),
}


def front(work: Callable[P, T]) -> Callable[P, T]:
    """Make a function one of the front door.

    It refuses what it doesn't take, and values that can't be what they stand for, with a UsageError; and it draws a
    line of progress where somebody looks, unless ``progress`` says otherwise. What it reads mustn't change meanwhile.
    """
    signature = inspect.signature(work)

    @functools.wraps(work)
    def door(*args: P.args, **given: P.kwargs) -> T:
        _check(work.__name__, signature, args, given)
        told = given.get("progress")
        if told is not None or "progress" not in signature.parameters:
            with reading():
                return work(*args, **given)
        from onnxprune.report.live import shown

        with shown() as tell, reading():
            given["progress"] = tell
            return work(*args, **given)

    return door


def _check(name: str, signature: inspect.Signature, args: tuple[Any, ...], given: Mapping[str, Any]) -> None:
    try:
        bound = signature.bind(*args, **given).arguments
    except TypeError as error:
        names = [n for n, p in signature.parameters.items() if p.kind is not p.VAR_KEYWORD]
        raise UsageError(f"onnxprune's {name}(): {error}; it takes {', '.join(names)}.") from error
    for parameter, (what, fits) in _KINDS.items():
        value = bound.get(parameter)
        needed = parameter in bound and signature.parameters[parameter].default is inspect.Parameter.empty
        if (value is not None or needed) and not fits(value):
            raise UsageError(
                f"onnxprune's {name}(): {parameter} must be {what}; got {type(value).__name__} {value!r:.60}."
            )
