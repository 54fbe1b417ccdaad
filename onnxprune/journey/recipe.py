"""Recipes: a list of passes as a file, with what it is for.

    description = "Half of the multiply-accumulates of a convolutional net"
    needs = ["calib"]             # what must be given beside it

    [[pass]]
    name = "prune"
    target = "macs=0.5"           # options of the pass, by their names in Python
    ignore = ["^head"]

It is TOML. Values are texts, numbers, true and false, and lists of texts; files are named as on a command line, from
where it runs.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict, Unpack

from onnxprune.errors import UsageError, did_you_mean
from onnxprune.journey.passes import PassCall, parse
from onnxprune.options.pruning import Shapes

__all__ = ["PassFields", "PassRecipe", "read", "steps_of"]

#: What a recipe may ask for beside it, with the option that gives it.
NEEDS = {"calib": "--calib", "input_shapes": "--input-shape"}


@dataclass(frozen=True)
class PassRecipe:
    """Passes with their options.

    Attributes
    ----------
    name : str
        The file.
    steps : tuple of PassCall
    description : str
    needs : tuple of str
        What must be given beside it: ``calib``, ``input_shapes``.
    """

    name: str
    steps: tuple[PassCall, ...]
    description: str = ""
    needs: tuple[str, ...] = ()


class PassFields(TypedDict, total=False):
    """What may be given beside passes, for those that take some."""

    input_shapes: Shapes | None
    calib: Any


def steps_of(passes: str | os.PathLike[str] | PassRecipe, **beside: Unpack[PassFields]) -> Sequence[PassCall]:
    """Return the passes of a list, or those of a recipe.

    Parameters
    ----------
    passes : str, Path or PassRecipe
        A list as text; a path is that of a recipe.
    **beside
        What is given beside it.

    Raises
    ------
    UsageError
        If it can't be read, nothing of this kind is given beside it, or the recipe needs more than is given.
    """
    given: dict[str, Any] = dict(beside)
    for name in given.keys() - NEEDS.keys():
        raise UsageError(f"There is no option {name!r} beside passes.{did_you_mean(name, NEEDS)}")
    if isinstance(passes, str):
        return parse(passes)
    recipe = passes if isinstance(passes, PassRecipe) else read(passes)
    for name in recipe.needs:
        value = given.get(name)
        if value is None or (isinstance(value, dict) and not value):
            raise UsageError(f"The recipe {recipe.name} needs {NEEDS[name]} ({recipe.description or name}).")
    return recipe.steps


def read(path: str | os.PathLike[str]) -> PassRecipe:
    """Read a recipe.

    Raises
    ------
    UsageError
        If it can't be read, or has anything that no recipe has.
    """
    name = str(path)
    try:
        found = tomllib.loads(Path(path).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UsageError(f"The recipe {name} can't be read: {error.strerror or error}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"The recipe {name} is no TOML: {error}.") from error
    unknown = sorted(found.keys() - {"description", "needs", "pass"})
    if unknown:
        raise UsageError(f"The recipe {name} has {unknown[0]!r}; known are description, needs and [[pass]].")
    description, needs, passes = found.get("description", ""), found.get("needs", []), found.get("pass", [])
    if not isinstance(description, str):
        raise UsageError(f"The description of the recipe {name} must be a text; got {description!r}.")
    if not isinstance(needs, list) or not all(isinstance(n, str) and n in NEEDS for n in needs):
        raise UsageError(f"'needs' of the recipe {name} must be a list of {', '.join(NEEDS)}; got {needs!r}.")
    if not passes or not isinstance(passes, list) or not all(isinstance(one, dict) for one in passes):
        raise UsageError(f"The recipe {name} has no [[pass]] with a name in it.")
    steps = tuple(_step(name, number, one) for number, one in enumerate(passes, 1))
    return PassRecipe(name, steps, description.rstrip("."), tuple(needs))


def _step(recipe: str, number: int, entry: dict[str, Any]) -> PassCall:
    title = entry.get("name")
    if not isinstance(title, str) or not title:
        raise UsageError(f"The [[pass]] number {number} of the recipe {recipe} has no name.")
    options = {key: _text(recipe, title, key, value) for key, value in entry.items() if key != "name"}
    return PassCall(title, {key.replace("-", "_"): value for key, value in options.items()})


def _text(recipe: str, title: str, key: str, value: Any) -> str:
    """Return a value as a list of passes would write it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (str, int, float)):
        return str(value)
    if isinstance(value, list) and value and all(isinstance(one, str) for one in value):
        return "|".join(value)
    raise UsageError(
        f"The recipe {recipe} gives the pass {title!r} {key} = {value!r}; it must be a text, a number, true, false or "
        "a list of texts."
    )
