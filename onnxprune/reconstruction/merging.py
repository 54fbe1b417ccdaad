"""Shards of moments put together: sums over neighbouring pieces of the samples, added in the one order.

One layer is held at a time, and nothing is written where a shard is missing, there twice, or of another run.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import IO

from onnxprune.calibration.shards import Shard, Span, Tree
from onnxprune.errors import CalibrationError
from onnxprune.reconstruction.gather import Gathered
from onnxprune.reconstruction.moment_file import Header, MomentFile, reading, write

__all__ = ["added", "join"]

#: What is said where a fact differs.
WORDS = {"model": "another model", "samples": "other samples", "seed": "another --seed"}


def join(
    paths: Sequence[Path],
    save: Callable[[Callable[[IO[bytes]], None]], None],
    say: Callable[[str], None] | None = None,
) -> Header:
    """Put the shards of one run together.

    Parameters
    ----------
    paths : sequence of Path
        In any order.
    save : callable
        Is given the function that fills the file; nothing is written where shards don't fit each other.
    say : callable, optional
        Told of each layer.

    Returns
    -------
    Header
        Of the whole.

    Raises
    ------
    CalibrationError
        If one is missing or there twice, or they aren't of one run.
    """
    parts = [MomentFile.open(path) for path in paths]
    whole = _checked(parts)
    parts.sort(key=lambda part: (part.header.shard.number, part.header.part.number))

    def layers() -> Iterator[list[tuple[Span, Gathered]]]:
        for number, nodes in enumerate(added(parts)):
            if say is not None:
                say(f"merge {number + 1}/{len(whole.layers)}: {whole.layers[number].weight}")
            if [span for span, _ in nodes] != [(0, whole.pieces)]:
                raise CalibrationError(
                    f"{parts[0].name} and its other shards don't hold all samples of the weight "
                    f"{whole.layers[number].weight!r}; one of them is damaged."
                )
            yield nodes

    save(lambda file: write(file, whole, layers()))
    return whole


def added(parts: Sequence[MomentFile]) -> Iterator[list[tuple[Span, Gathered]]]:
    """Yield the sums of each layer in files of neighbouring pieces, added as far as they can be."""
    for number in range(len(parts[0].header.layers)):
        tree: Tree[Gathered] = Tree(parts[0].header.pieces)
        for part in parts:
            with reading(part.path), zipfile.ZipFile(part.path) as archive:
                for span, value in part.nodes(archive, number):
                    tree.add(span, value)
        yield tree.nodes


def _usual(parts: Sequence[MomentFile]) -> MomentFile:
    """Return a shard of the run that most of them are of: one that isn't is the one that errors name."""
    runs = [
        repr((sorted(map(str, h.facts.items())), h.pieces, h.samples, h.shard.of, h.part.of))
        for h in (part.header for part in parts)
    ]
    most = max(runs, key=runs.count)
    return parts[runs.index(most)]


def _layers(part: Shard) -> str:
    return "all layers" if part.of == 1 else f"the layers {part}"


def _checked(parts: Sequence[MomentFile]) -> Header:
    """Return the header of shards that are put together, or refuse them, see `join`."""
    first = _usual(parts)
    of, layers = first.header.shard.of, first.header.part.of
    at: dict[tuple[int, int], MomentFile] = {}
    for part in parts:
        header = part.header
        for name in {**first.header.facts, **header.facts}:
            if header.facts.get(name) != first.header.facts.get(name):
                raise CalibrationError(
                    f"{part.name} was made with {WORDS.get(name, f'another {name}')} than {first.name}; give the "
                    "shards of one run."
                )
        if (header.pieces, header.samples, header.inputs, header.layers) != (
            first.header.pieces, first.header.samples, first.header.inputs, first.header.layers
        ):  # fmt: skip
            raise CalibrationError(
                f"{part.name} was made with other options than {first.name}; give the shards of one run."
            )
        if header.shard.of != of:
            raise CalibrationError(
                f"{part.name} is shard {header.shard}, and {first.name} is one of {of}; give the shards of one run."
            )
        if header.part.of != layers:
            mine, others = (_layers(h.part) for h in (header, first.header))
            raise CalibrationError(
                f"{part.name} is of {mine}, and {first.name} of {others}; give the files of one run."
            )
        place = header.shard.number, header.part.number
        if place in at:
            raise CalibrationError(
                f"{part.name} and {at[place].name} are both {header.share}; give each shard once."
            )
        at[place] = part
    if layers > 1:
        gaps = product(range(1, of + 1), range(1, layers + 1))
        gone = [
            replace(first.header, shard=Shard(n, of), part=Shard(k, layers))
            for n, k in gaps
            if (n, k) not in at
        ]
        if gone:
            raise CalibrationError(
                f"{'; '.join(header.share for header in gone)} missing; give the files of all shares of one run."
            )
    lost = [str(Shard(n, of)) for n in range(1, of + 1) if (n, 1) not in at]
    if lost:
        what, are = ("Shard", "is") if len(lost) == 1 else ("Shards", "are")
        raise CalibrationError(
            f"{what} {', '.join(lost)} of the samples {are} missing; give all shards of one run."
        )
    return replace(first.header, shard=Shard(), part=Shard())
