"""Text that can be printed: names in a model may hold what steers a terminal, or what a stream can't encode."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TextIO

from onnxprune.errors import OutputError

__all__ = ["Printable", "clean", "drawn_on", "printable", "printed_on"]

#: Control characters but line feed and tab, marks that turn text, invisible characters, halves of pairs.
_UNSAFE = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff"
    r"\U000e0000-\U000e007f]"
)


def clean(text: str) -> str:
    r"""Return a text in which what can't be shown safely is written as ``\uXXXX``, as in JSON.

    Examples
    --------
    >>> clean("a\x1b[2Jb")
    'a\u001b[2Jb'
    """
    return _UNSAFE.sub(_escaped, text)


def _escaped(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code > 0xFFFF:
        code -= 0x10000
        return f"\\u{0xD800 + (code >> 10):04x}\\u{0xDC00 + (code & 0x3FF):04x}"
    return f"\\u{code:04x}"


class Printable:
    """A stream that takes any text.

    Attributes
    ----------
    stream : text file
        Where the text goes.
    steers : bool
        Whether what is written may steer a terminal: what draws on one itself cleans its own texts.
    """

    stream: TextIO
    steers: bool

    def __init__(self, stream: TextIO, steers: bool = False) -> None:
        self.stream, self.steers = stream, steers

    def write(self, text: str) -> int:
        """Write a text, cleaned."""
        text = text if self.steers else clean(text)
        encoding = getattr(self.stream, "encoding", None) or "utf-8"
        try:
            text.encode(encoding)
        except UnicodeEncodeError:
            text = text.encode(encoding, "backslashreplace").decode(encoding)
        return int(self._done(self.stream.write, text))

    def writelines(self, lines: Iterable[str]) -> None:
        """Write texts, cleaned."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Send what was written."""
        self._done(self.stream.flush)

    def _done(self, work: Callable[..., Any], *given: Any) -> Any:
        try:
            return work(*given)
        except BrokenPipeError:
            raise
        except OSError as error:
            with contextlib.suppress(OSError, ValueError):  # what is left is flushed again at the end
                os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())
            raise OutputError(
                f"What was asked for can't be printed: {error.strerror or error}; make room, or send it elsewhere."
            ) from error

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def printed_on(stream: TextIO | None) -> TextIO:
    """Return what texts are printed on: a stream, or standard output, that takes any text."""
    stream = sys.stdout if stream is None else stream
    made: Any = stream if isinstance(stream, Printable) else Printable(stream)
    return made  # type: ignore[no-any-return]


def drawn_on(stream: TextIO) -> TextIO:
    """Return a stream for what steers a terminal on purpose and cleans its texts; it takes any of them."""
    drawn: Any = Printable(stream.stream if isinstance(stream, Printable) else stream, steers=True)
    return drawn  # type: ignore[no-any-return]


@contextlib.contextmanager
def printable() -> Iterator[None]:
    """Let standard output and error take any text, for as long as the context lasts."""
    out, err = sys.stdout, sys.stderr
    made: Any = [Printable(out), Printable(err)]
    sys.stdout, sys.stderr = made
    try:
        yield
    finally:
        if sys.stdout is made[0]:
            sys.stdout = out
        if sys.stderr is made[1]:
            sys.stderr = err
