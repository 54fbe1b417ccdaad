"""What every report says of its run, and how reports are written: as JSON or as a page, complete or not at all."""

from __future__ import annotations

import io
import json
import os
import platform
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from onnxprune.files.beside import refuse_data
from onnxprune.files.commit import write_text
from onnxprune.report.forms import form_of, frame, markdown, table_csv
from onnxprune.report.page.words import middle
from onnxprune.report.printing import clean

__all__ = ["Facts", "Record", "Shown", "dumps", "versions"]


class Shown(ABC):
    """What is told in a few words by its `repr`."""

    @abstractmethod
    def brief(self) -> str:
        """Return what matters most in a few words."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {clean(self.brief())}>"


class Facts(Shown):
    """What a command finds out: JSON for programs, tables for people, and a part of the page for notebooks."""

    @abstractmethod
    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""

    @abstractmethod
    def show(self, stream: TextIO | None = None) -> None:
        """Print tables."""

    def dumps(self) -> str:
        """Return JSON text."""
        return dumps(self.to_json())

    def to_frame(self, table: str | None = None) -> Any:
        """Return one of the tables as a pandas DataFrame.

        Parameters
        ----------
        table : str, optional
            A key of `to_json` that holds a list of lines, such as ``"groups"`` or ``"frozen"``; the first one of
            ``groups``, ``tensors``, ``layers`` and so on by default.

        Raises
        ------
        UsageError
            If there is no such table, or pandas isn't installed.
        """
        return frame(self.to_json(), table)

    def _repr_html_(self) -> str:
        """Return what a notebook shows."""
        from onnxprune.report.page.notebook import as_text

        stream = io.StringIO()
        self.show(stream)
        return as_text(stream.getvalue())


@dataclass(kw_only=True, repr=False)
class Record(Facts):
    """What a run did, to which file, and how to do it again.

    Attributes
    ----------
    files, command, created : dict, str, str
        Names of ``input`` and ``output`` where they are files, the command line where there was one, and when (UTC).
    options : dict
    notes : list of str
    sha256 : dict
        ``input`` and ``output``.
    seconds : dict
        Stage -> wall-clock time.
    """

    files: dict[str, str] = field(default_factory=dict)
    command: str = ""
    created: str = field(default_factory=lambda: time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))
    options: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    sha256: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def named(self, text: str) -> str:
        """Return a text after the names of the files, as far as they are known."""
        names = " -> ".join(middle(self.files[key], 40) for key in ("input", "output") if key in self.files)
        return f"{names}: {text}" if names else text

    def run_facts(self) -> dict[str, Any]:
        """Return what is needed to do it again, as plain JSON values."""
        return {
            "files": self.files,
            "command": self.command,
            "created": self.created,
            "options": self.options,
            "sha256": self.sha256,
            "versions": versions(),
            "seconds": {name: round(seconds, 4) for name, seconds in self.seconds.items()},
        }

    def name_files(self, source: Path | None, output: Path | None) -> None:
        """Keep the names of the input and the output, where they are files."""
        paths = {"input": source, "output": output}
        self.files = {which: path.name for which, path in paths.items() if path is not None}

    @abstractmethod
    def page(self) -> str:
        """Return the report as a page to look at: HTML that needs nothing else."""

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the report, complete or not at all, in the form that the name asks for; see `onnxprune.report.forms`.

        Raises
        ------
        UsageError
            If there is no such form.
        OutputError
            If the file can't be written.
        """
        refuse_data(Path(path), repr(str(path)), for_model=False)
        write_text(Path(path), self.text_as(form_of(path)))

    def text_as(self, form: str) -> str:
        """Return the report as ``json``, as a page (``html``), as it is printed (``md``), or its table (``csv``)."""
        if form == "html":
            return self.page()
        if form == "md":
            stream = io.StringIO()
            self.show(stream)
            return markdown(self.files.get("input", "model"), stream.getvalue())
        return table_csv(self.to_json()) if form == "csv" else self.dumps()


def dumps(values: Mapping[str, Any]) -> str:
    """Return JSON with a line for each entry of each list, so that it can be read and compared.

    Examples
    --------
    >>> print(dumps({"a": [{"b": [1, 2]}, {"b": []}], "c": {"d": 1}}), end="")
    {
    "a": [
     {"b": [1, 2]},
     {"b": []}],
    "c": {"d": 1}}
    """
    lines = []
    for key, value in values.items():
        text = json.dumps(value, allow_nan=False, ensure_ascii=False)
        if isinstance(value, list) and any(isinstance(entry, (dict, list)) for entry in value):
            entries = (json.dumps(entry, allow_nan=False, ensure_ascii=False) for entry in value)
            text = "[\n " + ",\n ".join(entries) + "]"
        lines.append(f"{json.dumps(key)}: {text}")
    return "{\n" + ",\n".join(lines) + "}\n"


def versions() -> dict[str, str]:
    """Return the versions that a result may depend on."""
    from importlib.metadata import PackageNotFoundError, version

    import onnx

    from onnxprune.version import __version__

    try:
        runtime = version("onnxruntime")
    except PackageNotFoundError:  # a build of another name, such as onnxruntime-gpu
        runtime = "unknown"
    return {
        "onnxprune": __version__,
        "onnx": onnx.__version__,
        "onnxruntime": runtime,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }
