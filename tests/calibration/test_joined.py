"""Samples that are picked out of batches lie in batches as large again."""

from __future__ import annotations

import numpy as np

from onnxprune.calibration.feeds import joined
from onnxprune.calibration.samples import Samples


def batches(sizes: list[int], length: int = 3) -> list[dict[str, np.ndarray]]:
    x = np.arange(sum(sizes) * length, dtype=np.float32).reshape(-1, length)
    return [{"x": part} for part in np.split(x, np.cumsum(sizes)[:-1])]


def test_a_part_of_each_batch_is_one_batch():
    samples = Samples(batches([8] * 5), [8] * 5, np.arange(40), along={"x": 0})
    few, aside = samples.few(20).split(0.5)
    assert [few.counts, aside.counts] == [[8, 2], [8, 2]]
    for part in (few, aside):
        x = np.concatenate([batch["x"] for batch in part.batches])
        np.testing.assert_array_equal(x[:, 0] / 3, part.labels)
    assert not {*few.labels} & {*aside.labels}


def test_batches_of_other_lengths_or_numbers_stay_apart():
    short, long = batches([2, 2]), batches([2], 4)
    some, counts = joined([*short, *long], [2, 2, 2], 8, {"x": 0})
    assert counts == [4, 2]
    assert [batch["x"].shape for batch in some] == [(4, 3), (2, 4)]
    scaled = [{**batch, "s": np.float32(n)} for n, batch in enumerate(batches([1, 1, 1]))]
    scaled[1]["s"] = scaled[0]["s"]
    some, counts = joined(scaled, [1, 1, 1], 8, {"x": 0, "s": 0})
    assert counts == [2, 1]
    assert [float(batch["s"]) for batch in some] == [0, 2]


def test_samples_along_another_axis():
    parts = [{"x": np.full((3, 1, 2), n, np.float32)} for n in range(3)]
    some, counts = joined(parts, [1, 1, 1], 2, {"x": 1})
    assert counts == [2, 1]
    assert some[0]["x"].shape == (3, 2, 2)
    np.testing.assert_array_equal(some[0]["x"][0, :, 0], [0, 1])
