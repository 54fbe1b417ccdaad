"""One model on its way through a journey: what was asked, how long each stage took, what is to be told."""

from __future__ import annotations

import contextlib
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Generic, Self, TypeVar

from onnxprune.errors import ModelError
from onnxprune.files import foreign
from onnxprune.files.reading import rely
from onnxprune.journey.output import refuse_sides
from onnxprune.model import Model
from onnxprune.options.declare import SharedOptions

__all__ = ["Progress", "Run", "Source"]

Source = foreign.Source | Model
Progress = Callable[[str], None]
AnyOptions = TypeVar("AnyOptions", bound=SharedOptions)


@dataclass
class Run(Generic[AnyOptions]):
    """What every journey has.

    Attributes
    ----------
    options : SharedOptions
        Of the journey's own kind.
    model : Model
        The input, as it is.
    progress : callable, optional
        Is told the name of each stage, and of steps in it.
    seconds : dict
        Stage -> wall-clock time.
    notes : list of str
        Sentences for the report.
    """

    options: AnyOptions
    model: Model
    progress: Progress | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    _hash: threading.Thread | None = None

    @classmethod
    def open(cls, source: Source, options: AnyOptions, progress: Progress | None = None) -> Self:
        """Load a model, and begin to hash it in another thread.

        Raises
        ------
        ModelError
            If it isn't a sound ONNX model.
        OutputError
            If a report or a plan would replace its data.
        """
        start = time.perf_counter()
        model = Model.load(source)
        rely(model.files)
        refuse_sides(model)
        run = cls(options, model, progress)
        run.seconds["load"] = time.perf_counter() - start
        run._hash = threading.Thread(target=_read, args=(model,), daemon=True)
        run._hash.start()
        # who is done with the model may replace its file, and a mapped file that shrinks kills who reads it
        weakref.finalize(run, run._hash.join).atexit = False
        return run

    @property
    def source(self) -> Model:
        """What was read; `model` may be what a first step made of it."""
        return self.model

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage, and tell of it."""
        self.say(name)
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def say(self, text: str) -> None:
        """Tell of a step."""
        if self.progress:
            self.progress(text)

    def sha256(self) -> str:
        """Return the hash of the input.

        Raises
        ------
        ModelError
            If its data can't be read.
        """
        if self._hash is not None:
            self._hash.join()
            self._hash = None
        return self.source.sha256


def _read(model: Model) -> None:
    with contextlib.suppress(ModelError):  # raised again where the hash is asked for
        model.sha256  # noqa: B018
