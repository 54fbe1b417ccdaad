"""Write a large result beside its place, verify that very file, and move it there only if it holds.

The weights of a file are mapped, not held, so the verification of a model of any size costs no memory for them.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from types import TracebackType

from onnxprune.errors import OutputError
from onnxprune.model import Model

__all__ = ["LARGE", "Staging"]

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
    """

    def __init__(self, output: Path, external_threshold: int | None) -> None:
        self.output, self.threshold = output, external_threshold
        self.sha256 = ""
        self.model: Model | None = None  # what was written last
        try:
            self.folder = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.absolute().parent))
        except OSError as error:
            raise OutputError(
                f"The output {str(output)!r} can't be written: {error.strerror or error}."
            ) from error

    def __enter__(self) -> Staging:
        return self

    def write(self, model: Model) -> Path:
        """Write a model here, in the place of any before it."""
        path = self.folder / self.output.name
        self.sha256 = model.save(path, external_threshold=self.threshold)
        self.model = model
        return path

    def commit(self) -> str:
        """Move what was written last to its place, the data first, and return its sha256.

        Raises
        ------
        OutputError
            If it can't be moved.
        """
        model = self.folder / self.output.name
        data = [path for path in sorted(self.folder.iterdir()) if path != model]
        try:
            if any((self.output.parent / path.name).exists() for path in data):
                self.output.unlink(
                    missing_ok=True
                )  # at no moment does a model stand beside data that isn't its own
            for path in (*data, model):
                os.replace(path, self.output.parent / path.name)
        except OSError as error:
            raise OutputError(
                f"The output {str(self.output)!r} can't be written: {error.strerror or error}."
            ) from error
        return self.sha256

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
