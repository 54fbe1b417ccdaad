"""Progress on standard error: one live line on a terminal, a few plain lines in a pipe, all steps with -v."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from onnxprune.progress import StageClock, duration
from onnxprune.report.live import live

__all__ = ["Plain", "showing"]

Tell = Callable[[str], None]
#: Seconds between lines in a pipe. Work that is done before says nothing.
EVERY = 10.0


@contextmanager
def showing(*, quiet: bool, verbose: bool, stream: TextIO | None = None) -> Iterator[Tell | None]:
    """Give what progress is told to, for as long as the work lasts.

    Parameters
    ----------
    quiet, verbose : bool
        Say nothing; or say each step with its time, as lines.
    stream : text file, optional
        Standard error by default.
    """
    stream = stream or sys.stderr
    if quiet:
        yield None
    elif verbose:
        tell = _each(stream)
        with _heard(tell):
            yield tell
    elif stream.isatty():
        with live(stream) as tell:
            yield tell
    else:
        plain = Plain(stream, EVERY)
        with _beating(plain):
            yield plain


@contextmanager
def _beating(plain: Plain) -> Iterator[None]:
    """Let what is worked at be said again while nothing new is told."""
    over = threading.Event()

    def beat() -> None:
        while not over.wait(plain.every / 10):
            plain.beat()

    thread = threading.Thread(target=beat, name="beat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _each(stream: TextIO) -> Tell:
    start = time.perf_counter()

    def tell(text: str) -> None:
        print(f"[{time.perf_counter() - start:6.2f} s] {text}", file=stream, flush=True)

    return tell


@contextmanager
def _heard(tell: Tell) -> Iterator[None]:
    """Let what rooms log be told as well, each line by the name of its room; passes are heard elsewhere."""
    log, handler = logging.getLogger("onnxprune"), _Told(tell)
    before = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(before)


class _Told(logging.Handler):
    """Gives messages to what progress is told to."""

    def __init__(self, tell: Tell) -> None:
        super().__init__()
        self.tell = tell
        self.addFilter(lambda record: not record.name.startswith("onnxprune.passes"))

    def emit(self, record: logging.LogRecord) -> None:
        """Tell a message."""
        self.tell(f"{record.name.removeprefix('onnxprune.')}: {record.getMessage()}")


class Plain:
    """Writes a line when some seconds have passed since the last one.

    Parameters
    ----------
    stream : text file
    every : float
        Seconds.
    clock : callable
        Seconds since any moment.
    """

    stream: TextIO
    every: float
    clock: Callable[[], float]
    watch: StageClock
    last: float
    start: float
    text: str

    def __init__(
        self, stream: TextIO, every: float = EVERY, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self.stream, self.every, self.clock = stream, every, clock
        self.watch, self.last, self.start = StageClock(), clock(), clock()
        self.text, self._lock = "", threading.Lock()

    def __call__(self, text: str) -> None:
        """Take a text."""
        with self._lock:
            self.text = text
            self.watch.tell(text, self.clock())
        self.beat()

    def beat(self) -> None:
        """Write what was told last, if nothing was written for some seconds."""
        with self._lock:
            now = self.clock()
            if not self.text or now - self.last < self.every:
                return
            self.last = now
            self._write(self.text, now)

    def _write(self, text: str, now: float) -> None:
        left = self.watch.left(now)
        more = "" if left is None else f", about {duration(left)} left in this stage"
        print(f"[{now - self.start:.0f} s] {text}{more}", file=self.stream, flush=True)
