"""Damaged models: some of the cases of `benchmarks/fuzz.py`, with a fixed seed; and a run that must fail."""

import subprocess
import sys
from pathlib import Path

import pytest

FUZZ = Path(__file__).resolve().parents[2] / "benchmarks" / "fuzz.py"


def fuzz(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(FUZZ), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=1200, check=False)


@pytest.mark.skipif(sys.platform != "linux", reason="cases are forked, and walled, on Linux")
def test_damaged_models_end_in_a_result_or_a_sentence() -> None:
    done = fuzz("--cases", "240", "--seed", "7", "--jobs", "1")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    assert "240 cases" in done.stdout
    assert "; 0 wrong" in done.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="cases are forked, and walled, on Linux")
def test_a_command_that_fails_is_seen() -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import fuzz\n"
        "def broken(): raise RuntimeError('broken on purpose')\n"
        "fuzz.command_line = broken\n"
        "sys.exit(fuzz.main(['--cases', '8', '--jobs', '1']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(FUZZ.parent)],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 1
    assert "8 wrong" in done.stdout
