"""Plugins for other tools: each a file that imports its tool when it is itself imported, and not before."""

from __future__ import annotations

from importlib import import_module
from typing import Any

__all__ = ["base_of"]


def base_of(module: str, name: str, tool: str, package: str) -> Any:
    """Return the class of another tool that a plugin derives from.

    Raises
    ------
    ImportError
        If the tool isn't installed; the sentence says how to install it.
    """
    try:
        return getattr(import_module(module), name)
    except ImportError as error:
        raise ImportError(
            f"The passes of {tool} need that package ({error}); install it with 'pip install {package}'."
        ) from error
