"""Write a large result beside its place, verify that very file, and move it there only if it holds.

The weights of a file are mapped, not held, so the verification of a model of any size costs no memory for them.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import IO

import onnx

from onnxprune.files.commit import alone, refusal, together
from onnxprune.files.disk import resemble, status_of
from onnxprune.files.external import is_external
from onnxprune.files.pair import like, place_pair
from onnxprune.files.protowalk import tensors
from onnxprune.files.target import place_of
from onnxprune.journey.output import data_files, same
from onnxprune.model import Model
from onnxprune.options.pruning import Options

__all__ = ["LARGE", "Staging", "staging_of"]

#: Bytes of weights from which a result is verified as a file.
LARGE = 256_000_000


class Staging:
    """A folder beside the output, gone at the end.

    Parameters
    ----------
    output : Path
        Where the result shall be.
    external_threshold : int or None
        See `Model.save`.
    taken : iterable of Path
        The input's data files.
    """

    output: Path
    threshold: int | None
    taken: list[Path]
    sha256: str
    folder: Path

    def __init__(self, output: Path, external_threshold: int | None, taken: Iterable[Path] = ()) -> None:
        self.output, self.threshold, self.taken = place_of(output), external_threshold, list(taken)
        self.sha256 = ""
        self.model: Model | None = None  # what was written last
        self._joined = together()

    def __enter__(self) -> Staging:
        self._files = self._joined.__enter__()
        self.folder = self._files.temporary(self.output.parent)
        try:
            self.folder.mkdir(mode=0o700)
        except OSError as error:
            failure = refusal(repr(str(self.output)), error)
            self._joined.__exit__(type(failure), failure, None)
            raise failure from error
        return self

    def write(self, model: Model) -> Path:
        """Write a model here, in the place of any before it."""
        path = self.folder / self.output.name
        with alone():
            self.sha256 = model.save(path, external_threshold=self.threshold)
        self.model = model
        return path

    def commit(self) -> str:
        """Let what was written last take its place, and return its sha256.

        Raises
        ------
        OutputError
            If it can't.
        """
        model = self.folder / self.output.name
        data = [path for path in self.folder.iterdir() if path != model]

        def render(name: str) -> tuple[Path, str]:
            if not data or name == data[0].name:
                resemble(model, status_of(self.output))
                return model, self.sha256
            fill = partial(_renamed, model, name)
            return self._files.write(self.output.parent, fill, status_of(self.output))

        try:
            for path in data:
                resemble(path, like(self.output))
            return place_pair(self._files, self.output, data[0] if data else None, render, self.taken)
        except OSError as error:
            raise refusal(repr(str(self.output)), error) from error

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._joined.__exit__(kind, error, trace)


def _renamed(path: Path, name: str, file: IO[bytes]) -> str:
    """Write a model whose data has another name, and return its sha256."""
    proto = onnx.load(path, load_external_data=False)
    for entry in (e for _, t in tensors(proto) if is_external(t) for e in t.external_data):
        if entry.key == "location":
            entry.value = name
    data = proto.SerializeToString(deterministic=True)
    file.write(data)
    return hashlib.sha256(data).hexdigest()


def staging_of(model: Model, output: Path | None, options: Options) -> Staging | None:
    """Return a place for a result that is verified as a file; None where it is verified in memory."""
    if output is None or not options.verify or options.in_place or os.name == "nt":
        return None  # Windows doesn't move files that are mapped
    data, large = data_files(model), sum(model.info(name).nbytes for name in model.names()) >= LARGE
    if not large or any(same(output.with_name(f"{output.name}.data"), path) for path in data):
        return None
    return Staging(output, options.external_data_threshold, data)
