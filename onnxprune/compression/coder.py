"""Files into one ``.zst`` and back, piece by piece, so that memory doesn't grow with the model.

What is unpacked is checked against the record (`onnxprune.compression.record`): its size while it is written, so that
nothing grows beyond what was announced, and the sha256 of each file and of the whole before any of it is in its place.
"""

from __future__ import annotations

import hashlib
import io
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

from onnxprune.compression.record import END, PackedFile, Packing
from onnxprune.errors import ModelError, OutputError
from onnxprune.files.beside import refuse_data
from onnxprune.files.commit import Commit, refusal, together
from onnxprune.files.disk import status_of
from onnxprune.files.pair import equal
from onnxprune.files.target import check, place_of, same
from onnxprune.journey.output import refuse_suffix

__all__ = ["Input", "coded_size", "pack", "rough_size", "unpack"]

_PIECE = 1 << 20
#: Sizes up to which levels of zstd are used: the highest takes a second for each megabyte. Weights on a grid have
#: hardly any repetitions, so what counts is the entropy coder, and that is the same at every level.
_LEVELS = ((1 << 25, 22), (1 << 27, 12), (1 << 62, 6))
#: The least level at which weights are coded by the dearest search, and the size up to which both ways are tried.
_TRIED, _BOTH = 12, 1 << 22
#: ``zstd -d`` takes windows up to this without an option; it is what the reader holds.
_WINDOW = 27
#: No model is so much smaller packed; what says so is refused before it fills the disk.
_RATIO, _SMALL = 2000, 1 << 28


@dataclass(frozen=True)
class Input:
    """A file that is to be packed.

    Attributes
    ----------
    name : str
        Its name below the model's folder.
    path : Path
    cuts : tuple of int
        Where its weights begin and end, ascending.
    """

    name: str
    path: Path
    cuts: tuple[int, ...] = ()


def _compressor(size: int, apart: bool = False, short: bool = False) -> Any:
    """Return a compressor; apart: with a table of codes for each weight, and no search for short repetitions.

    Steps of a grid repeat by chance. A packer that takes three equal bytes for a repetition spends more on them than on
    the codes of three bytes, and one table for weights of different grids suits none: together 8 % of a ResNet-44.
    Where names are a large part of the file, short repetitions pay all the same (short).
    """
    import zstandard

    level = next(level for most, level in _LEVELS if size <= most)
    more = {"min_match": 3 if short else 6} if apart else {}
    more |= {"strategy": zstandard.STRATEGY_BTULTRA2} if apart and level >= _TRIED else {}
    window = min(max(size.bit_length(), 10), 24)
    parameters = zstandard.ZstdCompressionParameters.from_level(
        level, source_size=size, window_log=window, write_checksum=True, write_content_size=True, **more
    )
    return zstandard.ZstdCompressor(compression_params=parameters)


def coded_size(data: bytes) -> int:
    """Return how many bytes the coder makes of some."""
    return len(_compressor(len(data)).compress(data))


def rough_size(pieces: Iterable[memoryview | bytes]) -> int:
    """Return about how many bytes the coder makes of some, by its quickest search."""
    import zstandard

    writer = zstandard.ZstdCompressor(level=1).compressobj()
    return sum(len(writer.compress(piece)) for piece in pieces) + len(writer.flush())


def _pieces(one: Input) -> Iterator[bytes]:
    """Yield the bytes of a file; each weight begins a piece of its own."""
    cuts = [*one.cuts, one.path.stat().st_size]
    with one.path.open("rb") as file:
        for cut in cuts:
            while piece := file.read(min(_PIECE, cut - file.tell())):
                yield piece


def _stream(packing: Packing, inputs: Sequence[Input]) -> Iterator[bytes]:
    by_name = {one.name: one for one in inputs}
    for part in packing.parts():
        if isinstance(part, bytes):
            yield part
        else:
            yield from _pieces(by_name[part.name])


def _code(packing: Packing, inputs: Sequence[Input], into: Any, apart: bool, short: bool) -> None:
    import zstandard

    cuts = {cut for one in inputs for cut in one.cuts} if apart else set()
    done = 0
    with _compressor(packing.nbytes, apart, short).stream_writer(
        into, size=packing.nbytes, closefd=False
    ) as writer:
        for piece in _stream(packing, inputs):
            if done in cuts:
                writer.flush(zstandard.FLUSH_BLOCK)
            writer.write(piece)
            done += len(piece)


def _best(packing: Packing, inputs: Sequence[Input]) -> tuple[bool, bool]:
    """Whether weights are better coded apart, and short repetitions looked for: where there is time, all is tried."""
    if not any(one.cuts for one in inputs) or packing.is_tar:
        return False, False
    if packing.nbytes > _BOTH:
        return True, False
    sizes = {}
    for way in ((False, False), (True, False), (True, True)):
        counted = _Counted()
        _code(packing, inputs, counted, *way)
        sizes[way] = counted.size
    return min(sizes, key=lambda way: sizes[way])


class _Counted(io.RawIOBase):
    """Counts what is written."""

    size = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.size += len(data)
        return len(data)


def _packing(inputs: Sequence[Input]) -> Packing:
    members = []
    for one in inputs:
        digest = hashlib.sha256()
        for piece in _pieces(one):
            digest.update(piece)
        members.append(PackedFile(one.name, one.path.stat().st_size, digest.hexdigest()))
    packing = Packing(tuple(members), members[0].sha256)
    if packing.is_tar:
        digest = hashlib.sha256()
        for piece in _stream(packing, inputs):
            digest.update(piece)
        packing = Packing(packing.members, digest.hexdigest())
    return packing


def pack(inputs: Sequence[Input], output: Path) -> Packing:
    """Write files into a ``.zst``, complete or not at all.

    Parameters
    ----------
    inputs : sequence of Input
        A model, and its data files if it has any.
    output : Path

    Raises
    ------
    OutputError
        If it can't be written.
    """
    what = f"The output {str(output)!r}"
    check(output, what)
    refuse_data(output, what)
    place, packing = place_of(output), _packing(inputs)

    def fill(file: IO[bytes]) -> None:
        file.write(packing.frame())
        _code(packing, inputs, file, *_best(packing, inputs))
        file.write(END)

    with together() as files:
        try:
            path, _ = files.write(place.parent, fill, status_of(place))
        except OSError as error:
            raise refusal(repr(str(output)), error) from error
        files.model(path, place)
        files.size(place, path.stat().st_size)
    return packing


def unpack(source: Path, output: Path, admit: Callable[[Path], bool] | None = None) -> Packing:
    """Write what is in a ``.zst``, checked, complete or not at all.

    Parameters
    ----------
    source : Path
    output : Path
        Of the model; data files go beside it under their own names.
    admit : callable, optional
        Says of the file of the model, before it is in its place, whether it is one.

    Raises
    ------
    ModelError
        If the file is none of ours, damaged, or not what its record says, or what is in it is no model.
    OutputError
        If the output can't be written.
    """
    try:
        file = source.open("rb")
    except OSError as error:
        raise ModelError(f"{str(source)!r} can't be read: {error.strerror or error}.") from error
    what = f"The output {str(output)!r}"
    if not source.is_file():
        file.close()
        raise ModelError(f"{str(source)!r} isn't a file; it is read more than once, so save it as one.")
    if same(source, output):
        raise OutputError(f"{what} is the input itself; give another name.")
    refuse_suffix(output)
    check(output, what, probe=True)
    refuse_data(output, what)
    with file, together() as files:
        packing = Packing.read(file, source)
        place = place_of(output)
        _refuse_size(packing, source, place)
        path = _write(_Unpacked(file, source, packing), packing, place, files)
        if admit is not None and not admit(path):
            raise ModelError(
                f"{str(source)!r} is as it was packed, but what is in it is no ONNX model, so nothing was unpacked; "
                "look for where it comes from."
            )
    return packing


def _refuse_size(packing: Packing, source: Path, place: Path) -> None:
    size, packed = packing.nbytes, source.stat().st_size
    if size > max(_SMALL, _RATIO * packed):
        raise ModelError(
            f"{str(source)!r} says that its {packed:,} bytes unpack to {size:,}, which no model does; it is damaged or "
            "made to fill a disk."
        )
    there = next(folder for folder in (place.parent, *place.parents) if folder.is_dir())
    free = shutil.disk_usage(there).free
    if size > free:
        raise OutputError(
            f"The output {str(place)!r} takes {size:,} bytes, and {free:,} are free; nothing was left behind."
        )


class _Unpacked:
    """What a frame holds, read in pieces and hashed."""

    def __init__(self, file: IO[bytes], path: Path, packing: Packing) -> None:
        import zstandard

        self.path, self.packing, self.error = path, packing, zstandard.ZstdError
        reader = zstandard.ZstdDecompressor(max_window_size=1 << _WINDOW)
        self.reader = reader.stream_reader(file, read_across_frames=True)
        self.digest = hashlib.sha256()

    def wrong(self, why: str) -> ModelError:
        return ModelError(f"{str(self.path)!r} is damaged: {why}; get the file again.")

    def read(self, size: int) -> bytes:
        """Return so many bytes, or fewer, but some."""
        try:
            data: bytes = self.reader.read(size)
        except (self.error, MemoryError) as error:
            raise self.wrong("it isn't what zstd writes") from error
        self.digest.update(data)
        return data

    def pieces(self, size: int) -> Iterator[bytes]:
        """Yield exactly so many bytes."""
        while size:
            data = self.read(min(size, _PIECE))
            if not data:
                raise self.wrong("it ends too early")
            size -= len(data)
            yield data

    def fill(self, into: IO[bytes], member: PackedFile) -> None:
        digest = hashlib.sha256()
        for piece in self.pieces(member.nbytes):
            digest.update(piece)
            into.write(piece)
        if digest.hexdigest() != member.sha256:
            raise self.wrong(f"the sha256 of {member.name!r} isn't the recorded one")

    def finish(self) -> None:
        """Look whether that was all, and what was recorded."""
        if self.read(1):
            raise self.wrong("it holds more than its record says")
        if self.digest.hexdigest() != self.packing.sha256:
            raise self.wrong("its sha256 isn't the recorded one")


def _write(data: _Unpacked, packing: Packing, place: Path, files: Commit) -> Path:
    """Write the files under other names, and return that of the model; all get their own when what is written does."""
    model = packing.members[0]
    waiting: list[tuple[Path, Path]] = []
    for part in packing.parts():
        if isinstance(part, bytes):
            if b"".join(data.pieces(len(part))) != part:
                raise data.wrong("its tar isn't the recorded one")
            continue
        target = place if part is model else place.parent / part.name
        if part is not model and target == place:
            raise OutputError(
                f"The output {str(place)!r} is the name of the model's data; give another name."
            )
        try:
            path, _ = files.write(target.parent, partial(data.fill, member=part), status_of(target))
        except OSError as error:
            raise refusal(repr(str(target)), error) from error
        waiting.append((path, target))
    data.finish()
    for path, target in waiting[1:]:
        if not target.exists():
            files.fresh(path, target)
        elif not equal(path, target):
            raise OutputError(
                f"{str(target)!r} is there already and is another file, and the model's data must have that name; "
                "unpack into another folder."
            )
    files.model(*waiting[0])
    files.size(place, sum(member.nbytes for member in packing.members))
    return waiting[0][0]
