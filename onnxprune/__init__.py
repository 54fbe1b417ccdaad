"""onnxprune: make any ONNX model smaller and faster, exactly, without the framework that trained it.

>>> import onnxprune
>>> result = onnxprune.prune("model.onnx", "small.onnx", ratio=0.5)  # doctest: +SKIP
>>> result.report.show()  # doctest: +SKIP

Everything here is imported when it is first used, so that ``import onnxprune`` costs next to nothing.
"""

from __future__ import annotations

import os
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onnxprune.api import apply as apply
    from onnxprune.api import explain as explain
    from onnxprune.api import inspect as inspect
    from onnxprune.api import plan as plan
    from onnxprune.api import prune as prune
    from onnxprune.api import run as run
    from onnxprune.api import verify as verify
    from onnxprune.errors import OnnxPruneError as OnnxPruneError
    from onnxprune.inspection import Inspection as Inspection
    from onnxprune.model import Model as Model
    from onnxprune.options import Options as Options
    from onnxprune.pipeline import Result as Result
    from onnxprune.plan import Plan as Plan
    from onnxprune.report import Report as Report
    from onnxprune.sparse.front import sparsify as sparsify

# Read by onnxruntime when it is first imported. It would ask the network for Microsoft's server on every run, and write
# into the home folder; whoever wants that sets 0.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__version__ = "0.1.0"

_HOME = {
    "prune": "api",
    "plan": "api",
    "apply": "api",
    "verify": "api",
    "explain": "api",
    "inspect": "api",
    "run": "api",
    "sparsify": "sparse.front",
    "Inspection": "inspection",
    "Model": "model",
    "OnnxPruneError": "errors",
    "Options": "options",
    "Plan": "plan",
    "Report": "report",
    "Result": "pipeline",
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
    "explain",
    "inspect",
    "plan",
    "prune",
    "run",
    "sparsify",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'onnxprune' has no attribute {name!r}")
    from importlib import import_module

    found = getattr(import_module(f"onnxprune.{_HOME[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted(__all__)


class _Package(ModuleType):
    """``onnxprune.plan`` is a function.

    There is a module of the same name inside, and importing it would put it in the function's place.
    (``from onnxprune.plan import Plan`` reaches the module all the same.)
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if not (isinstance(value, ModuleType) and name in _HOME):
            super().__setattr__(name, value)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle by name, as what pickles modules (cloudpickle; so dask, ray) does with plain ones."""
        from importlib import import_module

        return import_module, (self.__name__,)


sys.modules[__name__].__class__ = _Package
