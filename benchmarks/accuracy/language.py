"""Perplexity of a decoder that was cut, by this tool or by the recipe of a paper on the same graph and samples.

    python benchmarks/accuracy/language.py MODEL --text test.npy [--out CUT.onnx ...]
    python benchmarks/accuracy/language.py MODEL --text test.npy --calib S.npz --recipe flap block --target macs=0.8

`--text` is an .npy of token ids, scored in windows of 512; `--out` files are scored beside MODEL. A recipe takes whole
units as the tool's groups have them, so that the cut is exact and sizes are real; none of them trains anything.

flap      fluctuation of a layer's inputs times the squares of its weights, standardised in each kind and layer, one
          threshold over the model; what goes is replaced by its mean, as a bias (arXiv 2312.11983)
wanda-sp  |weight| times the norm of its input, summed over a unit; the same share of each layer (the baseline of the
          same paper, after arXiv 2306.11695)
block     whole layers, those whose input and output are most alike by their cosine (arXiv 2403.03853)
slice     the stream of each sum on its first principal axes (arXiv 2401.15024); sizes as that paper has them, with the
          matrices between the bases of neighbouring sums
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import helper

from onnxprune import granularity
from onnxprune.calibration.samples import Samples, load_samples
from onnxprune.calibration.stream import stream_of
from onnxprune.cut.depth import shallow
from onnxprune.graph.analysis import Analysis, analyse
from onnxprune.graph.depth import Branch, Depth
from onnxprune.graph.group_types import Group
from onnxprune.graph.inline import inline
from onnxprune.graph.interface import interface
from onnxprune.graph.size import count_macs, count_parameters
from onnxprune.model import Model
from onnxprune.reconstruction.layers import Site, readers, sites

Floats = NDArray[np.float64]
Picks = dict[str, NDArray[np.int64]]
WINDOW = 512


@dataclass
class Task:
    """A decoder, its samples, and what of it may go: whole heads and neurons, never the stream."""

    analysis: Analysis
    samples: Samples

    @cached_property
    def depth(self) -> Depth:
        return Depth.of(self.analysis)

    @cached_property
    def layers(self) -> list[tuple[Branch, Branch]]:
        """An attention and a feed-forward part each."""
        return list(zip(self.depth.branches[::2], self.depth.branches[1::2], strict=True))

    @cached_property
    def stream(self) -> Group:
        """The group that most of the model's weights read or write."""
        return max(self.analysis.grouping.groups, key=lambda g: int(g.params.sum()))

    @cached_property
    def groups(self) -> list[Group]:
        every = self.analysis.grouping.groups
        return [g for g in every if not g.alternative and g is not self.stream and g.name in self.reads]

    @cached_property
    def alike(self) -> NDArray[np.int64]:
        """Layers, those first whose input and output are most alike."""
        cosines, rows = np.zeros(len(self.layers)), 0
        for batch in self.run(n for a, b in self.layers for n in (a.stream, b.sum)):
            for n, (a, b) in enumerate(self.layers):
                x, y = batch[a.stream].astype(np.float64), batch[b.sum].astype(np.float64)
                sizes = np.linalg.norm(x, axis=-1) * np.linalg.norm(y, axis=-1)
                cosines[n] += ((x * y).sum(-1) / np.maximum(sizes, 1e-30)).sum()
            rows += sizes.size
        return np.argsort(1 - cosines / rows, kind="stable")

    @cached_property
    def reads(self) -> dict[str, tuple[Site, list[NDArray[np.int64]]]]:
        """Group -> the one layer that reads it, and the inputs of each unit."""
        every = readers(sites(self.analysis), list(self.analysis.grouping.groups))
        return {n: (reads[0][0], [*reads[0][1][0]]) for n, reads in every.items() if len(reads) == 1}

    @cached_property
    def moments(self) -> dict[str, tuple[Floats, Floats]]:
        """Group -> mean and mean square of each input of its layer, over all positions."""
        names = {g.name: self.reads[g.name][0].x for g in self.groups}
        sums = {name: [np.zeros(1), np.zeros(1), 0] for name in names}
        for batch in self.run(names.values()):
            for name, x in names.items():
                rows = batch[x].reshape(-1, batch[x].shape[-1]).astype(np.float64)
                one, two, count = sums[name]
                sums[name] = [one + rows.sum(0), two + np.square(rows).sum(0), count + len(rows)]
        return {name: (one / count, two / count) for name, (one, two, count) in sums.items()}

    @cached_property
    def axes(self) -> dict[str, Floats]:
        """Sum of the stream -> its principal axes, of rows as a norm leaves them, the first ones last."""
        sums = [self.depth.branches[0].stream, *(b.sum for b in self.depth.branches)]
        grams: dict[str, Any] = dict.fromkeys(sums, 0.0)
        for batch in self.run(sums):
            for name in sums:
                rows = batch[name].reshape(-1, batch[name].shape[-1]).astype(np.float64)
                rows = rows / np.sqrt(np.square(rows).mean(axis=1, keepdims=True))
                grams[name] = grams[name] + rows.T @ rows
        return {name: np.linalg.eigh(gram)[1] for name, gram in grams.items()}

    def run(self, wanted: Iterable[str]) -> Iterator[dict[str, Any]]:
        yield from stream_of(self.analysis.model, self.samples).each(list(dict.fromkeys(wanted)))

    def weight(self, group: Group) -> Floats:
        """float64[inputs, outputs] of the layer that reads a group."""
        site = self.reads[group.name][0]
        return np.asarray(site.view.unpack(site.codec.read(self.analysis.model))[0], np.float64)

    def shares(self, gone: Picks) -> tuple[float, float]:
        """Parameters and MACs that are left."""
        coupling, model = self.analysis.coupling, self.analysis.model
        lost = sum(int(g.params[gone[g.name]].sum()) for g in self.groups if g.name in gone)
        macs = count_macs(coupling, self.analysis.grouping.dead(gone)) / count_macs(coupling)
        return 1 - lost / count_parameters(model), macs


def least_that_meets(make: Callable[[float], Any], meets: Callable[[Any], bool], steps: int = 24) -> Any:
    """What is made at the least share for which a target is met."""
    low, high = 0.0, 1.0
    for _ in range(steps):
        middle = (low + high) / 2
        low, high = (low, middle) if meets(make(middle)) else (middle, high)
    return make(high)


def of_unit(task: Task, group: Group, scores: Floats) -> Floats:
    return np.array([scores[rows].sum() for rows in task.reads[group.name][1]])


def flap(task: Task, meets: Callable[[Picks], bool]) -> Picks:
    scores: list[tuple[float, float, str, int]] = []
    for group in task.groups:
        mean, square = task.moments[group.name]
        score = (square - mean**2) * np.square(task.weight(group)).sum(axis=1)
        units = of_unit(task, group, score) / [len(r) for r in task.reads[group.name][1]]
        units = (units - units.mean()) / max(float(units.std()), 1e-30)
        scores += [(float(s), float(group.params[u]), group.name, u) for u, s in enumerate(units)]
    scores.sort()
    total = sum(size for _, size, _, _ in scores)

    def first(share: float) -> Picks:
        gone, taken = dict[str, list[int]](), 0.0
        for _, size, name, unit in scores:
            if taken + size > share * total:
                break
            taken += size
            gone.setdefault(name, []).append(unit)
        return at_least_one(task, gone)

    return dict(least_that_meets(first, meets))


def wanda(task: Task, meets: Callable[[Picks], bool]) -> Picks:
    orders = {}
    for group in task.groups:
        norm = np.sqrt(task.moments[group.name][1])
        orders[group.name] = np.argsort(
            of_unit(task, group, np.abs(task.weight(group)).sum(axis=1) * norm), kind="stable"
        )

    def share_of_each(share: float) -> Picks:
        return at_least_one(task, {n: list(o[: round(share * len(o))]) for n, o in orders.items()})

    return dict(least_that_meets(share_of_each, meets))


def at_least_one(task: Task, gone: dict[str, list[int]]) -> Picks:
    units = {g.name: g.units for g in task.groups}
    return {n: np.sort(np.array(u[: units[n] - 1], np.int64)) for n, u in gone.items() if u[: units[n] - 1]}


def with_means(task: Task, gone: Picks, model: Model) -> None:
    """Give layers what the units that are gone gave on average, as a bias."""
    graph = model.proto.graph
    makers = {name: node for node in graph.node for name in node.output}
    for name, units in gone.items():
        site, rows = task.reads[name]
        group = next(g for g in task.groups if g.name == name)
        lost = np.concatenate([rows[u] for u in units])
        bias = (task.moments[name][0][lost] @ task.weight(group)[lost]).astype(np.float32)
        node = makers[site.y]
        node.output[0] = f"{site.y}/without"
        both = [node.output[0], model.add(f"{site.y}/mean", bias)]
        graph.node.insert([*graph.node].index(node) + 1, helper.make_node("Add", both, [site.y]))


def block(task: Task, target: tuple[int, float]) -> tuple[Model, float, float]:
    """Take whole layers out, an attention and a feed-forward part each, until the target is met."""
    order, pairs = task.alike, task.layers
    whole = np.array([count_parameters(task.analysis.model), count_macs(task.analysis.coupling)], np.float64)
    left, names = whole.copy(), list[str]()
    for n in order:
        left -= np.sum([(b.params, b.macs) for b in pairs[n]], axis=0)
        names += [b.name for b in pairs[n]]
        if (left / whole)[target[0]] <= target[1]:
            print("layers out:", sorted(int(n) for n in order[: len(names) // 2]), file=sys.stderr)
            return shallow(task.depth, names).model, *(float(share) for share in left / whole)
    raise SystemExit("the target can't be met by whole layers")


def slice_stream(task: Task, share: float) -> Model:
    """Put each sum of the stream on its first axes, where the next layer and the next sum read it."""
    model, sums = (
        task.analysis.model.fork(),
        [task.depth.branches[0].stream, *(b.sum for b in task.depth.branches)],
    )
    graph = model.proto.graph
    for name in sums:
        axes = task.axes[name]
        first = axes[:, -round(share * len(axes)) :]
        node = next(n for n in graph.node if name in n.output)
        node.output[[*node.output].index(name)] = f"{name}/whole"
        both = [f"{name}/whole", model.add(f"{name}/axes", (first @ first.T).astype(np.float32))]
        graph.node.insert([*graph.node].index(node) + 1, helper.make_node("MatMul", both, [name]))
    return model


def sliced(task: Task, share: float) -> tuple[float, float]:
    """Parameters and MACs that are left: all weights read or write the stream once; two bases meet at each sum."""
    coupling, group = task.analysis.coupling, task.stream
    kept = round(share * group.units)
    gone, between = np.arange(kept, group.units), len(task.depth.branches) * kept * kept
    params, macs = count_parameters(task.analysis.model), count_macs(coupling)
    left = count_macs(coupling, task.analysis.grouping.dead({group.name: gone}))
    rows = int(np.prod(next(iter(task.analysis.inputs.values()))))
    lost = int(group.params[gone].sum())
    return (params - lost + between) / params, (left + between * rows) / macs


def perplexity(model: Model | Path, ids: NDArray[np.int64], windows: int) -> float:
    """Of the first windows, each token after those before it in its window."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    if isinstance(model, Path):
        session = ort.InferenceSession(str(model), options)
        names, run = {i.name for i in session.get_inputs()}, lambda feeds: session.run(None, feeds)[0]
    else:
        from onnxprune.runtime.session import open_session

        opened = open_session(model, optimise=True)
        names, run = set(opened.shapes), lambda feeds: next(iter(opened.run(feeds).values()))
    count = min(windows or len(ids), len(ids) // WINDOW)
    lost = 0.0
    for x in ids[: count * WINDOW].reshape(count, 1, WINDOW):
        feeds = {"input_ids": x, "attention_mask": np.ones_like(x), "position_ids": np.arange(WINDOW)[None]}
        z = run({n: a for n, a in feeds.items() if n in names})[0, :-1].astype(np.float64)
        top = z.max(axis=1)
        lost += float(
            (np.log(np.exp(z - top[:, None]).sum(1)) + top - z[np.arange(WINDOW - 1), x[0, 1:]]).sum()
        )
    return float(np.exp(lost / (count * (WINDOW - 1))))


def cut_by(recipe: str, task: Task, target: str) -> tuple[Model, float, float]:
    kind, _, value = target.partition("=")
    goal, at = float(value), ("params", "macs").index(kind)
    if recipe == "block":
        return block(task, (at, goal))
    if recipe == "slice":
        share = 1 - least_that_meets(lambda s: s, lambda s: sliced(task, 1 - s)[at] <= goal)
        return slice_stream(task, share), *sliced(task, share)
    rank = {"flap": flap, "wanda-sp": wanda}[recipe]
    gone = rank(task, lambda picks: task.shares(picks)[at] <= goal)
    for group in task.groups:
        print(group.name, len(gone.get(group.name, ())), "of", group.units, "gone", file=sys.stderr)
    model = granularity.load().cut(task.analysis, gone).model
    if recipe == "flap":
        with_means(task, gone, model)
    return model, *task.shares(gone)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("--text", type=Path, required=True, help=".npy of token ids")
    parser.add_argument("--windows", type=int, default=8, help="scored, 0 for all")
    parser.add_argument("--out", type=Path, nargs="*", default=[], help="files to score as they are")
    parser.add_argument("--calib", type=Path)
    parser.add_argument("--recipe", nargs="+", choices=("flap", "wanda-sp", "block", "slice"))
    parser.add_argument("--target", nargs="+", default=["macs=0.8"], help="macs=SHARE or params=SHARE")
    args = parser.parse_args()
    ids = np.load(args.text).reshape(-1)
    for path in args.out or ([] if args.recipe else [args.model]):
        print(
            json.dumps({"file": path.name, "perplexity": round(perplexity(path, ids, args.windows), 3)}),
            flush=True,
        )
    if args.recipe:
        with np.load(args.calib) as file:
            shape = {name: (1, file[name].shape[1]) for name in file.files}
        analysis = analyse(inline(Model.load(args.model)), input_shapes=shape)
        task = Task(analysis, load_samples(interface(analysis), args.calib).cut_into(8))
        for recipe, target in itertools.product(args.recipe, args.target):
            model, params, macs = cut_by(recipe, task, target)
            row = {"recipe": recipe, "target": target, "params": round(params, 4), "macs": round(macs, 4)}
            row["perplexity"] = round(perplexity(model, ids, args.windows), 3)
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
