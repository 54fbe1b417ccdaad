"""Measurements on disk, so that a machine is measured once: one JSON file for each key, written whole or not at all.

The folder is the platform's for caches, or what the environment variable ``ONNXPRUNE_CACHE`` names. What can't be read,
whatever the reason, is as if it weren't there.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from onnxprune.errors import OutputError
from onnxprune.files.commit import alone, write_text

__all__ = ["digest_of", "folder", "key_of", "machine", "read", "write"]

#: A larger file isn't one of ours.
MOST_BYTES = 1 << 28


def folder() -> Path:
    """Return the folder of the cache; it needn't exist."""
    if given := os.environ.get("ONNXPRUNE_CACHE"):
        return Path(given)
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "onnxprune"


@cache
def machine() -> str:
    """Return what tells this machine's processor from others."""
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    return f"{platform.system()} {platform.machine()} {name} x{os.cpu_count()}"


def key_of(facts: Mapping[str, Any]) -> str:
    """Return a key for facts; they must be JSON values."""
    return _hash(facts)[:32]


def digest_of(given: Any) -> Any:
    """Return what tells a file or folder from others; what is given in another form only its kind.

    A script may be followed by the name of a function.
    """
    if not isinstance(given, (str, os.PathLike)):
        return type(given).__name__
    head, colon, name = str(given).rpartition(":")
    path, more = (Path(head), name) if colon and head.endswith(".py") else (Path(given), "")
    if not path.exists():
        return str(given)
    digest = hashlib.sha256(more.encode())
    for file in sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]:
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def read(kind: str, facts: Mapping[str, Any]) -> Any:
    """Return what was written for these facts; None where there is nothing, or not just what was written."""
    try:
        path = folder() / kind / f"{key_of(facts)}.json"
        if not path.is_file() or path.stat().st_size > MOST_BYTES:
            return None
        entry = json.loads(path.read_text(encoding="utf-8"))
        whole = entry["facts"] == json.loads(json.dumps(facts)) and entry["sha256"] == _hash(entry["value"])
        return entry["value"] if whole else None
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        RuntimeError,
    ):  # RuntimeError: no home, or nested too deeply
        return None


def write(kind: str, facts: Mapping[str, Any], value: Any) -> None:
    """Keep a JSON value for these facts; where the disk doesn't let it, nothing happens."""
    with contextlib.suppress(OSError, RuntimeError, OutputError), alone():
        path = folder() / kind / f"{key_of(facts)}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not path.is_file():
            path.unlink()  # a pipe in the cache's own folder: writing through it would wait for a reader
        write_text(path, json.dumps({"facts": facts, "value": value, "sha256": _hash(value)}))
