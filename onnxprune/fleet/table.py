"""The table of a fleet: a row for each job, which is also what a fleet that is started again reads."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from onnxprune.errors import OutputError
from onnxprune.files.commit import together
from onnxprune.fleet.work import DONE
from onnxprune.report.printing import printed_on
from onnxprune.report.record import Facts, dumps
from onnxprune.report.table import amount, share, show

__all__ = ["FleetTable"]

FORMAT = 1
#: The columns of the CSV file, and so what a program can rely on.
COLUMNS = (
    "name", "model", "target", "status", "exit_code", "error", "parameters_before", "parameters_after", "macs_before",
    "macs_after", "bytes_before", "bytes_after", "law1", "relative_error", "agreement", "output", "sha256", "seconds",
    "key",
)  # fmt: skip


def _rows(values: Any) -> list[dict[str, Any]]:
    """Return the rows of what was read.

    Raises
    ------
    ValueError
        If it is no table.
    """
    if not isinstance(values, dict) or "format" not in values:
        raise ValueError("it says no format")
    if values["format"] != FORMAT:
        raise ValueError(f"its format is {values['format']!r}, and this version reads {FORMAT}")
    rows = values.get("rows")
    if not isinstance(rows, list):
        raise ValueError("it has no list of rows")
    for number, row in enumerate(rows, 1):
        lost = COLUMNS if not isinstance(row, dict) else [name for name in COLUMNS if name not in row]
        if lost:
            raise ValueError(f"its row {number} has no {lost[0]!r}")
    return rows


@dataclass(repr=False)
class FleetTable(Facts):
    """What came of each job.

    Attributes
    ----------
    folder : Path
        Of all results; ``fleet.json`` and ``fleet.csv`` in it are the table.
    rows : dict
        Name -> row, see `COLUMNS`.
    names : list of str
        The jobs of this run; rows of others are kept in the table.
    notes : list of str
        What there is to say of this run.
    """

    folder: Path
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @classmethod
    def open(cls, folder: Path) -> FleetTable:
        """Read the table that is there, if one is.

        Raises
        ------
        OutputError
            If what is there is no table.
        """
        path = folder / "fleet.json"
        try:
            rows = _rows(json.loads(path.read_text(encoding="utf-8")))
            return cls(folder, {str(row["name"]): {name: row[name] for name in COLUMNS} for row in rows})
        except FileNotFoundError:
            return cls(folder)
        except (OSError, ValueError, RecursionError) as error:
            raise OutputError(
                f"{str(path)!r} is no table of a fleet ({error}); give another folder, or remove it."
            ) from error

    def keep(self, row: Mapping[str, Any]) -> None:
        """Put a row into the table, and write it."""
        self.rows[row["name"]] = {name: row.get(name) for name in COLUMNS}
        self.write()

    def write(self) -> None:
        """Write both files, complete or not at all."""
        stream = io.StringIO()
        writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows[name] for name in sorted(self.rows))
        with together() as files:
            files.text(self.folder / "fleet.json", self.dumps())
            files.text(self.folder / "fleet.csv", stream.getvalue())

    @property
    def failed(self) -> list[dict[str, Any]]:
        """The rows of this run's jobs that aren't done."""
        return [self.rows[n] for n in self.names if n in self.rows and self.rows[n]["status"] != DONE]

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {"format": FORMAT, "rows": [self.rows[name] for name in sorted(self.rows)]}

    def dumps(self) -> str:
        """Return JSON text, a line for each row."""
        return dumps(self.to_json())

    def brief(self) -> str:
        """Return how many jobs this run had, and how many failed."""
        return f"{len(self.names):,} models in {str(self.folder)!r}, {len(self.failed):,} of them not done"

    def show(self, stream: TextIO | None = None) -> None:
        """Print a line for each job of this run, what failed with its reason, and how many there are of each."""
        stream = printed_on(stream)
        rows = [self.rows[n] for n in self.names if n in self.rows]

        def cells(row: Mapping[str, Any]) -> list[str]:
            left = [share(row[f"{n}_after"], row[f"{n}_before"]) for n in ("parameters", "macs")]
            return [row["name"], row["status"], *left, amount(row["bytes_after"])]

        show(["model", "", "parameters", "MACs", "bytes"], [cells(r) for r in rows], stream=stream, left=2)
        for row in self.failed:
            print(f"{row['name']}: {row['error']}", file=stream)
        for note in self.notes:
            print(note, file=stream)
        count = Counter(row["status"] for row in rows)
        print(", ".join(f"{number} {status}" for status, number in sorted(count.items())), file=stream)
