"""Leaves found by name: one file in a package folder is one criterion, budget, method or pass.

The folder is listed without importing anything in it; only the leaf that is asked for is imported. So adding
a leaf is adding a file, and a leaf with a costly import costs nothing to those who don't use it.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import pkgutil
from types import ModuleType

from onnxprune.errors import UsageError

__all__ = ["load", "names"]


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
    known = names(package)
    wanted = name.replace("-", "_")
    if wanted in known:
        return importlib.import_module(f"{package}.{wanted}")
    kind = package.rpartition(".")[2]
    close = difflib.get_close_matches(wanted, known, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise UsageError(f"There is no {name!r} in {kind}; known are: {', '.join(known) or 'none'}.{hint}")
