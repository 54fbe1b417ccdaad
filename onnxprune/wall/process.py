"""Functions of the front door behind the wall, for who calls them from Python on models that may be hostile.

>>> from onnxprune.wall.process import call
>>> call(onnxprune.prune, "model.onnx", "small.onnx", ratio=0.5, max_memory=4e9)  # doctest: +SKIP

The function runs in a new process, whose crash, hang or hunger becomes the error that the command line would show. What
goes there and what comes back is pickled, so give paths rather than models.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from onnxprune.errors import OnnxPruneError
from onnxprune.wall import board as wall
from onnxprune.wall import watch

__all__ = ["call", "serve"]

P = ParamSpec("P")
T = TypeVar("T")

_START = "import sys; from onnxprune.wall.process import serve; sys.exit(serve(sys.argv[1]))"


def call(
    function: Callable[..., T],
    *args: Any,
    max_memory: float | None = None,
    max_seconds: float | None = None,
    heard: Callable[[str], None] | None = None,
    **fields: Any,
) -> T:
    """Call a function in a process of its own, under limits.

    Parameters
    ----------
    function : callable
        Such as `onnxprune.prune`; it is found by its name there.
    *args, **fields
        Its arguments.
    max_memory, max_seconds : float, optional
        Bytes, and seconds of one step in a library; see ``--max-memory`` and ``--max-seconds``. By default they grow
        with the model. They hold on Linux; elsewhere the process of its own is all there is.
    heard : callable, optional
        Is given each line that the process has written to standard error, at its end.

    Raises
    ------
    OnnxPruneError
        What the function raises, or what the wall says.
    """
    with tempfile.TemporaryDirectory(prefix="onnxprune-") as folder, wall.litter(folder):
        place = Path(folder, "call")
        place.write_bytes(pickle.dumps((function, args, fields, max_memory, max_seconds)))
        paths = os.pathsep.join(path for path in sys.path if path)
        done = subprocess.run(
            [sys.executable, "-c", _START, str(place)],
            stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False, env={**os.environ, "PYTHONPATH": paths},
        )  # fmt: skip
        text, mark, sentence = done.stderr.decode("utf-8", "replace").rpartition("onnxprune: error: ")
        if heard is not None:
            text, sentence = (text, sentence) if mark else (sentence, "")
            for line in text.splitlines():
                heard(line)
        answer = Path(folder, "answer")
        if answer.exists() and done.returncode == 0:
            value, error = pickle.loads(answer.read_bytes())
            if error is not None:
                raise error
            return value  # type: ignore[no-any-return]
    kinds = {kind.exit_code: kind for kind in OnnxPruneError.__subclasses__()}
    raise kinds.get(done.returncode, OnnxPruneError)(
        sentence.strip() or f"The process ended with {done.returncode}."
    )


def serve(place: str) -> int:
    """Do what `call` asks for; the exit code."""
    code = watch.guard()
    if code is not None:
        return code
    function, args, fields, max_memory, max_seconds = pickle.loads(Path(place).read_bytes())
    wall.limit(max_memory, max_seconds)
    outcome: tuple[Any, Any]
    try:
        outcome = (function(*args, **fields), None)
    except Exception as error:  # whatever it is, the caller gets it
        error.__cause__ = error.__context__ = None
        outcome = (None, error)
    answer = Path(place).with_name("answer")
    with contextlib.ExitStack() as stack:
        stack.callback(wall.finish, 0)
        answer.write_bytes(pickle.dumps(outcome))
    return 0
