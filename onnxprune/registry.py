"""Leaves found by name: one file in a package folder is one criterion, budget, method or pass.

The folder is listed without importing anything in it; only the leaf that is asked for is imported. So adding
a leaf is adding a file, and a leaf with a costly import costs nothing to those who don't use it.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import pkgutil
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, get_args

from onnxprune.errors import UsageError, did_you_mean

__all__ = ["PACKAGES", "Package", "constant", "load", "match", "names", "sentence"]

Package = Literal[
    "onnxprune.budgets",
    "onnxprune.criteria",
    "onnxprune.granularity",
    "onnxprune.passes",
    "onnxprune.sparsity.methods",
    "onnxprune.tuning.levers",
]
#: The packages of leaves. Whoever loads from one stands above it (tests/project/test_layers.py).
PACKAGES: tuple[str, ...] = get_args(Package)


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
    return sorted(module.name for module in pkgutil.iter_modules(_folders(package)) if module.name[0] != "_")


def _folders(package: str) -> list[str]:
    try:
        spec = importlib.util.find_spec(package)
    except ModuleNotFoundError:
        spec = None
    if spec is None or spec.submodule_search_locations is None:
        raise UsageError(f"There is no package {package!r} to look for names in.")
    return list(spec.submodule_search_locations)


def load(package: Package, name: str) -> ModuleType:
    """Import one leaf of a package by its name.

    Parameters
    ----------
    package : str
        One of `PACKAGES`.
    name : str
        One of ``names(package)``; ``-`` may stand for ``_``.

    Raises
    ------
    UsageError
        If the package has no leaf of that name; the message lists the known ones.
    ValueError
        If the package isn't one of leaves.
    """
    if package not in PACKAGES:
        raise ValueError(f"{package!r} is no package of leaves; those are {', '.join(PACKAGES)}.")
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
    hint = did_you_mean(wanted, choices)
    raise UsageError(f"There is no {name!r} in {kind}; known are: {', '.join(choices) or 'none'}.{hint}")


def constant(package: str, name: str, what: str) -> Any:
    """Return a constant that a leaf states, such as ``READS = "weights"``, without importing it; None if it has none.

    Parameters
    ----------
    package, name : str
        Of a leaf.
    what : str
        The constant's name.
    """
    for folder in _folders(package):
        file = Path(folder) / f"{name}.py"
        tree = ast.parse(file.read_text(encoding="utf-8")) if file.exists() else ast.Module([], [])
        for node in tree.body:
            if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == [what]:
                return ast.literal_eval(node.value)
    return None


def sentence(package: str) -> str:
    """Return the names of a package for a help text: first those that need no samples, by their ``READS``."""
    known = names(package)
    sampled = [name for name in known if constant(package, name, "READS") not in (None, "weights")]
    plain = ", ".join(name for name in known if name not in sampled)
    return f"{plain}; with --calib also {', '.join(sampled)}" if sampled else plain
