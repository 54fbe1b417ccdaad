"""What `import onnxprune.api` leaves for later: all that only some runs need."""

from __future__ import annotations

import subprocess
import sys

import pytest

#: Module, or package with all that is in it -> what needs it first.
LATER = {
    "IPython": "a notebook",
    "networkx": "drawings of groups",
    "onnx_graphsurgeon": "passes",
    "onnxprune.compression": "compress",
    "onnxprune.fleet": "fleet",
    "onnxprune.gradient": "criteria that read gradients",
    "onnxprune.journey.recipe": "run",
    "onnxprune.proof.verify": "the proof",
    "onnxprune.pruning.explanation": "explain",
    "onnxprune.pruning.inspection": "inspect",
    "onnxprune.report.live": "a line of progress",
    "onnxprune.report.page.pages": "a page",
    "onnxprune.rotation.norms": "a stream that LayerNorm reads",
    "onnxprune.sparsity": "sparsify",
    "onnxprune.tuning": "tune",
    "onnxruntime": "a run",
    "pandas": "to_frame",
    "rich": "tables",
    "tomllib": "recipes, specs",
    "zstandard": "packed files",
}


def loaded(module: str) -> set[str]:
    code = f"import sys; before = set(sys.modules); import {module}; print(*sys.modules.keys() - before)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def early(names: set[str]) -> list[str]:
    return sorted(n for n in names if any(f"{n}.".startswith(f"{later}.") for later in LATER))


def test_the_front_door_loads_what_every_run_needs() -> None:
    names = loaded("onnxprune.api")
    assert "onnxprune.pruning.journey" in names
    assert early(names) == []


@pytest.mark.parametrize("module", ["onnxprune", "onnxprune.version"])
def test_the_package_itself_loads_next_to_nothing(module: str) -> None:
    assert {n for n in loaded(module) if n.startswith(("onnxprune", "onnx", "numpy"))} <= {
        "onnxprune",
        "onnxprune.version",
    }


def test_what_is_early_is_seen() -> None:
    assert early({"onnxprune.report.page", "onnxprune.report.page.pages", "tomllib._parser", "richer"}) == [
        "onnxprune.report.page.pages",
        "tomllib._parser",
    ]
