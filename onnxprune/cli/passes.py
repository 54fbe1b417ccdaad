"""What passes say of what they did, heard and kept."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator

__all__ = ["listening"]


@contextlib.contextmanager
def listening(notes: list[str], quiet: bool) -> Iterator[None]:
    """Keep what passes say of what they did and refused, and let it be seen on standard error."""
    log, form = logging.getLogger("onnxprune.passes"), logging.Formatter("%(module)s: %(message)s")
    handlers: list[logging.Handler] = [_Notes(notes), *([] if quiet else [logging.StreamHandler(sys.stderr)])]
    for handler in handlers:
        handler.setFormatter(form)
    before, log.handlers[:] = list(log.handlers), handlers
    level = log.level
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.handlers[:] = before
        log.setLevel(level)


class _Notes(logging.Handler):
    """Keeps what is said."""

    def __init__(self, notes: list[str]) -> None:
        super().__init__()
        self.notes = notes

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a message."""
        self.notes.append(self.format(record))
