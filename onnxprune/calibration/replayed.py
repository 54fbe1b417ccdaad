"""What comes batch after batch and is asked for several times: held while there is room, else computed each time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

__all__ = ["ROOM", "Replayed"]

T = TypeVar("T")
#: Bytes that are held.
ROOM = 1 << 28


class Replayed(Generic[T]):
    """An iterable whose items are computed at most once where they find room.

    Parameters
    ----------
    make : callable
        Begins to compute them.
    size : callable
        Item -> its bytes.
    room : int
        Bytes of all of them together.

    Examples
    --------
    >>> begun = []
    >>> items = Replayed(lambda: begun.append("again") or iter("abc"), len, room=3)
    >>> [*items], [*items], begun
    (['a', 'b', 'c'], ['a', 'b', 'c'], ['again'])
    """

    def __init__(self, make: Callable[[], Iterator[T]], size: Callable[[T], int], room: int = ROOM) -> None:
        self._make, self._size, self._room = make, size, room
        self._held: list[T] = []

    def __iter__(self) -> Iterator[T]:
        """Yield the items in their order."""
        if self._held:
            yield from self._held
            return
        held: list[T] = []
        size = 0
        for item in self._make():
            size += self._size(item)
            if size <= self._room:
                held.append(item)
            yield item
        self._held = held if size <= self._room else []
