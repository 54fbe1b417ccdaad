"""Leaves found by name: one file in a package folder is one criterion, budget, method or pass.

The folder is listed without importing anything in it; only the leaf that is asked for is imported. So adding
a leaf is adding a file, and a leaf with a costly import costs nothing to those who don't use it.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import pkgutil
from collections.abc import Iterable
from types import ModuleType

from onnxprune.errors import UsageError

__all__ = ["load", "match", "names"]


def names(package: str) -> list[str]:
    """List the leaves of a package, sorted, without importing them.

    Parameters
    ----------
    package : str
        Dotted name, such as ``"onnxprune.criteria"``.

    Returns
    -------
    list of str
        The modules of the package whose name has no leading underscore.

    Raises
    ------
    UsageError
        If there is no such package.
    """
    try:
        spec = importlib.util.find_spec(package)
    except ModuleNotFoundError:
        spec = None
    if spec is None or spec.submodule_search_locations is None:
        raise UsageError(f"There is no package {package!r} to look for names in.")
    found = pkgutil.iter_modules(list(spec.submodule_search_locations))
    return sorted(module.name for module in found if not module.name.startswith("_"))


def load(package: str, name: str) -> ModuleType:
    """Import one leaf of a package by its name.

    Parameters
    ----------
    package : str
        Dotted name, such as ``"onnxprune.criteria"``.
    name : str
        One of ``names(package)``; ``-`` may stand for ``_``.

    Raises
    ------
    UsageError
        If the package has no leaf of that name; the message lists the known ones.
    """
    return importlib.import_module(f"{package}.{match(name, names(package), package.rpartition('.')[2])}")


def match(name: str, known: Iterable[str], kind: str) -> str:
    """Return the one of the known names that is meant; ``-`` may stand for ``_``.

    Parameters
    ----------
    name : str
    known : iterable of str
    kind : str
        What they are names of, for the message.

    Raises
    ------
    UsageError
        If there is none of that name; the message lists the known ones.
    """
    choices = sorted(known)
    wanted = name.replace("-", "_")
    if wanted in choices:
        return wanted
    close = difflib.get_close_matches(wanted, choices, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise UsageError(f"There is no {name!r} in {kind}; known are: {', '.join(choices) or 'none'}.{hint}")
