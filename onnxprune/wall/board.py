"""A wall around work that can crash, hang or eat the machine: a child process does it, its parent only watches.

Libraries written in C++ can be crashed, or kept busy for ever, by a model. So `watching.guard` forks the command line
before anything heavy is imported. The child does all the work; on a page of shared memory it keeps what it is
doing (`stage`), and for how long that may take. The parent imports nothing, looks at that page, at the memory and at
the time of the child some fifty times a second, and turns a signal or a limit into one sentence and an exit code.

- Time is the processor's, so that a busy machine stops nobody; what waits without working is stopped much later.
- Memory is what the process holds itself. Mapped files, such as weights, don't count.
- What C++ code writes to standard error comes through the parent: so much and no more, and nothing of it after a crash.
- Signals go to the child. It has some seconds to end; then it is killed, and what it left half-written is removed.

Limits grow with the model (`grow`), unless they are asked for (`limit`). In a process that has no wall, `stage`,
`grow` and `limit` do nothing. There is one on Linux only; see docs/decisions/0013. The parent's side is `watching`.
"""

from __future__ import annotations

import contextlib
import functools
import mmap
import os
import struct
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager

__all__ = ["allowed", "bounds", "attach", "finish", "grow", "is_walled", "limit", "litter", "stage"]

#: Bytes that any command may hold, and what it may for each byte of weights, byte of inputs and node.
MEMORY, PER_WEIGHT, PER_INPUT, PER_NODE = 700e6, 16, 256, 40e3
#: Seconds that any stage may work, and what it may for each byte of weights, value that the model computes and node.
SECONDS, PER_BYTE, PER_VALUE, PER_STEP = 2.5, 1e-6, 5e-6, 0.05
#: Of the machine's memory, what the limit never goes above; and what a command with samples may always take.
MOST, WITH_SAMPLES = 0.9, 0.5
#: How many times longer a stage may take that doesn't work, but waits.
IDLE = 20
#: Seconds that an interrupted child has, inside a library and outside.
GRACE = (1.0, 20.0)
#: Bytes of standard error that C++ code may write.
NOISE = 1 << 16

#: The page: its head, then open stages of so many bytes each, then what is to be removed.
HEAD, LEVELS, LEVEL, LITTER = 128, 8, 1024, 8192
_RECORD = struct.Struct(
    "<dddii"
)  # processor's and wall clock's time at its begin, seconds, exit code, length of the text
LIMITS = struct.Struct("<dd")  # bytes, seconds of a stage; at 16


class Board:
    """The shared page: 0 open stages, 4 exit code of the finished work, 16 limits; stages; places of litter."""

    page: mmap.mmap
    depth: int
    memory: float
    seconds: float
    sizes: dict[str, float]

    def __init__(self) -> None:
        self.page = mmap.mmap(-1, HEAD + LEVELS * LEVEL + LITTER)
        self.depth, self.memory, self.seconds = 0, MEMORY, SECONDS
        self.fixed_memory = self.fixed_seconds = False
        self.sizes = {"weights": 0.0, "inputs": 0.0, "nodes": 0.0, "values": 0.0}
        self.samples = False
        self.litter: list[bytes] = []
        self.put(0, struct.pack("<ii", 0, -1))
        self.tell()

    def put(self, at: int, data: bytes) -> None:
        """Write at once: what packs into a page clears the place first, and the parent would see that."""
        self.page[at : at + len(data)] = data

    def tell(self) -> None:
        self.put(16, LIMITS.pack(self.memory, self.seconds))

    def tell_litter(self) -> None:
        text = b"\0".join(self.litter)
        text = text if len(text) <= LITTER else text[:LITTER].rpartition(b"\0")[0]
        self.page[HEAD + LEVELS * LEVEL :] = text.ljust(LITTER, b"\0")

    def push(self, what: str, seconds: float, code: int) -> None:
        if self.depth < LEVELS:
            at = HEAD + self.depth * LEVEL
            text = what.encode("utf-8", "backslashreplace")[: LEVEL - _RECORD.size]
            self.put(at, _RECORD.pack(time.process_time(), time.monotonic(), seconds, code, len(text)))
            self.page[at + _RECORD.size : at + _RECORD.size + len(text)] = text
        self.depth += 1
        self.put(0, struct.pack("<i", min(self.depth, LEVELS)))

    def pop(self) -> None:
        self.depth -= 1
        self.put(0, struct.pack("<i", min(self.depth, LEVELS)))

    def stages(self) -> list[tuple[float, float, float, int, str]]:
        """Return the open stages, the outermost first, as another process sees them."""
        stages = []
        for level in range(struct.unpack_from("<i", self.page, 0)[0]):
            at = HEAD + level * LEVEL
            began, clock, seconds, code, length = _RECORD.unpack_from(self.page, at)
            text = self.page[at + _RECORD.size : at + _RECORD.size + length].decode("utf-8", "replace")
            stages.append((began, clock, seconds, code, text))
        return stages


_board: Board | None = None


class _Stage:
    """An open stage; a class, because a generator costs more than what it is around."""

    __slots__ = ("code", "seconds", "what")

    def __init__(self, what: str, seconds: float, code: int) -> None:
        self.what, self.seconds, self.code = what, seconds, code

    def __enter__(self) -> None:
        if _board is not None:
            _board.push(self.what, self.seconds * _board.seconds, self.code)

    def __exit__(self, *_: object) -> None:
        if _board is not None:
            _board.pop()


def stage(what: str, *, times: float = 1.0, code: int = 3) -> AbstractContextManager[None]:
    """Return a context in which the parent knows what is being done.

    Parameters
    ----------
    what : str
        The subject of a sentence, such as "A run of the model".
    times : float
        How many times the limit of one stage this one may take.
    code : int
        Exit code if it crashes or takes too much.
    """
    return _Stage(what, times, code)


def grow(**sizes: float) -> None:
    """Let the limits grow with what the work turns out to be.

    Parameters
    ----------
    **sizes : float
        The most so far counts: ``weights`` and ``inputs`` in bytes, ``nodes``, and ``values`` that the model computes.
    """
    board = _board
    if board is None:
        return
    if sizes.pop("samples", 0):
        board.samples = True
    for name, size in sizes.items():
        board.sizes[name] = max(board.sizes[name], size)
    of = board.sizes
    if not board.fixed_memory:
        most = MEMORY + PER_WEIGHT * of["weights"] + PER_INPUT * of["inputs"] + PER_NODE * of["nodes"]
        whole = _machine()
        board.memory = min(max(most, WITH_SAMPLES * whole if board.samples else 0), MOST * whole)
    if not board.fixed_seconds:
        board.seconds = SECONDS + PER_BYTE * of["weights"] + PER_VALUE * of["values"] + PER_STEP * of["nodes"]
    board.tell()


@contextlib.contextmanager
def bounds() -> Iterator[None]:
    """Hold sizes to the limits without a wall: what would take more is refused before, as far as that can be known."""
    global _board
    before, _board = _board, Board()
    try:
        yield
    finally:
        _board = before


def limit(memory: float | None = None, seconds: float | None = None) -> None:
    """Set limits that don't grow: bytes, and seconds of one stage."""
    if _board is None:
        return
    if memory is not None:
        _board.memory, _board.fixed_memory = memory, True
    if seconds is not None:
        _board.seconds, _board.fixed_seconds = seconds, True
    _board.tell()


def allowed() -> float:
    """Return how many bytes the work may hold; what the machine has where there is no wall."""
    return _machine() if _board is None else _board.memory


@functools.cache
def _machine() -> float:
    try:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, OSError, ValueError):
        return float(1 << 34)


@contextlib.contextmanager
def litter(path: str | os.PathLike[str]) -> Iterator[None]:
    """Say which file or folder is to be removed if the process is killed meanwhile."""
    board, name = _board, os.fsencode(os.path.abspath(path))
    if board is None:
        yield
        return
    board.litter.append(name)
    board.tell_litter()
    try:
        yield
    finally:
        board.litter.remove(name)
        board.tell_litter()


def finish(code: int) -> None:
    """Say that the work is done, and what comes of it; whatever happens after that doesn't matter."""
    if _board is not None:
        _board.put(4, struct.pack("<i", code))


def attach(board: Board) -> None:
    """Work under these limits from now on."""
    global _board
    _board = board


def is_walled() -> bool:
    """Whether limits hold in this process."""
    return _board is not None
