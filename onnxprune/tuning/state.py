"""Finished members on disk, so that a search that was stopped goes on: a model and a JSON file each.

The folder's name is a key of all that a member depends on: the model, the samples, the metric, the options and the
version. The model is written before its entry, both complete or not at all, so a member is there or it isn't, whenever
the process was killed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnxprune.errors import OutputError
from onnxprune.files.cache import digest_of, key_of
from onnxprune.files.commit import alone, tell, write_text

__all__ = ["State"]

#: Changes where what members are made of changes.
FORMAT = 2
#: What members depend on besides the options, as people call it.
_CALLED = {
    "model": "the model", "calib": "the samples", "eval": "the held-out samples", "metric": "the metric's script",
    "versions": "the versions of libraries", "program": "the version of onnxprune", "machine": "the machine",
}  # fmt: skip


@dataclass(frozen=True)
class State:
    """A folder of members.

    Attributes
    ----------
    folder : Path
    anew : str
        What is another than in the latest search beside it whose members aren't used; empty where this one goes on.
    """

    folder: Path
    anew: str = ""

    @classmethod
    def open(cls, base: Path, facts: Mapping[str, Any]) -> State:
        """Make the folder for a search, or return the one that is there.

        Raises
        ------
        OutputError
            If it can't be made.
        """
        facts = {"format": FORMAT, **facts}
        folder = base / key_of(facts)[:16]
        anew = "" if folder.is_dir() else _different(base, facts)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(
                f"The folder {str(folder)!r} can't be made: {error.strerror or error}."
            ) from error
        tell(folder)
        state = cls(folder, anew)
        if not (folder / "search.json").exists():
            state._write("search", json.dumps(facts, indent=1, default=str))
        return state

    def discard(self) -> None:
        """Remove the folder where nothing is in it yet but what the search is, and what its input was judged."""
        there = list(self.folder.iterdir())
        if {one.name for one in there} <= {"search.json", "input.json"}:
            for one in there:
                one.unlink()
            self.folder.rmdir()
            with suppress(OSError):  # another search's
                self.folder.parent.rmdir()

    def model(self, name: str) -> Path:
        """Return where a member's model goes."""
        return self.folder / f"{name}.onnx"

    def read(self, name: str) -> dict[str, Any] | None:
        """Return a member's entry; None where there is none, or its model isn't the one that was written."""
        try:
            entry = json.loads((self.folder / f"{name}.json").read_text(encoding="utf-8"))
            if entry["sha256"] is not None and digest_of(self.model(name)) != entry["sha256"]:
                return None
            return dict(entry)
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def keep(self, name: str, entry: Mapping[str, Any]) -> dict[str, Any]:
        """Write an entry, whose model has been written before, if it has one."""
        path = self.model(name)
        whole = {**entry, "name": name, "sha256": digest_of(path) if entry.get("made") else None}
        self._write(name, json.dumps(whole))
        return whole

    def _write(self, name: str, text: str) -> None:
        with alone():  # nobody asked for these files: they are told of by their folder
            write_text(self.folder / f"{name}.json", text)


def _different(base: Path, facts: Mapping[str, Any]) -> str:
    """Return the names of what is another than in the latest search of a folder that has members."""
    found = [p for p in base.glob("*/search.json") if len(list(p.parent.glob("*.onnx")))]
    with suppress(OSError, ValueError):
        latest = max(found, key=lambda path: path.stat().st_mtime, default=None)
        if latest is not None:
            new, old = (
                json.loads(json.dumps(facts, default=str)),
                json.loads(latest.read_text(encoding="utf-8")),
            )
            own, theirs = new.pop("options", {}), old.pop("options", {})
            options = [f"--{n.replace('_', '-')}" for n in own if own[n] != theirs.get(n)]
            return ", ".join(
                [*(_CALLED[name] for name in _CALLED if new.get(name) != old.get(name)), *options]
            )
    return ""
