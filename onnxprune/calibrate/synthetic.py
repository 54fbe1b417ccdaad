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

from onnxprune.errors import CalibrationError
from onnxprune.graph.binding import real_inputs

__all__ = ["synthetic"]

Array = NDArray[Any]

#: From this length on, the last axis of an input that is no image is time.
LONG = 64


def synthetic(
    graph: onnx.GraphProto, shapes: Mapping[str, tuple[int, ...]], count: int, seed: int
) -> dict[str, Array]:
    """Draw samples for every input.

    Parameters
    ----------
    graph : GraphProto
    shapes : mapping
        Input -> shape of one batch.
    count : int
        Samples.
    seed : int

    Returns
    -------
    dict
        Input -> array, samples along axis 0. Images are of mean 0 and variance 1 over the set, which suits inputs that
        are standardised; other scales can't be known without data.

    Raises
    ------
    CalibrationError
        If an input's shape isn't known.
    """
    rng = np.random.default_rng(seed)
    found: dict[str, Array] = {}
    for value in real_inputs(graph):
        shape = shapes.get(value.name)
        if shape is None or not shape:
            raise CalibrationError(
                f"No synthetic samples can be made for {value.name!r}, whose shape is unknown."
            )
        dtype = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        batch = shape[0]
        size = (max(count // batch, 1) * batch, *shape[1:])
        if dtype.kind in "biu":
            ones = "mask" in value.name.lower()
            found[value.name] = np.ones(size, dtype) if ones else rng.integers(0, 2, size).astype(dtype)
        elif len(size) == 4:
            found[value.name] = images(size, rng).astype(dtype)
        elif len(size) >= 2 and size[-1] >= LONG:
            found[value.name] = series(size, rng).astype(dtype)
        else:
            found[value.name] = rng.standard_normal(size).astype(dtype)
    return found


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
    found = smooth * loud
    return np.asarray(found / (found.std() + 1e-12))


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
    found = np.empty((count, channels, high, wide), np.float32)
    for n in range(count):
        noise = rng.standard_normal((channels + 1, high, wide))
        smooth = np.fft.irfft2(np.fft.rfft2(noise) / frequency, s=(high, wide))
        smooth /= smooth.std(axis=(1, 2), keepdims=True) + 1e-12
        picture = 0.8 * smooth[:1] + 0.4 * smooth[1:] + rng.standard_normal((channels, 1, 1)) * 0.5
        for _ in range(rng.integers(1, 6)):
            centre, radius = rng.random(2) * (high, wide), rng.uniform(0.1, 0.4) * min(high, wide)
            inside = (y - centre[0]) ** 2 + (x - centre[1]) ** 2 < radius**2
            picture = np.where(inside, 0.4 * picture + rng.standard_normal((channels, 1, 1)), picture)
        found[n] = picture
    found -= found.mean()
    found /= found.std() + 1e-12
    return np.moveaxis(found, 1, -1) if last else found
