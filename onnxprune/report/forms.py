"""The forms that a report can be written in, by the suffix of its file."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from onnxprune.errors import UsageError
from onnxprune.report.printing import clean

__all__ = ["form_of", "frame", "is_page", "markdown", "table_csv"]

#: Suffix -> form; a device or a pipe has none and gets JSON.
FORMS = {"": "json", ".json": "json", ".html": "html", ".htm": "html", ".md": "md", ".csv": "csv"}
#: The lists of a report that are its table, the first that there is.
TABLES = ("groups", "tensors", "frontier", "rows", "axes", "layers")


def form_of(path: str | os.PathLike[str], option: str = "--report") -> str:
    """Return the form that a file's name asks for: ``json``, ``html``, ``md`` or ``csv``.

    Raises
    ------
    UsageError
        If no form has such a suffix.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in FORMS:
        raise UsageError(
            f"{option} {os.fspath(path)!r} ends in {suffix!r}, and a report is written as .json, .html, .md or .csv; "
            "give it one of these."
        )
    return FORMS[suffix]


def is_page(path: str | os.PathLike[str]) -> bool:
    """Whether a file of this name is to be a page to look at."""
    return FORMS.get(Path(path).suffix.lower()) == "html"


def markdown(title: str, shown: str) -> str:
    """Return what is printed of a report as a page of Markdown."""
    title, shown = clean(title), clean(shown)
    fence = "`" * max(3, 1 + max((len(run) for run in shown.split() if set(run) == {"`"}), default=0))
    return f"# {title}\n\n{fence}text\n{shown.rstrip()}\n{fence}\n"


def table_csv(values: Mapping[str, Any]) -> str:
    """Return the table of a report, a line for each group or weight, with those of its columns that are no lists."""
    rows = _lines(values, next((name for name in TABLES[:2] if values.get(name)), ""))
    columns = [
        n for n in dict.fromkeys(n for row in rows for n in row) if not any(_nested(r.get(n)) for r in rows)
    ]
    stream = io.StringIO()
    writer = csv.DictWriter(stream, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _plain(value) for name, value in row.items()} for row in rows)
    return stream.getvalue()


def frame(values: Mapping[str, Any], table: str | None) -> Any:
    """Return a table of a report as a pandas DataFrame, lists in its cells included.

    Raises
    ------
    UsageError
        If there is no such table, or pandas isn't installed.
    """
    tables = [name for name in values if _lines(values, name)]
    chosen = table or next((name for name in TABLES if name in values), "")
    if chosen not in values or (values[chosen] and chosen not in tables):
        there = f"tables are {', '.join(tables)}" if tables else "there are no tables in it"
        raise UsageError(f"to_frame finds no table {chosen!r}; {there}.")
    try:
        pandas = import_module("pandas")
    except ImportError as error:
        raise UsageError(
            "to_frame needs pandas, which isn't installed; 'pip install pandas', or take to_json()."
        ) from error
    return pandas.DataFrame(_lines(values, chosen))


def _lines(values: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    lines = values.get(name)
    return lines if isinstance(lines, list) and all(isinstance(line, dict) for line in lines) else []


def _plain(value: Any) -> Any:
    """Return a cell of which no spreadsheet makes a formula, whatever a model calls its tensors."""
    return (
        f"'{value}"
        if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r"))
        else value
    )


def _nested(value: Any) -> bool:
    return isinstance(value, (dict, list, tuple))
