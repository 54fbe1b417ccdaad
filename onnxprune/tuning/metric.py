"""What models are judged by: the accuracy on labelled samples, or a function of the user's own."""

from __future__ import annotations

import importlib.util
import inspect
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from onnxprune.calibration.agreement import outputs
from onnxprune.calibration.labels import check_labels
from onnxprune.calibration.samples import Samples
from onnxprune.errors import CalibrationError, OnnxPruneError, UsageError
from onnxprune.model import Model
from onnxprune.wall import board as wall
from onnxprune.wall.process import call

__all__ = ["Accuracy", "Metric", "Score", "Script", "script_of"]

_log = logging.getLogger("onnxprune.tuning")

#: Seconds that a metric may take where nobody said how long the search may.
LONGEST = 3600.0


@dataclass(frozen=True)
class Score:
    """What a metric says of one model.

    Attributes
    ----------
    value : float
    items : list of float or None
        The same of each item, where it says so; their mean is the value.
    seconds : float
        That it took.
    """

    value: float
    items: list[float] | None = None
    seconds: float = 0.0


class Metric(Protocol):
    """What models are judged by."""

    @property
    def name(self) -> str:
        """What it is called in tables."""

    def of(self, path: Path) -> Score:
        """Judge a model."""


@dataclass
class Accuracy:
    """The share of samples whose first class is the label, in points.

    Attributes
    ----------
    samples : Samples
        With labels; no fit sees them.
    """

    samples: Samples
    name: str = "accuracy"
    _checked: bool = False

    def of(self, path: Path) -> Score:
        """Judge a model; the first is the original, which the labels are held against.

        Raises
        ------
        CalibrationError
            If the outputs aren't classes, or the labels are no classes of the model's.
        """
        start, labels = time.perf_counter(), np.asarray(self.samples.labels)
        given = outputs(Model.load(path), self.samples)
        if not self._checked:
            doubts = check_labels(given, labels)
            if doubts:
                text = doubts[0].partition(": no accuracy")[0]
                raise CalibrationError(
                    f"No accuracy can be measured: {text}; give the labels of this model's classes, or judge by a "
                    "function of yours with --metric."
                )
            self._checked = True
        hits = _hits(given, labels)
        return Score(
            100 * float(hits.mean()), [100.0 * float(hit) for hit in hits], time.perf_counter() - start
        )


def _hits(given: NDArray[Any], labels: NDArray[Any]) -> NDArray[np.bool_]:
    """Return for each sample whether the model is right."""
    if given.dtype.kind == "f":
        return np.asarray(given.reshape(len(given), -1).argmax(axis=1) == labels.reshape(len(given)))
    if labels.size != given.size:
        raise CalibrationError(
            f"No accuracy can be measured: there are {labels.size} labels for {given.size} outputs of the model."
        )
    return np.asarray(given.reshape(-1) == labels.reshape(-1))


@dataclass
class Script:
    """A function of a script, called in a process of its own for each model.

    Attributes
    ----------
    script : Path
    function : str
    longest : float
        Seconds that a call may take.
    """

    script: Path
    function: str
    longest: float = LONGEST

    @property
    def name(self) -> str:
        """What it is called in tables."""
        return self.function

    def of(self, path: Path) -> Score:
        """Judge a model.

        Raises
        ------
        UsageError
            If the function fails, ends its process, takes too long, returns no number, or changes the model's file; a
            sentence says which.
        """
        start, said = time.perf_counter(), f"--metric {self.script}:{self.function}"
        before, printed = _state_of(path), _Printed()
        try:
            kind, value = call(
                evaluated, str(self.script), self.function, str(path), self.longest, heard=printed.tell,
                max_memory=wall.allowed(),  # what it holds is the user's own, however small the model is
            )  # fmt: skip
        except OnnxPruneError as error:
            if time.perf_counter() - start >= self.longest:
                raise UsageError(
                    f"{said} takes longer than {self.longest:.0f} s for one model; judge on fewer items, or give more "
                    "--minutes."
                ) from error
            raise UsageError(
                f"{said} ends its process before it returns a number: {str(error).rstrip('.')}{printed.hint}."
            ) from error
        if _state_of(path) != before:
            raise UsageError(
                f"{said} changes or removes the file that it is given, {str(path)!r}; let it work on a copy."
            )
        if kind != "number":
            raise UsageError(f"{said} {value}{printed.hint}.")
        items = [float(v) for v in value] if isinstance(value, list) else None
        mean = float(np.mean(items)) if items else float(value)
        return Score(mean, items, time.perf_counter() - start)


class _Printed:
    """What a metric prints: told with -v, and where it fails without, that there is something."""

    hint: str = ""

    def tell(self, line: str) -> None:
        _log.info("%s", line)
        if not _log.isEnabledFor(logging.INFO):
            self.hint = "; -v shows what it prints"


def _state_of(path: Path) -> tuple[int, ...]:
    """Return what changes with a file; nothing of one that isn't there."""
    try:
        seen = path.stat()
    except OSError:
        return ()
    return seen.st_ino, seen.st_size, seen.st_mtime_ns


def script_of(text: str, longest: float | None) -> Script:
    """Return the metric that ``script.py:function`` names; the function is ``evaluate`` where it names none.

    Raises
    ------
    UsageError
        If there is no such file.
    """
    head, colon, name = text.rpartition(":")
    path, function = (head, name) if colon and head.endswith(".py") else (text, "evaluate")
    if not path.endswith(".py") or not function:
        raise UsageError(
            f"--metric must name a function of a script, as in script.py:evaluate; got {text!r}."
        )
    if not Path(path).is_file():
        raise UsageError(f"--metric names a function of {path!r}, but there is no such file; check its path.")
    return Script(Path(path).absolute(), function, LONGEST if longest is None else longest)


def evaluated(script: str, name: str, model: str, longest: float) -> tuple[str, Any]:
    """Call a script's function on a model, in this process; return ``number`` and what it gives, or ``fault`` and why.

    What it prints goes to standard error, and after so many seconds the process ends.
    """
    sys.stdout.flush()
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, longest)
    sys.path.insert(0, str(Path(script).parent))
    with wall.stage("The metric", times=1e9, code=UsageError.exit_code):  # the user's own time
        return answer(script, name, model)


def answer(script: str, name: str, model: str) -> tuple[str, Any]:
    """Return what `evaluated` does, whatever the script does but end the process."""
    try:
        return _number(_function(script, name)(model))
    except _Absent:
        return "fault", f"names no function: {script!r} has no {name}()"
    except SystemExit as ended:
        return "fault", f"ends its process (sys.exit({ended.code!r})) instead of returning a number"
    except BaseException as error:  # anything can go wrong in a user's script
        return "fault", f"fails with {type(error).__name__}: {' '.join(str(error).split())[:300]}" + (
            " (it is called with the model's path; a parameter named session is given onnxruntime's session)"
            if isinstance(error, AttributeError) and error.obj is model
            else ""
        )


class _Absent(Exception):
    """A script has no function of a name."""


def _function(script: str, name: str) -> Callable[[str], Any]:
    """Return a script's function, of a path; a session is opened for one whose argument is called so."""
    spec = importlib.util.spec_from_file_location(f"onnxprune_metric_{Path(script).stem}", script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    function: Any = getattr(module, name, None)
    if not callable(function):
        raise _Absent
    if inspect.isclass(function) and any("__call__" in vars(base) for base in function.__mro__):
        function = function()  # what is called is an instance
    taken = next(iter(inspect.signature(function).parameters.values()), None)
    said = "" if taken is None else f"{taken.name} {taken.annotation}".lower()
    if "sess" not in said:
        return function  # type: ignore[no-any-return]

    def of_session(path: str) -> Any:
        import onnxruntime as ort

        return function(ort.InferenceSession(path, providers=["CPUExecutionProvider"]))

    return of_session


def _number(value: Any) -> tuple[str, Any]:
    """Return what a function gave as a number, or as one for each item."""
    if value is None:
        return "fault", "returns nothing; it must return a number"
    if isinstance(value, tuple):  # (accuracy, loss), (score, count): their mean says nothing
        return "fault", (
            "returns a tuple; it must return the one number that models are judged by, or a list of one for each item"
        )
    value = list(value) if isinstance(value, Iterator) else value
    try:
        given = np.asarray(value.detach().cpu() if hasattr(value, "detach") else value)
        if given.dtype.kind in "USMmc" or (
            given.ndim == 0 and given.dtype.kind == "b"
        ):  # of items: right or wrong
            raise TypeError
        array = given.astype(np.float64)
    except (TypeError, ValueError):
        return "fault", f"returns {value!r:.40}, a {type(value).__name__}; it must return a real number"
    if array.ndim > 1 or (array.ndim == 1 and not array.size):
        return "fault", (
            f"returns an array of shape {list(array.shape)}; it must return a number, or one number for each item"
        )
    if not np.isfinite(array).all():
        return "fault", "returns NaN or infinity; it must return a finite number"
    if array.ndim == 0 or array.size == 1:
        return "number", float(array.reshape(()))
    return "number", array.tolist()
