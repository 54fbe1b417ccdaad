"""Run a command under a time and a memory limit and measure its peak memory. POSIX only."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

GIB = 1 << 30


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
