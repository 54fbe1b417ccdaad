"""What the benchmarks share: processes under limits, figures that several runs add to, data that scores models.

POSIX only, and the standard library only: rivals are run by other interpreters.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

GIB = 1 << 30
#: onnxsim's structured pruning, for its own interpreter.
RIVAL = Path(__file__).resolve().parent / "accuracy" / "pruning_rival.py"
Row = dict[str, Any]


@dataclass(frozen=True)
class Result:
    """Exit code (negative: signal; None: over the limit), seconds, peak resident MiB, the end of stderr."""

    code: int | None
    seconds: float
    peak_mib: float
    stderr: str

    @property
    def reason(self) -> str:
        """One line that says why it failed: the last line of stderr."""
        if self.code is None:
            return f"over the time limit after {self.seconds:.0f} s"
        lines = [line.strip() for line in self.stderr.splitlines() if line.strip()]
        return f"exit {self.code}: {lines[-1] if lines else 'no message'}"


def run_limited(command: list[str], timeout: float, memory_gib: float, cwd: Path | None = None) -> Result:
    """Run `command`; its address space is limited to `memory_gib`, its wall time to `timeout` seconds."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (int(memory_gib * GIB), int(memory_gib * GIB)))

    with tempfile.TemporaryFile() as stderr:
        start = time.monotonic()
        child = subprocess.Popen(
            command,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            preexec_fn=limit,
            cwd=cwd,
            start_new_session=True,
        )
        pause, status, usage, late = 0.01, 0, None, False
        while usage is None:
            pid, status, used = os.wait4(child.pid, 0 if late else os.WNOHANG)
            if pid:
                usage = used
            elif time.monotonic() - start > timeout:
                os.killpg(child.pid, signal.SIGKILL)
                late = True
            else:
                time.sleep(pause)
        seconds = time.monotonic() - start
        child.returncode = os.waitstatus_to_exitcode(status)
        stderr.seek(0, os.SEEK_END)
        stderr.seek(max(0, stderr.tell() - 4000))
        text = stderr.read().decode(errors="replace")
    unit = 1 << 20 if sys.platform == "darwin" else 1 << 10  # ru_maxrss: bytes there, KiB here
    return Result(None if late else child.returncode, seconds, usage.ru_maxrss / unit, text)


def command(*parts: object, folder: Path | None = None, **env: str) -> str:
    text = [str(p) for p in parts]
    done = subprocess.run(
        text, capture_output=True, text=True, cwd=folder, env={**os.environ, **env}, check=False
    )
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        raise RuntimeError(f"{' '.join(text)}: {last[0]}")
    return done.stdout


class Store:
    """Figures of rows in a file that several runs may add to."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> dict[str, Row]:
        rows: dict[str, Row] = json.loads(self.path.read_text()) if self.path.exists() else {}
        return rows

    def add(self, key: str, row: Row) -> None:
        with open(self.path.with_suffix(".lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            text = json.dumps({**self.read(), key: row}, indent=1)
            part = self.path.with_suffix(".part")
            part.write_text(text)
            part.replace(self.path)

    def fill(self, key: str, measure: Callable[[], Row], *, again: bool) -> None:
        """Measure a row unless it is there; what fails leaves its error, and is tried again next time."""
        if not again and "error" not in self.read().get(key, {"error": ""}):
            return
        try:
            row = measure()
        except RuntimeError as error:
            row = {"error": str(error)[-300:]}
        self.add(key, row)


def scores(row: Row) -> str:
    """Return the scores of a row as text."""
    return ", ".join(f"{k} {v:.4f}" if isinstance(v, float) else f"{k} {v}" for k, v in row["score"].items())


def table_parser(text: str | None) -> argparse.ArgumentParser:
    """Return a parser of what every table of scored models takes."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--python", default=sys.executable, help="runs calib.py and eval.py")
    parser.add_argument("--rival-python", help="has onnxsim >= 0.8")
    parser.add_argument("--rows", default="", metavar="REGEX", help="measure matching rows only")
    parser.add_argument("--table", action="store_true", help="print all figures there are")
    return parser


class Data:
    """A folder with models/NAME.onnx, ``calib.py NAME OUT.npz`` and ``eval.py NAME PATH``, which prints scores as JSON.

    Attributes
    ----------
    data, work : Path
        The folder, and the one for results; it is made.
    python : str
        The interpreter that has what the two programs need.
    """

    def __init__(self, data: Path, work: Path, python: str) -> None:
        self.data, self.work, self.python = data.resolve(), work.resolve(), python
        self.work.mkdir(parents=True, exist_ok=True)

    def score(self, name: str, path: Path) -> Row:
        """Score a model on the samples that `samples` doesn't take."""
        odd = (
            {} if "cifar10" in name else {"EVAL_HALF": "odd"}
        )  # elsewhere calib.py takes those with even index
        row: Row = json.loads(command(self.python, "eval.py", name, path, folder=self.data, **odd))
        return row

    def samples(self, name: str) -> Path:
        """Return the unlabelled samples of a model."""
        path = self.work / f"{name}.npz"
        if not path.exists():
            command(self.python, "calib.py", name, path, folder=self.data)
        return path
