"""Moments of all layers of the original over one share of the samples, such that shares add up the same in any number.

Positions are drawn for each piece of the samples anew, by its number, and are as many for each regressor as a fit uses
(see `onnxprune.reconstruction.layer.Settings.rows`); pieces are summed in the order of `onnxprune.calibration.shards`.
Layers are looked at a few at a time, so that no more than their moments are held, once for each level of that order.
Outputs aren't kept: they are what a layer's own weights give (`Evidence.linear`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from onnxprune.calibration.frontier import sizes, stream_bytes
from onnxprune.calibration.samples import Samples
from onnxprune.calibration.shards import PIECES, Piece, Shard, Span, Tree, in_pieces
from onnxprune.calibration.stream import stream_of
from onnxprune.errors import UsageError
from onnxprune.graph.analysis import Analysis
from onnxprune.reconstruction.evidence import Draw, Evidence, Spread
from onnxprune.reconstruction.layer import Settings
from onnxprune.reconstruction.layers import Site, seen, sites
from onnxprune.reconstruction.narrow import lean
from onnxprune.reconstruction.taker import Taker, together, unit_of
from onnxprune.reconstruction.walk import MOST_BYTES, Walk

__all__ = ["Dealt", "Gathered"]

#: Pieces at a time where the sizes of activations aren't known.
UNKNOWN = 4
#: The part of who has all layers.
ALL = Shard()


@dataclass
class Gathered:
    """What some samples tell of one layer.

    Attributes
    ----------
    evidence : Evidence
        Without targets; its spread isn't known yet.
    spreads : list of Spread
        Of each node that uses the layer's weight.
    """

    evidence: Evidence
    spreads: list[Spread]

    @classmethod
    def of(cls, takers: list[Taker]) -> Gathered:
        """Return what was taken at all nodes that use one weight."""
        return cls(together([taker.evidence() for taker in takers]), [taker.spread for taker in takers])

    def merge(self, other: Gathered) -> None:
        """Add other samples."""
        self.evidence.merge(other.evidence)
        for own, more in zip(self.spreads, other.spreads, strict=True):
            own.merge(more)

    def whole(self, site: Site) -> Evidence:
        """Return the evidence, of all samples."""
        units = [s.variance / unit_of(use) for s, use in zip(self.spreads, site.uses, strict=True)]
        self.evidence.spread = sum(units) / len(units)
        return self.evidence


@dataclass(frozen=True)
class Dealt:
    """All samples, in the pieces into which they fall for any number of shards.

    Attributes
    ----------
    analysis : Analysis
        Of the original.
    samples : Samples
        All of them, in batches that `pieces` count.
    pieces : list of Piece
    layers : list of Site
        Those that are looked at, in topological order.
    settings : Settings
    """

    analysis: Analysis
    samples: Samples
    pieces: list[Piece]
    layers: list[Site]
    settings: Settings

    @classmethod
    def of(cls, analysis: Analysis, samples: Samples, settings: Settings) -> Dealt:
        """Deal samples out, and find the layers that any of them tells of."""
        samples, pieces = in_pieces(samples)
        layers = lean(seen(sites(analysis), stream_of(analysis.model, samples)), analysis.model)
        return cls(analysis, samples, pieces, layers, settings)

    def waves(self, shard: Shard) -> list[Span]:
        """Return the pieces of a shard, as many at a time as a stream can hold between two stretches of the model.

        Streams always hold what comes next: where they began at an earlier node, onnxruntime would fuse other nodes,
        and the last digits would hang on how many samples a machine has.
        """
        first, stop = shard.span(len(self.pieces))
        batches = max(self.pieces, key=lambda piece: len(piece.batches)).batches
        piece = self.samples.some(batches.start, batches.stop)
        size = stream_bytes(self.analysis, piece, [site.number for site in self.layers])
        fit = max(int(MOST_BYTES // size), 1) if 0 < size < float("inf") else UNKNOWN if size else PIECES
        size = 1 << (fit.bit_length() - 1)  # aligned, so that each wave is few nodes of the tree
        edges = sorted({first, stop, *(n for n in range(first, stop) if n % size == 0)})
        return list(pairwise(edges))

    def own(self, part: Shard, stretches: Sequence[Sequence[Site]]) -> set[int]:
        """Return the numbers of the stretches of layers that are a part's: dealt in turn to who has the least to do.

        Raises
        ------
        UsageError
            If there are more parts than stretches.
        """
        if part.of > len(stretches):
            raise UsageError(
                f"The layers are looked at in {len(stretches)} stretches, so {part.of} machines can't share them; ask "
                f"for {len(stretches)} at most."
            )
        costs = [sum(self._cost(site) for site in stretch) for stretch in stretches]
        loads, dealt = [0.0] * part.of, [set[int]() for _ in range(part.of)]
        for number in sorted(range(len(costs)), key=lambda number: (-costs[number], number)):
            least = loads.index(min(loads))
            loads[least] += costs[number]
            dealt[least].add(number)
        return dealt[part.number - 1]

    def _cost(self, site: Site) -> float:
        """Return about what the moments of a layer cost: a product of rows for each pair of inputs."""
        return float(site.view.blocks * self.settings.rows(site.view) * site.view.width**2)

    def gather(
        self, wave: Span, say: Callable[[str], None], part: Shard = ALL
    ) -> Iterator[tuple[Site, list[tuple[Span, Gathered]]]]:
        """Yield layer by layer what some neighbouring pieces tell of it.

        Parameters
        ----------
        wave : Span
        say : callable
            Is told of each layer.
        part : Shard
            Of the layers. The model runs over the others as well, in the same pieces: where it began elsewhere
            onnxruntime would fuse other nodes, and the last digits would hang on how many machines there are.

        Yields
        ------
        site : Site
        nodes : list of (Span, Gathered)
            Sums over neighbouring pieces, see `Tree`; one where the wave is all samples, none of a layer that is
            another part's.

        Raises
        ------
        CalibrationError
            If onnxruntime fails on the samples.
        UsageError
            If there are more parts than stretches of layers.
        """
        own = self.pieces[slice(*wave)]
        start = own[0].batches.start
        walk = Walk.of(
            self.analysis, [], self.samples.some(start, own[-1].batches.stop), self.settings, self.layers,
            most_bytes=1 << 62,
        )  # fmt: skip
        walk.sizes = sizes(self.analysis, self.samples)  # stretches are those of any shard
        draws = {p.batches.start - start: self._drawing(p) for p in own}
        done = 0
        stretches = walk.stretches(self.layers)
        dealt = self.own(part, stretches)
        for at, stretch in enumerate(stretches):
            if at not in dealt:
                done += len(stretch)
                for _ in walk.pieces(stretch, {}) if at < max(dealt) else ():
                    pass
                yield from ((site, []) for site in stretch)
                continue
            say(f"calibrate {done + 1}/{len(self.layers)}: {stretch[0].name}")
            done += len(stretch)
            trees: list[Tree[Gathered]] = [Tree(len(self.pieces)) for _ in stretch]
            for piece, takers in zip(own, walk.pieces(stretch, draws), strict=True):
                for tree, each in zip(trees, takers, strict=True):
                    tree.add((piece.number, piece.number + 1), Gathered.of(each))
            yield from ((site, tree.nodes) for site, tree in zip(stretch, trees, strict=True))

    def _drawing(self, piece: Piece) -> Callable[[Site, Site], Draw]:
        """Return what draws the positions of a piece, for a layer and one of the nodes that use its weight."""

        def draw(site: Site, use: Site) -> Draw:
            most = self.settings.rows(site.view) // len(site.uses)
            seed = self.settings.seed, use.number, piece.number
            return Draw(self.samples.count, most, seed, piece.before)

        return draw
