"""Samples from no data: procedural images with the spectrum of natural ones, random sequences for token inputs.

References
----------
Field, "Relations between the statistics of natural images and the response properties of cortical cells", JOSA A 1987:
amplitude falls as 1/f.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxprune.calibration.feeds import counted_axes, lie_first, sample_axes
from onnxprune.errors import CalibrationError
from onnxprune.runtime.binding import declared, real_inputs
from onnxprune.runtime.inputs import NoValues, texts
from onnxprune.runtime.said import said_in_values

__all__ = ["synthetic"]

Array = NDArray[Any]

#: From this length on, the last axis of an input that is no image is time.
LONG = 64


def synthetic(
    graph: onnx.GraphProto, shapes: Mapping[str, tuple[int, ...]], count: int, seed: int
) -> list[dict[str, Array]]:
    """Draw samples for every input.

    Parameters
    ----------
    graph : GraphProto
    shapes : mapping
        Input -> shape of one batch; axes of one name have one size.
    count : int
        Samples.
    seed : int

    Returns
    -------
    list of dict
        Input -> array: one of all samples, along the batch's axis, or as many batches as are needed where that isn't
        known. Images are of mean 0 and variance 1 over the set, which suits inputs that are standardised; other scales
        can't be known without data.

    Raises
    ------
    CalibrationError
        If an input's shape isn't known, it is no tensor, or takes texts and the model lists none.
    """
    inputs = {v.name: v for v in real_inputs(graph)}
    for name, value in inputs.items():
        if not value.type.HasField("tensor_type"):
            raise CalibrationError(f"No synthetic samples can be made for {name!r}, which is no tensor.")
        if name not in shapes or declared(value) is None:
            raise CalibrationError(f"No synthetic samples can be made for {name!r}, whose shape is unknown.")
    rng = np.random.default_rng(seed)
    sizes = {name: shapes[name] for name in inputs}
    lengths = said_in_values(graph, sizes)
    lie = sample_axes(inputs, graph.output)
    places = {n: (lie or {}).get(n, 0) for n in sizes}
    whole = {n: _of_all(s, places[n], count) for n, s in sizes.items()}
    one = len({s[places[n]] for n, s in whole.items() if s}) == 1
    if one and (lie is not None or _along_first(inputs)):
        return [{name: _drawn(graph, value, whole[name], rng, lengths) for name, value in inputs.items()}]
    along = counted_axes(inputs, graph.output)
    held = [
        s[0] if along is None else s[along[n]]
        for n, s in sizes.items()
        if s and (along is None or n in along)
    ]
    number = max(count // max([*held, 1]), 1)
    return [{n: _drawn(graph, v, sizes[n], rng, lengths) for n, v in inputs.items()} for _ in range(number)]


def _of_all(size: tuple[int, ...], place: int, count: int) -> tuple[int, ...]:
    """Return the shape of one array for about so many samples, whole batches along this axis."""
    if not size or not size[place]:
        return size
    return (*size[:place], max(count // size[place], 1) * size[place], *size[place + 1 :])


def _along_first(inputs: Mapping[str, onnx.ValueInfoProto]) -> bool:
    """Whether one array for each input can hold all samples along axis 0."""
    fixed = {axes[0] for v in inputs.values() if (axes := declared(v)) and isinstance(axes[0], int)}
    return lie_first(inputs) and len(fixed) <= 1


def _drawn(
    graph: onnx.GraphProto,
    value: onnx.ValueInfoProto,
    size: tuple[int, ...],
    rng: np.random.Generator,
    lengths: Mapping[str, int],
) -> Array:
    elem = value.type.tensor_type.elem_type
    if elem == onnx.TensorProto.STRING:
        try:
            return texts(graph, value.name, size, rng)
        except NoValues as error:
            raise CalibrationError(
                f"No synthetic samples can be made: {error}; give samples with --calib."
            ) from error
    dtype = onnx.helper.tensor_dtype_to_np_dtype(elem)
    if value.name in lengths:
        return np.full(size, lengths[value.name], dtype)
    if dtype.kind in "biu":
        ones = "mask" in value.name.lower()
        return np.ones(size, dtype) if ones else np.asarray(rng.integers(0, 2, size)).astype(dtype)
    if len(size) == 4 and all(size):
        return images(size, rng).astype(dtype)
    if len(size) >= 2 and size[-1] >= LONG and all(size):
        return series(size, rng).astype(dtype)
    return np.asarray(rng.standard_normal(size)).astype(dtype)


def series(size: tuple[int, ...], rng: np.random.Generator) -> Array:
    """Return series along the last axis with a 1/f spectrum of power, each of mean 0 and variance 1 but for loudness.

    Loudness varies between samples and along the series, as that of speech and of machines does.
    """
    frequency = np.fft.rfftfreq(size[-1])
    frequency[0] = frequency[1]
    noise = np.fft.rfft(rng.standard_normal(size)) / np.sqrt(frequency)
    smooth = np.fft.irfft(noise, n=size[-1])
    smooth /= smooth.std(axis=-1, keepdims=True) + 1e-12
    corners = np.abs(rng.standard_normal((*size[:-1], 9)))
    at = np.linspace(0, 8, size[-1])
    left = np.minimum(at.astype(int), 7)
    loud = corners[..., left] * (1 - (at - left)) + corners[..., left + 1] * (at - left)
    scaled = smooth * loud
    return np.asarray(scaled / (scaled.std() + 1e-12))


def images(size: tuple[int, ...], rng: np.random.Generator) -> Array:
    """Return images with a 1/f spectrum whose colours go together, with edges: leaves of random discs on top.

    Parameters
    ----------
    size : tuple
        (count, channels, height, width), or channels last where the last axis is the smallest.
    rng : Generator
    """
    last = size[3] < size[1]
    count, channels = size[0], size[3] if last else size[1]
    high, wide = (size[1], size[2]) if last else (size[2], size[3])
    frequency = np.hypot(np.fft.fftfreq(high)[:, None], np.fft.rfftfreq(wide)[None])
    frequency[0, 0] = 1 / max(high, wide)
    y, x = np.mgrid[:high, :wide]
    pictures = np.empty((count, channels, high, wide), np.float32)
    for n in range(count):
        noise = rng.standard_normal((channels + 1, high, wide))
        smooth = np.fft.irfft2(np.fft.rfft2(noise) / frequency, s=(high, wide))
        smooth /= smooth.std(axis=(1, 2), keepdims=True) + 1e-12
        picture = 0.8 * smooth[:1] + 0.4 * smooth[1:] + rng.standard_normal((channels, 1, 1)) * 0.5
        for _ in range(rng.integers(1, 6)):
            centre, radius = rng.random(2) * (high, wide), rng.uniform(0.1, 0.4) * min(high, wide)
            inside = (y - centre[0]) ** 2 + (x - centre[1]) ** 2 < radius**2
            picture = np.where(inside, 0.4 * picture + rng.standard_normal((channels, 1, 1)), picture)
        pictures[n] = picture
    pictures -= pictures.mean()
    pictures /= pictures.std() + 1e-12
    return np.moveaxis(pictures, 1, -1) if last else pictures
