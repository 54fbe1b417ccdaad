"""A model into a file that is the result or a draft of it: a plain ``.onnx``, or a packed one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from onnxprune.compression.coder import Input, pack, rough_size
from onnxprune.compression.record import Packing
from onnxprune.errors import OutputError
from onnxprune.files.commit import alone, refusal, together
from onnxprune.files.disk import resemble, status_of
from onnxprune.files.holding import scratch
from onnxprune.files.output import MOST_EMBEDDED
from onnxprune.files.store import DETACH_ABOVE
from onnxprune.files.target import place_of
from onnxprune.journey.output import data_files
from onnxprune.model import Model
from onnxprune.options.compression import SUFFIX

__all__ = ["Draft", "drafts"]

#: The name of a model that has none.
NAMELESS = "model.onnx"


@dataclass(frozen=True)
class Draft:
    """A packed model.

    Attributes
    ----------
    path : Path
    packing : Packing
    nbytes : int
        Of the packed file.
    """

    path: Path
    packing: Packing
    nbytes: int


class Drafts:
    """Packs models, one in the place of another, in a folder that goes at the end.

    Parameters
    ----------
    folder : Path
    name : str
        Of the model inside.
    output : Path or None
        What a draft becomes, for errors.
    """

    folder: Path
    name: str

    def __init__(self, folder: Path, name: str, output: Path | None = None) -> None:
        self.folder, self.name, self._count = folder, name, 0
        self._what = "(a packed draft)" if output is None else repr(str(output))

    def write(self, model: Model) -> Draft:
        """Pack a model.

        Raises
        ------
        OutputError
            If it can't be written, such as where the disk is full.
        """
        try:
            return self._write(model)
        except OSError as error:
            raise refusal(self._what, error) from error
        except OutputError as error:  # of a file that nobody knows of
            if isinstance(error.__cause__, OSError):
                raise refusal(self._what, error.__cause__) from error
            raise

    def _write(self, model: Model) -> Draft:
        self._count += 1
        path = self.folder / f"{self._count}{SUFFIX}"
        inner = self.folder / "inner"
        inner.mkdir(exist_ok=True)
        with alone():
            inputs = self._inputs(model, inner)
            packing = pack(inputs, path)
        for one in inputs:
            if one.path.is_relative_to(inner):
                one.path.unlink()
        return Draft(path, packing, path.stat().st_size)

    def rough(self, model: Model) -> int:
        """Return about how many bytes a packed model takes, by a quick look."""
        if model.nbytes > MOST_EMBEDDED:
            return model.nbytes // 2
        return rough_size(model.pieces())

    def _inputs(self, model: Model, folder: Path) -> list[Input]:
        """Return the files of a model: those it came from where it is unchanged, else new ones."""
        external = data_files(model)
        if model.path is not None and not external and not model.edited:
            return [Input(self.name, model.path)]
        path = folder / NAMELESS
        if model.nbytes <= MOST_EMBEDDED:
            cuts: list[int] = []
            with path.open("wb") as file:
                for piece in model.pieces():
                    ends = file.tell(), file.tell() + len(piece)
                    cuts += ends if len(piece) > DETACH_ABOVE else ()
                    file.write(piece)
            return [Input(self.name, path, tuple(dict.fromkeys(cuts)))]
        model.save(folder / self.name)
        others = sorted(p for p in folder.iterdir() if p.name != self.name)
        return [Input(self.name, folder / self.name), *(Input(p.name, p) for p in others)]


@contextmanager
def drafts(output: Path | None, name: str) -> Iterator[Drafts]:
    """Yield a place for drafts beside an output, where the last one can be moved to; a temporary one without output.

    Raises
    ------
    OutputError
        If it can't be had.
    """
    if output is None:
        with scratch() as folder:
            yield Drafts(folder, name)
        return
    with together() as files:
        folder = files.temporary(place_of(output).parent)
        try:
            folder.mkdir(mode=0o700)
        except OSError as error:
            raise refusal(repr(str(output)), error) from error
        yield Drafts(folder, name, output)


def keep(draft: Draft, output: Path) -> None:
    """Let a draft take the place of the output when all that is written with it does."""
    place = place_of(output)
    with together() as files:
        resemble(draft.path, status_of(place))
        files.model(draft.path, place)
        files.size(place, draft.nbytes)
