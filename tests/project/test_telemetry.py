"""onnxruntime asks no server and writes nothing into the home folder, unless the user wants that."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from two_layers import two_layers

RUN = "import sys; from onnxprune import cli; sys.exit(cli.main(sys.argv[1:]))"
IMPORTS = [
    "onnxprune",
    "onnxprune.cli",
    "onnxprune.runtime.session",
    "onnxprune.files.commit",
    "onnxprune.passes.shrink",
]


def home(folder: Path, **more: str) -> dict[str, str]:
    """An environment with a home folder of its own, and without what switches telemetry."""
    (folder / "home").mkdir()
    plain = {k: v for k, v in os.environ.items() if k != "ORT_DISABLE_TELEMETRY" and not k.startswith("XDG_")}
    return {**plain, "HOME": str(folder / "home"), "PYTHONDONTWRITEBYTECODE": "1", **more}


@pytest.mark.parametrize("name", IMPORTS)
@pytest.mark.parametrize("given", [None, "0", ""])
def test_it_is_off_whatever_is_imported_first(name: str, given: str | None, tmp_path: Path) -> None:
    more = {} if given is None else {"ORT_DISABLE_TELEMETRY": given}
    code = f"import {name}, os; print(repr(os.environ['ORT_DISABLE_TELEMETRY']))"
    found = subprocess.run(
        [sys.executable, "-c", code], env=home(tmp_path, **more), capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == repr("1" if given is None else given)


def test_a_run_writes_nothing_into_the_home_folder_and_connects_to_nothing(tmp_path: Path) -> None:
    source = two_layers(tmp_path / "in")
    line = [sys.executable, "-c", RUN, "prune", str(source), str(tmp_path / "o.onnx"), "--ratio", "0.5", "-q"]
    trace = tmp_path / "trace"
    if shutil.which("strace"):
        line = ["strace", "-f", "-qq", "-e", "trace=socket,connect,sendto,sendmsg", "-o", str(trace), *line]
    subprocess.run(line, env=home(tmp_path), check=True, capture_output=True)
    assert (tmp_path / "o.onnx").exists()
    assert [p for p in (tmp_path / "home").rglob("*") if p.is_file()] == []
    if trace.exists():
        assert [text for text in trace.read_text().splitlines() if "AF_INET" in text] == []
