"""onnxprune: make any ONNX model smaller and faster, exactly, without the framework that trained it.

>>> import onnxprune
>>> result = onnxprune.prune("model.onnx", "small.onnx", ratio=0.5)  # doctest: +SKIP
>>> result.report.show()  # doctest: +SKIP

Everything here is imported when it is first used, so that ``import onnxprune`` costs next to nothing.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from onnxprune.version import __version__ as __version__

if TYPE_CHECKING:
    from onnxprune.api import apply as apply
    from onnxprune.api import compress as compress
    from onnxprune.api import decompress as decompress
    from onnxprune.api import explain as explain
    from onnxprune.api import family as family
    from onnxprune.api import inspect as inspect
    from onnxprune.api import plan as plan
    from onnxprune.api import prune as prune
    from onnxprune.api import run as run
    from onnxprune.api import sensitivity as sensitivity
    from onnxprune.api import sparsify as sparsify
    from onnxprune.api import tune as tune
    from onnxprune.api import verify as verify
    from onnxprune.calibration.reader import reader as reader
    from onnxprune.errors import OnnxPruneError as OnnxPruneError
    from onnxprune.model import Model as Model
    from onnxprune.options.pruning import Options as Options
    from onnxprune.pruning.inspection import Inspection as Inspection
    from onnxprune.pruning.journey import Result as Result
    from onnxprune.pruning.plan import Plan as Plan
    from onnxprune.pruning.report import Report as Report

# Read by onnxruntime when it is first imported. It would ask the network for Microsoft's server on every run, and write
# into the home folder; whoever wants that sets 0.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

_HOME = {
    "prune": "api",
    "reader": "calibration.reader",
    "plan": "api",
    "apply": "api",
    "verify": "api",
    "compress": "api",
    "decompress": "api",
    "explain": "api",
    "family": "api",
    "inspect": "api",
    "run": "api",
    "sensitivity": "api",
    "sparsify": "api",
    "tune": "api",
    "Inspection": "pruning.inspection",
    "Model": "model",
    "OnnxPruneError": "errors",
    "Options": "options.pruning",
    "Plan": "pruning.plan",
    "Report": "pruning.report",
    "Result": "pruning.journey",
}

__all__ = [
    "Inspection",
    "Model",
    "OnnxPruneError",
    "Options",
    "Plan",
    "Report",
    "Result",
    "apply",
    "compress",
    "decompress",
    "explain",
    "family",
    "inspect",
    "plan",
    "prune",
    "reader",
    "run",
    "sensitivity",
    "sparsify",
    "tune",
    "verify",
]


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name == "api":  # the functions that make several models, or none, are there alone
        return import_module("onnxprune.api")
    if name not in _HOME:
        raise AttributeError(f"module 'onnxprune' has no attribute {name!r}")
    value = getattr(import_module(f"onnxprune.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
