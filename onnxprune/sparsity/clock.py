"""Stages, timed and told of."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

__all__ = ["Clock"]


@dataclass
class Clock:
    """What took how long.

    Attributes
    ----------
    progress : callable, optional
        Told the name of each stage.
    seconds : dict
        Stage -> wall-clock time.
    """

    progress: Callable[[str], None] | None = None
    seconds: dict[str, float] = field(default_factory=dict)

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage, and tell of it."""
        self.say(name)
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def say(self, text: str) -> None:
        """Tell something."""
        if self.progress:
            self.progress(text)
