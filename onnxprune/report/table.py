"""Tables for people: drawn by rich on a terminal, aligned plain text in a pipe."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TextIO

from onnxprune.report.printing import clean, drawn_on, printed_on

__all__ = ["amount", "plain", "share", "show"]

Row = Sequence[str]


def show(
    head: Row, rows: Sequence[Row], *, title: str = "", stream: TextIO | None = None, left: int = 1
) -> None:
    """Print a table; the first ``left`` columns are text, the others numbers.

    Parameters
    ----------
    head : sequence of str
    rows : sequence of sequences of str
    title : str
    stream : text file, optional
        Standard output by default; rich draws only if it is a terminal.
    left : int
        Number of columns that are aligned to the left.
    """
    stream = printed_on(stream)
    if not stream.isatty():
        if title:
            stream.write(f"{title}\n")
        stream.write(plain(head, rows, left=left))
        return
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=title or None, title_justify="left", box=SIMPLE_HEAD, title_style="bold")
    for n, name in enumerate(head):
        table.add_column(name, justify="left" if n < left else "right", overflow="fold")
    for row in rows:
        table.add_row(*(escape(_cell(cell)) for cell in row))
    Console(file=drawn_on(stream)).print(table)


def plain(head: Row, rows: Sequence[Row], *, left: int = 1) -> str:
    """Return a table as aligned text.

    Examples
    --------
    >>> print(plain(["", "before", "after"], [["bytes", "12", "6"]]), end="")
           before  after
    bytes      12      6
    """
    rows = [[_cell(cell) for cell in row] for row in rows]
    widths = [max(len(row[n]) for row in (head, *rows)) for n in range(len(head))]
    lines = []
    for row in (head, *rows):
        cells = [
            c.ljust(w) if n < left else c.rjust(w) for n, (c, w) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    """Return a text that fits a line: a name could forge another."""
    return clean(text).replace("\n", "\\n").replace("\t", "\\t")


def amount(number: float | None) -> str:
    """Return a count in a few characters.

    Examples
    --------
    >>> amount(950), amount(41_234_567), amount(4.1e9), amount(None)
    ('950', '41.2 M', '4.10 G', '-')
    """
    if number is None:
        return "-"
    if abs(number) < 1e4:
        return f"{number:,.0f}"
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= size:
            value = number / size
            return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f} {unit}"
    raise AssertionError("not reached")


def share(part: float | None, whole: float | None) -> str:
    """Return a part in percent of the whole, or ``-``.

    Examples
    --------
    >>> share(1, 3), share(1, 0)
    ('33.3 %', '-')
    """
    return "-" if not whole or part is None else f"{100 * part / whole:.1f} %"
