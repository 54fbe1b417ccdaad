"""Olive: the passes in a real workflow, where it is installed (``pip install ".[pipelines]"``)."""

import subprocess
import sys
from pathlib import Path

import pytest

from onnxprune.options.declare import specs
from onnxprune.options.pruning import Options

ROOT = Path(__file__).resolve().parents[2]


def test_without_olive_one_sentence_says_what_to_install() -> None:
    code = "import sys; sys.modules['olive'] = None; import onnxprune.integrations.olive"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, encoding="utf-8", cwd=ROOT, check=False
    )
    assert "pip install olive-ai" in done.stderr.splitlines()[-1]


def test_a_pass_takes_our_options_by_their_names() -> None:
    pytest.importorskip("olive")
    from onnxprune.integrations.olive import OnnxPrune, package_config

    config = OnnxPrune._default_config(None)
    assert {spec.name for spec in specs(Options)} - {"in_place"} <= set(config)
    passes = package_config()["passes"]
    assert passes["OnnxPrune"]["module_path"] == "onnxprune.integrations.olive.OnnxPrune"
    assert "OnnxDynamicQuantization" in passes
