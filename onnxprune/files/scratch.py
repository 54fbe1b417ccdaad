"""New values of large weights lie in a file without a name rather than in memory, until the model is saved."""

from __future__ import annotations

import tempfile

import numpy as np
from numpy.typing import NDArray

__all__ = ["Scratch"]

#: New values that are held in memory, and the smallest that go to disk, in bytes.
ROOM, LEAST = 1 << 24, 1 << 20


class Scratch:
    """What was put into a model and its forks."""

    def __init__(self) -> None:
        self.held: int = 0

    def hold(self, data: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return the same bytes, mapped from a file where there are many by now; it goes when nobody holds them.

        Where no file can be written, as on a full disk, they stay in memory.
        """
        if len(data) < LEAST or self.held + len(data) <= ROOM:
            self.held += len(data)
            return data
        try:
            with tempfile.TemporaryFile(prefix="onnxprune-") as file:
                file.write(data.data)
                file.flush()
                return np.memmap(file, np.uint8, "r", shape=(len(data),))
        except OSError:
            return data
