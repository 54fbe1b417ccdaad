"""Moments of a model's layers from any number of machines: each share of the samples is one file, `merge` adds them.

A machine needs the model, all samples and the number of its share. Nothing else travels but its file.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TextIO

from onnxprune.calibration.shards import Shard, Span
from onnxprune.errors import NothingToPrune, OutputError
from onnxprune.files.commit import refusal, together
from onnxprune.files.target import check
from onnxprune.journey.run import Run
from onnxprune.options.pruning import Options
from onnxprune.pruning.journey import analysis_of
from onnxprune.reconstruction.cache import facts_of
from onnxprune.reconstruction.gather import Dealt, Gathered
from onnxprune.reconstruction.layer import Settings
from onnxprune.reconstruction.merging import added, join
from onnxprune.reconstruction.moment_file import Header, Layer, MomentFile, write
from onnxprune.reconstruction.plausible import read_samples
from onnxprune.reconstruction.room import admit
from onnxprune.report.printing import printed_on
from onnxprune.report.record import Facts
from onnxprune.report.table import amount

__all__ = ["MomentFacts", "calibrate", "merge"]

Fill = Callable[[IO[bytes]], None]


@dataclass(frozen=True, repr=False)
class MomentFacts(Facts):
    """What a file of moments holds.

    Attributes
    ----------
    path : str
    shard : str
        Such as ``"2/8"``; ``"1/1"`` of all samples.
    part : str
        The share of the layers, ``"1/1"`` of all.
    samples : int
        In all shards.
    pieces : int
        Into which they fall: so many machines can share them.
    layers : int
    nbytes : int
        Of the file.
    """

    path: str
    shard: str
    part: str
    samples: int
    pieces: int
    layers: int
    nbytes: int

    @classmethod
    def of(cls, header: Header, path: Path, nbytes: int) -> MomentFacts:
        """Describe a file."""
        shares = str(header.shard), str(header.part)
        return cls(str(path), *shares, header.samples, header.pieces, len(header.layers), nbytes)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {"format": 1, **vars(self)}

    def brief(self) -> str:
        """Return what the file holds, in a sentence."""
        share = "" if self.shard == "1/1" else f"shard {self.shard} of "
        part = "" if self.part == "1/1" else f", layers {self.part}"
        return (
            f"{self.path}: moments of {self.layers:,} layers over {share}{self.samples:,} samples{part} "
            f"({amount(self.nbytes)} bytes)"
        )

    def show(self, stream: TextIO | None = None) -> None:
        """Print one line."""
        print(self.brief(), file=printed_on(stream))


def calibrate(run: Run[Options], output: Path, shard: str | None, layers: str | None = None) -> MomentFacts:
    """Take the moments over the share of the samples that fits may see, and write them.

    Parameters
    ----------
    run : Run
    output : Path
    shard : str or None
        Such as ``"2/8"``; all of them where it is None.
    layers : str or None
        The share of the layers, the same.

    Raises
    ------
    UsageError
        If there are more shards than pieces of the samples, or than stretches of layers.
    CalibrationError
        If the samples don't fit the model, or a layer finds no room.
    NothingToPrune
        If the model has no layer that can be fitted.
    """
    _check(output)
    share = Shard() if shard is None else Shard.parse(shard)
    part = Shard() if layers is None else Shard.parse(layers, "--layers")
    analysis = analysis_of(run)
    with run.stage("samples"):
        samples, _ = read_samples(analysis, run.options, run.progress).set_aside()
        dealt = Dealt.of(analysis, samples, Settings(seed=run.options.seed))
    waves = dealt.waves(share)
    if not dealt.layers:
        raise NothingToPrune("The model has no layer that can be fitted on samples.")
    admit(dealt.layers, dealt.settings)
    header = Header(
        facts_of(run.sha256(), dealt.samples, [], seed=run.options.seed),
        share,
        part,
        len(dealt.pieces),
        dealt.samples.count,
        {name: tuple(shape) for name, shape in analysis.inputs.items()},
        tuple(map(Layer.of, dealt.layers)),
    )
    with run.stage("calibrate"):
        if len(waves) == 1:
            size = _save(output, lambda file: write(file, header, _sums(dealt, waves[0], run, part)))
        else:
            size = _in_waves(run, dealt, waves, header, output)
    return MomentFacts.of(header, output, size)


def _sums(dealt: Dealt, wave: Span, run: Run[Options], part: Shard) -> Iterator[list[tuple[Span, Gathered]]]:
    for _, nodes in dealt.gather(wave, run.say, part):
        yield nodes


def _in_waves(run: Run[Options], dealt: Dealt, waves: Sequence[Span], header: Header, output: Path) -> int:
    """Take some pieces of the samples at a time, each into a file of its own, and add these."""
    with tempfile.TemporaryDirectory(prefix="onnxprune-") as folder:
        parts = []
        for number, wave in enumerate(waves):
            path = Path(folder) / f"{number}.npz"
            with path.open("wb") as file:
                write(file, header, _sums(dealt, wave, run, header.part))
            parts.append(MomentFile(path, header))
        return _save(output, lambda file: write(file, header, added(parts)))


def merge(parts: Sequence[Path], output: Path, say: Callable[[str], None] | None = None) -> MomentFacts:
    """Put shards together, and write the whole.

    Raises
    ------
    CalibrationError
        If a shard is missing or there twice, or they aren't of one run; nothing is written then.
    """
    _check(output)
    sizes: list[int] = []
    header = join(parts, lambda fill: sizes.append(_save(output, fill)), say)
    return MomentFacts.of(header, output, sizes[0])


def _check(output: Path) -> None:
    """Refuse standard output before anything runs."""
    if str(output) == "-":
        raise OutputError("'-' is standard output, and moments need a file of their own; give its name.")
    check(output, f"The output {str(output)!r}")


def _save(output: Path, fill: Fill) -> int:
    """Write a file, complete or not at all, and return its size."""
    size = 0

    def filled(file: IO[bytes]) -> None:
        nonlocal size
        fill(file)
        size = file.tell()

    with together() as files:
        try:
            files.file(output, filled)
        except OSError as error:
            raise refusal(repr(str(output)), error) from error
    return size
