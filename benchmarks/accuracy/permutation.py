"""How much of what 2:4 loses an order of the channels wins back, and how long the search takes.

    python benchmarks/accuracy/permutation.py                      random matrices, beside the published search
    python benchmarks/accuracy/permutation.py --quick              without the large ones
    python benchmarks/accuracy/permutation.py MODEL.onnx ...       real weights: every group of these models

For a matrix the share is the published one: 0 is the old order, 1 what each row would keep if it chose half of its
columns freely (Pool and Yu, "Channel Permutations for N:M Sparsity", NeurIPS 2021). The published search is written
here after the paper, for 2:4 and windows of 8 columns: every pair of stripes, all 35 splits, the best pairs that share
no stripe, only pairs that changed looked at again, and swaps that lose as escapes. It is vectorised over the rows; the
authors' own program without a GPU takes 61 s for 128 x 64 (its README). Both run in one process, one after the other,
and CPU time is given.

For models the share is that of all that 2:4 loses in the weights of a group, which no order can win back in full.
"""

from __future__ import annotations

import argparse
import time
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.graph.inline import inline
from onnxprune.model import Model
from onnxprune.permutation.permute import permute
from onnxprune.permutation.search import kept, search

Array = NDArray[Any]
SPLITS = np.array([(0, *c, *sorted(set(range(1, 8)) - set(c))) for c in combinations(range(1, 8), 3)])


class Published:
    """The published search: pairs of stripes, exhaustively."""

    def __init__(self, saliency: Array, escapes: int, seed: int = 0) -> None:
        self.columns = np.ascontiguousarray(saliency.T)
        self.order = np.arange(saliency.shape[1]).reshape(-1, 4)
        self.escapes, self.rng = escapes, np.random.default_rng(seed)
        self.pairs = list(combinations(range(len(self.order)), 2))
        self.gain, self.split = np.zeros(len(self.pairs)), np.zeros(len(self.pairs), int)

    def run(self) -> Array:
        """Search until nothing is gained and all escapes are used up; the best order that was seen."""
        changed = set(range(len(self.order)))
        best, most = self.order.copy(), 0.0
        while True:
            for n, pair in enumerate(self.pairs):
                if changed & set(pair):
                    self.gain[n], self.split[n] = self.look(pair)
            changed = self.apply()
            value = self.value() if not changed else 0.0
            if value > most:
                best, most = self.order.copy(), value
            if not changed:
                if self.escapes <= 0:
                    return best.ravel()
                self.escapes -= 1
                changed = self.escape()

    def look(self, pair: tuple[int, int]) -> tuple[float, int]:
        """Return the gain of the best split of two stripes, and which it is."""
        eight = self.columns[self.order[list(pair)].ravel()]
        halves = np.partition(eight[SPLITS].reshape(35, 2, 4, -1), 2, axis=2)[:, :, 2:]
        sums = halves.sum(axis=(1, 2, 3), dtype=np.float64)
        best = int(sums.argmax())
        return float(sums[best] - sums[0]), best

    def apply(self) -> set[int]:
        """Apply the best splits that share no stripe."""
        used: set[int] = set()
        for n in np.argsort(-self.gain):
            if self.gain[n] <= 1e-4:
                break
            pair = self.pairs[n]
            if not used & set(pair):
                self.order[list(pair)] = self.order[list(pair)].ravel()[SPLITS[self.split[n]]].reshape(2, 4)
                used |= set(pair)
        return used

    def escape(self) -> set[int]:
        """Swap two columns of a pair of stripes, whatever it costs."""
        pair = self.pairs[self.rng.integers(len(self.pairs))]
        i, j = self.rng.integers(0, 4, 2)
        a, b = pair
        self.order[a, i], self.order[b, j] = self.order[b, j], self.order[a, i]
        return set(pair)

    def value(self) -> float:
        """Return what is kept."""
        return float(np.partition(self.columns[self.order], 2, axis=1)[:, 2:].sum(dtype=np.float64))


def share(saliency: Array, order: Array) -> float:
    """Return the published measure, in percent."""
    before = kept(saliency, np.arange(order.size), 2, 4)
    free = float(np.sort(saliency, axis=1)[:, order.size // 2 :].sum(dtype=np.float64))
    return 100 * (kept(saliency, order, 2, 4) - before) / (free - before)


def lost(saliency: Array, order: Array) -> float:
    """Return the share of all that 2:4 loses which is won back, in percent."""
    before = kept(saliency, np.arange(order.size), 2, 4)
    return 100 * (kept(saliency, order, 2, 4) - before) / (float(saliency.sum(dtype=np.float64)) - before)


def matrices(quick: bool) -> None:
    """Print the table of random matrices."""
    print(
        "| rows x columns | numbers | search | share % | of the loss % | CPU s |\n|---|---|---|---|---|---|"
    )
    sizes = [(128, 64, "uniform"), (64, 64, "normal"), (256, 256, "normal"), (1024, 1024, "normal")]
    for rows, columns, kind in sizes[: 3 if quick else 4]:
        rng = np.random.default_rng(1)
        saliency = rng.random((rows, columns)) if kind == "uniform" else rng.standard_normal((rows, columns))
        saliency = np.abs(saliency).astype(np.float32)
        escapes = (0, 100) if columns <= 64 else (0,)
        runs: list[tuple[str, Any]] = [
            (f"published, {n} escapes", lambda n=n, m=saliency: Published(m, n).run()) for n in escapes
        ]
        runs += [
            (f"onnxprune, {n} rounds", lambda n=n, m=saliency: search(m, 2, 4, rounds=n))
            for n in (0, 100, 1000)
        ]
        for name, run in runs:
            start = time.process_time()
            order = run()
            seconds = time.process_time() - start
            figures = f"{share(saliency, order):.1f} | {lost(saliency, order):.2f} | {seconds:.2f}"
            print(f"| {rows} x {columns} | {kind} | {name} | {figures} |", flush=True)


def models(paths: list[str], rounds: int) -> None:
    """Print the table of models: what is lost is the magnitude of the weights that 2:4 takes away."""
    print("| model | groups | refused | kept before | after | won back of the loss % | error | CPU s |")
    print("|---|---|---|---|---|---|---|---|")
    for path in paths:
        model = inline(Model.load(path))

        def magnitude(name: str, model: Model = model) -> Array | None:
            info = model.info(name)
            return np.abs(model.weight(name)) if info.elem_type == 1 and len(info.dims) > 1 else None

        start = time.process_time()
        found = permute(model, magnitude, (2, 4), rounds=rounds)
        seconds = time.process_time() - start
        gains = found.gains.values()
        total, before, after = (sum(getattr(g, n) for g in gains) for n in ("total", "before", "after"))
        won = 100 * (after - before) / (total - before) if gains else 0.0
        shares = f"{before / total:.4f} | {after / total:.4f}" if gains else "- | -"
        name = path.rsplit("/", 1)[-1]
        last = f"{shares} | {won:.1f} | {found.error:.1e} | {seconds:.1f}"
        print(f"| {name} | {len(gains)} | {len(found.refused)} | {last} |", flush=True)


def main() -> None:
    """Run what the arguments ask for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rounds", type=int, default=1000)
    given = parser.parse_args()
    models(given.models, given.rounds) if given.models else matrices(given.quick)


if __name__ == "__main__":
    main()
