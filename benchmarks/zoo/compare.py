"""Run two models on the same random inputs in onnxruntime and measure how far their outputs are apart."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

Feeds = dict[str, np.ndarray]

# Sizes tried for symbolic dimensions, in turn, until the original runs: (height and width of rank 4, others).
TRIALS = ((64, 16), (224, 64), (32, 8), (320, 128), (48, 512), (256, 1), (128, 2000), (416, 4096))
KNOWN = {"sr": 16000}  # integer inputs that must hold a certain number
KNOWN_SHAPES = {"state": [2, 1, 128]}  # inputs of symbolic shape that take one size only
NUMPY = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(bool)": np.bool_,
    "tensor(uint8)": np.uint8,
    "tensor(int8)": np.int8,
}
EXTERNAL_LIMIT = 1_900_000_000


class NoInput(Exception):
    """No random input was found on which the original runs."""


def session(model: onnx.ModelProto | Path) -> ort.InferenceSession:
    """Open a session on one thread with the default optimizations."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4  # sizes are tried out: failed runs are no news
    if isinstance(model, Path):
        return ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    if model.ByteSize() < EXTERNAL_LIMIT:
        return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        onnx.save(model, path, save_as_external_data=True)
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def find_inputs(
    model: Any, seeds: tuple[int, ...] = (0, 1), shapes: dict[str, list[int]] | None = None
) -> list[Feeds]:
    """Return random inputs, one set a seed, on which the open session `model` runs.

    Raises
    ------
    NoInput
        With onnxruntime's reason for the first sizes tried.
    """
    reason = ""
    for trial in TRIALS:
        feeds = [_feeds(model, trial, np.random.default_rng(seed), shapes or {}) for seed in seeds]
        try:
            model.run(None, feeds[0])
            return feeds
        except Exception as error:  # onnxruntime raises many types
            reason = reason or str(error)
    raise NoInput(reason.replace("\n", " ")[:200])


def _feeds(
    model: Any, trial: tuple[int, int], rng: np.random.Generator, shapes: dict[str, list[int]]
) -> Feeds:
    named: dict[str, int] = {}
    feeds: Feeds = {}
    for value in model.get_inputs():
        shape = shapes.get(value.name)
        if shape is None and value.name in KNOWN_SHAPES and len(value.shape) == len(KNOWN_SHAPES[value.name]):
            shape = KNOWN_SHAPES[value.name]
        shape = list(_sizes(value.shape, trial, named)) if shape is None else shape
        dtype = NUMPY.get(value.type, np.float32)
        if dtype is np.bool_ or ("mask" in value.name and np.issubdtype(dtype, np.integer)):
            feeds[value.name] = np.ones(shape, dtype)
        elif np.issubdtype(dtype, np.integer):
            feeds[value.name] = rng.integers(1, 5, shape).astype(dtype)
            if value.name in KNOWN:
                feeds[value.name] = np.full(shape, KNOWN[value.name], dtype)
        else:
            feeds[value.name] = rng.standard_normal(shape).astype(dtype)
    return feeds


def _sizes(shape: list[Any], trial: tuple[int, int], named: dict[str, int]) -> Iterator[int]:
    for axis, size in enumerate(shape):
        if isinstance(size, int) and size > 0:
            yield size
        elif axis == 0:
            yield named.setdefault(str(size), 1) if size else 1
        else:
            guess = trial[0] if len(shape) >= 4 else trial[1]
            yield named.setdefault(str(size), guess) if size else guess


def run(model: Any, feeds: list[Feeds]) -> list[list[np.ndarray]]:
    """Return the outputs of every set of inputs."""
    return [[np.asarray(o) for o in model.run(None, f)] for f in feeds]


def distance(expected: list[list[np.ndarray]], found: list[list[np.ndarray]]) -> float:
    """Return the greatest of max|a - b| / max|a| over outputs and inputs.

    Infinite where shapes differ or only one of both is finite. Integer and boolean outputs: the share of
    elements that differ.
    """
    worst = 0.0
    for a_all, b_all in zip(expected, found, strict=True):
        for a, b in zip(a_all, b_all, strict=True):
            worst = max(worst, _relative(a, b))
    return worst


def _relative(a: np.ndarray, b: np.ndarray) -> float:
    if a.shape != b.shape or a.dtype != b.dtype:
        return float("inf")
    if a.size == 0:
        return 0.0
    if a.dtype.kind != "f":
        return float(np.mean(a != b))
    a, b = a.astype(np.float64), b.astype(np.float64)
    finite = np.isfinite(a)
    if not np.array_equal(finite, np.isfinite(b)):
        return float("inf")
    if not finite.any():
        return float("inf")
    scale = float(np.abs(a[finite]).max())
    difference = float(np.abs(a[finite] - b[finite]).max())
    return difference / scale if scale else (0.0 if difference == 0.0 else float("inf"))
