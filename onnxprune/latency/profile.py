"""Times of single layers, taken inside their model.

A layer timed alone is not the layer: onnxruntime fuses it with its neighbours, keeps channels in blocks between layers
(and so reorders only at the ends), and finds its input in the cache or not. So layers are timed where they stand, by
onnxruntime's own profiler, in whole models of several widths that take turns. What no node of the model can be blamed
for (reorders, mostly) is kept as a rest.
"""

from __future__ import annotations

import json
import re
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from onnxprune.files.holding import scratch
from onnxprune.graph.coupling import Coupling
from onnxprune.latency.clock import Bench, runs_of, timed_turn
from onnxprune.model import Model

__all__ = ["Timed", "blame", "profile"]

#: Of the runs of one model the time that a quarter of them don't exceed: what is slower was disturbed.
QUANTILE = 0.25
#: Rounds, and seconds after which no new one begins.
ROUNDS, LEAST, SECONDS = 25, 5, 12.0


@dataclass(frozen=True)
class Timed:
    """Times of one model, in seconds.

    Attributes
    ----------
    whole : float
        Of a run.
    nodes : dict
        Number of a node -> time of the kernel that does its work.
    rest : float
        Of kernels that are no node's.
    """

    whole: float
    nodes: dict[int, float]
    rest: float


def blame(coupling: Coupling) -> dict[str, int]:
    """Return for each tensor the number of the node whose work makes it.

    A kernel that onnxruntime fused is named after the last tensor that it makes, so an activation's tensor stands for
    the matrix product before it, if nothing else reads what lies between.
    """
    readers: defaultdict[str, int] = defaultdict(int)
    for applied in coupling.nodes:
        for name in applied.node.inputs:
            readers[name] += 1
    makers: dict[str, int] = {}
    for number, applied in enumerate(coupling.nodes):
        read = [name for name in applied.node.inputs if name in makers]
        first = read[0] if len(read) == 1 else ""
        before = makers.get(first)
        fused = (
            not applied.macs
            and before is not None
            and bool(coupling.nodes[before].macs)
            and readers[first] == 1
        )
        for name in applied.node.outputs:
            if name:
                makers[name] = before if fused and before is not None else number
    return makers


def profile(models: Sequence[Model], makers: Mapping[str, int], bench: Bench) -> list[Timed]:
    """Time models and their nodes in turns.

    Parameters
    ----------
    models : sequence of Model
        Cut from one model, so that their tensors have its names.
    makers : mapping
        Tensor -> number of the node in that model, see `blame`.
    bench : Bench

    Raises
    ------
    RunError
        If onnxruntime doesn't take a model.
    """
    with scratch() as place:
        plain = [bench.open(model) for model in models]
        watched = [
            bench.open(_named(model, makers), profile=str(place / f"m{n}")) for n, model in enumerate(models)
        ]
        run, watch = [bench.runs(session) for session in plain], [bench.runs(session) for session in watched]
        for each in watch:
            each()
        runs = [runs_of(each, bench.clock) for each in run]
        wholes: list[list[float]] = [[] for _ in models]
        start = time.perf_counter()
        for turn in range(ROUNDS):
            order = range(len(models)) if turn % 2 == 0 else range(len(models) - 1, -1, -1)
            for n in order:
                run[n]()  # another model was in the caches
                wholes[n].append(timed_turn(run[n], runs[n], bench.clock)[1])
                watch[n]()
                watch[n]()
            if turn + 1 >= LEAST and time.perf_counter() - start > SECONDS:
                break
        timed = []
        for times, session in zip(wholes, watched, strict=True):
            nodes, rest = _read(Path(session.end_profiling()), makers)
            timed.append(Timed(float(np.quantile(times, QUANTILE)), nodes, rest))
        return timed


def _named(model: Model, makers: Mapping[str, int]) -> Model:
    """Return a fork whose nodes carry the numbers of the nodes that they were."""
    twin = model.fork()
    for node in twin.proto.graph.node:
        number = next((makers[n] for n in node.output if n in makers), -1)
        node.name = f"@{number}@{node.output[0] if node.output else ''}"
    return twin


def _read(path: Path, makers: Mapping[str, int]) -> tuple[dict[int, float], float]:
    """Read a profile: the time of each node, and of what is no node's."""
    events = json.loads(path.read_text(encoding="utf-8"))
    runs: defaultdict[str, list[float]] = defaultdict(list)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            runs[event["name"].removesuffix("_kernel_time")].append(1e-6 * float(event["dur"]))
    nodes: defaultdict[int, float] = defaultdict(float)
    rest = 0.0
    for name, times in runs.items():
        warm = times[2::2] or times  # of two runs of a turn the second
        seconds = float(np.quantile(warm, QUANTILE))
        number = _number(name, makers)
        if number is None:
            rest += seconds
        else:
            nodes[number] += seconds
    return dict(nodes), rest


def _number(name: str, makers: Mapping[str, int]) -> int | None:
    """Return the node that a kernel works for, by its name: that of a node, or of the tensor that it makes."""
    match = re.search(r"@(-?\d+)@", name)
    if match is not None:
        return int(match[1]) if int(match[1]) >= 0 else None
    while name:
        if name in makers:
            return makers[name]
        shorter = re.sub(r"(_nchwc|_token_\d+|_\d+)$", "", name)
        if shorter == name:
            return None
        name = shorter
    return None
