"""What an entry of the zoo is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

# What torch.onnx.export calls dynamic axes: input name -> {axis: symbol}.
Axes = dict[str, dict[int, str]]


@dataclass(frozen=True)
class Built:
    """A model with example inputs by name (in the order of its forward) and the axes that stay symbolic."""

    model: Any
    inputs: dict[str, Any]
    dynamic: Axes = field(default_factory=dict)


@dataclass(frozen=True)
class Entry:
    """A model of the zoo; `mparams` is its size in millions where that is known without building it."""

    name: str
    build: Callable[[], Built]
    mparams: float = 5.0
