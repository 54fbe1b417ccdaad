"""One live line of long work: on a terminal, or below a cell of a notebook."""

from __future__ import annotations

import contextlib
import html
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from onnxprune.progress import StageClock, duration
from onnxprune.report.printing import clean, drawn_on

__all__ = ["in_notebook", "live", "shown"]

Tell = Callable[[str], None]
#: Columns that a live line needs beside the text: the bar, the percentage and the times.
BESIDE = 56
#: Work that is done before so many seconds shows nothing, and a cell is drawn no oftener than that.
SOON, OFTEN = 0.5, 0.2
#: The environment's word against lines that nobody asked for.
SILENT = "ONNXPRUNE_PROGRESS"

_drawing = threading.Lock()


@contextmanager
def shown() -> Iterator[Tell | None]:
    """Give what draws a line where somebody looks, a terminal or a notebook, and nothing elsewhere.

    There is one line at a time: work within work, and in other threads, draws none. ``ONNXPRUNE_PROGRESS=0`` in the
    environment leaves it out.
    """
    looked_at = in_notebook() or (sys.stderr is not None and sys.stderr.isatty())
    if os.environ.get(SILENT) == "0" or not looked_at or not _drawing.acquire(blocking=False):
        yield None
        return
    try:
        with _cell() if in_notebook() else live(sys.stderr, SOON) as tell:
            yield tell
    finally:
        _drawing.release()


def in_notebook() -> bool:
    """Whether a notebook's kernel runs this."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return shell is not None and hasattr(shell, "kernel")


@contextmanager
def _cell() -> Iterator[Tell]:
    """Draw below the cell that runs; what is left there is how long it took."""
    display: Any = sys.modules["IPython"].display
    watch, start = StageClock(), time.perf_counter()
    handle: Any = None
    last = start + SOON

    def tell(text: str) -> None:
        nonlocal handle, last
        now = time.perf_counter()
        watch.tell(text, now)
        if now < last:
            return
        last = now + OFTEN
        drawn = display.HTML(_bar(clean(text), watch, now - start, now))
        if handle is None:
            handle = display.display(drawn, display_id=True)
        else:
            handle.update(drawn)

    try:
        yield tell
    finally:
        if handle is not None:
            handle.update(display.HTML(f"<small>{duration(time.perf_counter() - start)}</small>"))


def _bar(text: str, watch: StageClock, elapsed: float, now: float) -> str:
    left = watch.left(now)
    more = "" if left is None else f", about {duration(left)} left in this stage"
    value = "" if watch.done is None else f' value="{watch.done:.3f}"'
    return f"<progress{value}></progress> <code>{html.escape(text[:120])}</code> <small>{elapsed:.0f} s{more}</small>"


@contextmanager
def live(stream: TextIO, soon: float = 0.0) -> Iterator[Tell]:
    """Draw one line on a terminal: stage, bar, elapsed time and time left; it goes when the work is done.

    Parameters
    ----------
    stream : text file
    soon : float
        Seconds of work that nothing is drawn of, and nothing loaded for.
    """
    start, watch = time.perf_counter(), StageClock()
    with contextlib.ExitStack() as stack:
        draw: Tell | None = None

        def tell(text: str) -> None:
            nonlocal draw
            now = time.perf_counter()
            watch.tell(text, now)
            if draw is None and now >= start + soon:
                draw = stack.enter_context(_line(stream, watch, start))
            if draw is not None:
                draw(clean(text))

        if not soon:
            draw = stack.enter_context(_line(stream, watch, start))
        yield tell


@contextmanager
def _line(stream: TextIO, watch: StageClock, start: float) -> Iterator[Tell]:
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, Progress, ProgressColumn, TaskProgressColumn, TextColumn
    from rich.text import Text

    class Times(ProgressColumn):
        """Elapsed time, and what is left of the stage."""

        max_refresh = 0.5

        def render(self, task: Any) -> Text:
            now = time.perf_counter()
            left = watch.left(now)
            more = "" if left is None else f", about {duration(left)} left"
            return Text(f"{now - start:.0f} s{more}", style="dim")

    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TaskProgressColumn(),
        Times(),
        console=Console(file=drawn_on(stream)),
        transient=True,
        redirect_stdout=False,
        refresh_per_second=4,
    )
    with bar:
        task = bar.add_task("load", total=None)

        def tell(text: str) -> None:
            share = None if watch.done is None else 100.0
            most = max(bar.console.width - BESIDE, 20)
            shown = text if len(text) <= most else text[: most - 1] + "…"
            bar.update(task, description=escape(shown), total=share, completed=100 * (watch.done or 0.0))

        yield tell
