"""Moments of a model's layers in a file, of all samples or of a share.

The file is an ``.npz``: ``header`` is JSON (uint8), and for each layer, by its number, and each sum over neighbouring
pieces of the samples ``LAYER/FIRST-STOP/NAME`` holds

===========================  ==================================================================================
n                            int64[2], rows for fitting and held out
fitting.mean, fitting.gram   float64 [blocks, d], [blocks, d (d + 1) / 2], the upper triangle row by row, see
                             `onnxprune.reconstruction.moments`
aside.mean, aside.gram       the same of rows that are held out
x, held                      of wide layers instead: rows [blocks, n, d], bool[n]
spreadU.n, .centre           of the U-th node that uses the weight: int64[1], float [O] that sums are about
spreadU.sum, .square         float64 [O], of values and of squares
===========================  ==================================================================================

Outputs aren't in it: they are what the layer's own weights give. Same samples, same bytes: nothing in it tells of the
machine, of the time or of how many shares there were. The file ends with its sha256 (`onnxprune.files.seal`).
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.calibration.shards import Shard, Span
from onnxprune.errors import CalibrationError
from onnxprune.files.arrays import refuse_pipe
from onnxprune.files.seal import check_seal, sealed
from onnxprune.graph.analysis import Analysis
from onnxprune.reconstruction.dual import RowStack, RowTable
from onnxprune.reconstruction.evidence import Evidence, Spread
from onnxprune.reconstruction.gather import Gathered
from onnxprune.reconstruction.layers import Site, sites, using
from onnxprune.reconstruction.moments import Stack
from onnxprune.reconstruction.narrow import lean

__all__ = ["Header", "Layer", "MomentFile", "reading", "write"]

Array = NDArray[Any]
#: Of the file's form, and what an archive says of the time of each array.
FORMAT, EPOCH = 3, (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class Layer:
    """One layer of a file.

    Attributes
    ----------
    weight : str
    uses : tuple of int
        Positions of the nodes that use it and that samples reach.
    blocks, width, outputs : int
    """

    weight: str
    uses: tuple[int, ...]
    blocks: int
    width: int
    outputs: int

    @classmethod
    def of(cls, site: Site) -> Layer:
        """Describe a layer."""
        view = site.view
        return cls(site.weight, tuple(u.number for u in site.uses), view.blocks, view.width, view.outputs)


@dataclass(frozen=True)
class Header:
    """What is known of a file before its arrays are read.

    Attributes
    ----------
    facts : dict
        What moments depend on: model, samples, program, seed.
    shard : Shard
    part : Shard
        Of the layers, dealt by what they cost.
    pieces : int
        Into which all samples fall.
    samples : int
        In all.
    inputs : dict
        Input -> the shape that the model was analysed with.
    layers : tuple of Layer
    """

    facts: Mapping[str, Any]
    shard: Shard
    part: Shard
    pieces: int
    samples: int
    inputs: Mapping[str, Sequence[int]]
    layers: tuple[Layer, ...]

    @property
    def share(self) -> str:
        """What it is the share of, for sentences."""
        shares = [f"shard {self.shard}"] if self.shard.of > 1 or self.part.of == 1 else []
        return " and ".join([*shares, *([f"layers {self.part}"] if self.part.of > 1 else [])])

    def dumps(self) -> bytes:
        """Return it as JSON."""
        shares = {
            name: [share.number, share.of] for name, share in (("shard", self.shard), ("part", self.part))
        }
        values = {"format": FORMAT, **asdict(self), **shares}
        return json.dumps(values, sort_keys=True, indent=1).encode()

    @classmethod
    def loads(cls, data: bytes) -> Header:
        """Read it.

        Raises
        ------
        ValueError, KeyError, TypeError
            If it is none.
        """
        values = json.loads(data)
        if values["format"] != FORMAT:
            raise ValueError(f"its format is {values['format']!r}, and this version reads {FORMAT}")
        layers = tuple(Layer(**{**layer, "uses": tuple(layer["uses"])}) for layer in values["layers"])
        shard, part = (Shard.parse(f"{number}/{of}") for number, of in (values["shard"], values["part"]))
        inputs = {str(name): tuple(map(int, shape)) for name, shape in values["inputs"].items()}
        return cls(
            dict(values["facts"]), shard, part, int(values["pieces"]), int(values["samples"]),
            inputs, layers,
        )  # fmt: skip


def write(file: IO[bytes], header: Header, layers: Iterable[Iterable[tuple[Span, Gathered]]]) -> None:
    """Write a file, layer by layer as they come."""
    with sealed(file) as archive:
        _put(archive, "header", np.frombuffer(header.dumps(), np.uint8))
        for number, nodes in enumerate(layers):
            for (first, stop), value in nodes:
                for name, array in _packed(value).items():
                    _put(archive, f"{number}/{first}-{stop}/{name}", array)


def _put(archive: zipfile.ZipFile, name: str, array: Array) -> None:
    info = zipfile.ZipInfo(f"{name}.npy", EPOCH)
    info.create_system, info.external_attr = 3, 0o600 << 16  # whatever the platform
    with archive.open(info, "w", force_zip64=True) as member:
        np.lib.format.write_array(member, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False)


def _packed(value: Gathered) -> dict[str, Array]:
    fitting, aside = value.evidence.fitting, value.evidence.aside
    arrays: dict[str, Array] = {}
    if isinstance(fitting, RowStack):
        held = np.zeros(fitting.tables[0].count, np.bool_)
        held[aside.index if isinstance(aside, RowStack) else []] = True
        empty = np.zeros((0, value.evidence.view.width), np.float32)
        arrays["x"] = np.stack([np.concatenate([empty, *table.x]) for table in fitting.tables])
        arrays["held"] = held
    else:
        arrays["n"] = np.array([fitting.n, aside.n], np.int64)
        for name, stack in (("fitting", fitting), ("aside", aside)):
            assert isinstance(stack, Stack)
            arrays |= {f"{name}.mean": stack.mean, f"{name}.gram": _half(stack.gram)}
    for number, spread in enumerate(value.spreads):
        arrays[f"spread{number}.n"], arrays[f"spread{number}.centre"] = np.array([spread.n]), spread.centre
        arrays[f"spread{number}.sum"], arrays[f"spread{number}.square"] = spread.sum, spread.square
    return arrays


def _half(gram: Array) -> Array:
    """Return the upper triangles of symmetric matrices [blocks, d, d], row by row, as [blocks, d (d + 1) / 2]."""
    rows = range(gram.shape[1])
    return np.concatenate([gram[:, :0, 0], *(gram[:, row, row:] for row in rows)], axis=1)


def _whole(half: Array, width: int) -> Array:
    """Return what `_half` was given, both triangles the same."""
    gram, first = np.empty((len(half), width, width), half.dtype), 0
    for row in range(width):
        gram[:, row, row:] = gram[:, row:, row] = half[:, first : first + width - row]
        first += width - row
    return gram


@dataclass(frozen=True)
class MomentFile:
    """A file that `write` made.

    Attributes
    ----------
    path : Path
    header : Header
    """

    path: Path
    header: Header

    @classmethod
    def open(cls, path: str | Path) -> MomentFile:
        """Read a file's header.

        Raises
        ------
        CalibrationError
            If it is no file of moments, or a byte of it was changed.
        """
        if Path(path).is_dir():
            held = sorted(str(one) for one in Path(path).glob("*.npz"))
            there = f", such as {held[0]!r}" if held else ""
            raise CalibrationError(f"{str(path)!r} is a folder; name the files of moments one by one{there}.")
        refuse_pipe(Path(path))
        with reading(path), zipfile.ZipFile(path) as archive:
            opened = cls(Path(path), Header.loads(_array(archive, "header").tobytes()))
            check_seal(opened.path)
            return opened

    @property
    def name(self) -> str:
        """The path, for sentences."""
        return repr(str(self.path))

    def check_whole(self, sha256: str) -> None:
        """Refuse moments of a share of the samples or of the layers, or of another model.

        Raises
        ------
        CalibrationError
        """
        if (self.header.shard, self.header.part) != (Shard(), Shard()):
            raise CalibrationError(
                f"{self.name} holds the moments of {self.header.share} alone; put all of them together with "
                "'onnxprune merge', and give what that writes."
            )
        if self.header.facts.get("model") != sha256:
            raise CalibrationError(
                f"{self.name} holds the moments of another model (sha256 {_short(self.header.facts.get('model'))}, and "
                f"this one's is {_short(sha256)}); calibrate this one."
            )

    def layers(self, analysis: Analysis) -> list[Site]:
        """Return the layers of a model that the file tells of, in topological order.

        Raises
        ------
        CalibrationError
            If they aren't those of the model as it was analysed.
        """
        known = {layer.weight: layer for layer in self.header.layers}
        told = []
        for site in sites(analysis):
            layer = known.pop(site.weight, None)
            part = None if layer is None else using(site, [u for u in site.uses if u.number in layer.uses])
            if part is not None and Layer.of(part) == layer:
                told.append(part)
            elif layer is not None:
                known[site.weight] = layer
                break
        if known:
            raise CalibrationError(
                f"{self.name} holds moments of a layer with the weight {next(iter(known))!r} that the model doesn't "
                "have in this form; calibrate with the same --input-shape."
            )
        return lean(told, analysis.model)

    def evidence(self, site: Site) -> Evidence:
        """Return what all samples tell of a layer."""
        number = next(n for n, layer in enumerate(self.header.layers) if layer.weight == site.weight)
        with reading(self.path), zipfile.ZipFile(self.path) as archive:
            ((_, value),) = self.nodes(archive, number, site)
        return value.whole(site)

    def nodes(
        self, archive: zipfile.ZipFile, number: int, site: Site | None = None
    ) -> list[tuple[Span, Gathered]]:
        """Return the sums of a layer by its number; without a layer of a model they can only be merged and written."""
        names = [name.split("/") for name in archive.namelist() if name.startswith(f"{number}/")]
        nodes = []
        for span in dict.fromkeys(name[1] for name in names):
            first, stop = map(int, span.split("-"))
            value = _unpacked(archive, f"{number}/{span}", self.header.layers[number], site)
            nodes.append(((first, stop), value))
        return nodes


def _unpacked(archive: zipfile.ZipFile, place: str, layer: Layer, site: Site | None) -> Gathered:
    """Read one sum, whose arrays must have the shapes of the layer."""
    have = {name.removesuffix(".npy") for name in archive.namelist() if name.startswith(f"{place}/")}

    def read(name: str, *shape: int) -> Array:
        array = _array(archive, f"{place}/{name}")
        if array.ndim != len(shape) or any(s not in (-1, n) for s, n in zip(shape, array.shape, strict=True)):
            raise ValueError(f"{name!r} of the weight {layer.weight!r} has the shape {array.shape}")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise ValueError(f"{name!r} of the weight {layer.weight!r} isn't finite")
        return array

    spreads = []
    for number in range(len(layer.uses)):
        spread = Spread()
        spread.n, spread.centre = int(read(f"spread{number}.n", 1)[0]), read(f"spread{number}.centre", -1)
        spread.sum, spread.square = read(f"spread{number}.sum", -1), read(f"spread{number}.square", -1)
        spreads.append(spread)
    blocks, width = layer.blocks, layer.width
    view: Any = _Width(width) if site is None else site.view
    if f"{place}/held" in have:
        held = read("held", -1)
        nothing = np.zeros((len(held), 0), np.float32)
        tables = [RowTable([x], [nothing]) for x in read("x", blocks, len(held), width)]
        parts = [RowStack(tables, np.flatnonzero(which)) for which in (~held, held)]
        return Gathered(Evidence(view, parts[0], parts[1], linear=True), spreads)
    stacks = []
    for name, n in zip(("fitting", "aside"), read("n", 2), strict=True):
        gram = _whole(read(f"{name}.gram", blocks, width * (width + 1) // 2), width)
        stacks.append(Stack(int(n), read(f"{name}.mean", blocks, width), gram, np.zeros((blocks, 0))))
    return Gathered(Evidence(view, stacks[0], stacks[1], linear=True), spreads)


@dataclass(frozen=True)
class _Width:
    """What writing needs to know of a layer that isn't at hand."""

    width: int


def _array(archive: zipfile.ZipFile, name: str) -> Array:
    with archive.open(f"{name}.npy") as member:
        array: Array = np.lib.format.read_array(member, allow_pickle=False)
        return array


@contextmanager
def reading(path: str | Path) -> Iterator[None]:
    """Turn whatever goes wrong while a file is read into one sentence."""
    try:
        yield
    except (CalibrationError, MemoryError):
        raise
    except Exception as error:  # zipfile, numpy and json have no common base but this
        why = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
        why = why.rstrip(".") or type(error).__name__
        raise CalibrationError(
            f"{str(path)!r} can't be read as moments ({why}); give what 'onnxprune calibrate' or 'merge' wrote."
        ) from error


def _short(sha256: Any) -> str:
    return str(sha256)[:12]
