"""Integers in another basis: on new scales, as near to the original as a grid can be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from quantised_models import WIDTH, attending

import onnxprune
from onnxprune.calibration.agreement import Outputs
from onnxprune.calibration.samples import Samples, load_samples
from onnxprune.graph.analysis import Analysis, analyse
from onnxprune.model import Model
from onnxprune.reconstruction.layers import readers, sites
from onnxprune.reconstruction.stored import Packed, Quantised
from onnxprune.rotation.basis import rotate
from onnxprune.rotation.linear import find

#: Form -> whether queries and keys, and values, can be turned.
FORMS = {
    "dynamic": [False, True], "to_float": [False, True], "fused": [False, True], "transposed": [False, True],
    "qdq": [True],  # what values become is put on a grid of given ends
    "trained": [], # another node has the scales too
}  # fmt: skip


def study(model: onnx.ModelProto) -> tuple[Analysis, Samples]:
    analysis = analyse(Model.load(model))
    return analysis, load_samples(analysis.model.proto.graph, {"x": samples(40)}, types=analysis.inputs)


def kinds_of(analysis: Analysis) -> list[bool]:
    """Return of all that can be mixed whether it is a product."""
    layers, groups = sites(analysis), analysis.grouping.groups
    return sorted(m.product >= 0 for m in find(analysis, groups, layers, readers(layers, groups)))


def samples(count: int = 60) -> np.ndarray:
    x = np.random.default_rng(3).normal(size=(count, 6, WIDTH)).astype(np.float32)
    return x * np.linspace(0.2, 1.5, WIDTH, dtype=np.float32)


@pytest.mark.parametrize(("form", "kinds"), FORMS.items())
def test_integers_are_turned_on_scales_of_their_own(form: str, kinds: list[bool]) -> None:
    analysis, given = study(attending(form))
    assert kinds_of(analysis) == kinds
    rotated = rotate(analysis, analysis.grouping.groups, given)
    assert not rotated.refused
    one, two = (Outputs(a.model, given).flat() for a in (analysis, rotated.analysis))  # no sums saturate
    assert np.linalg.norm(one - two) < 0.05 * np.linalg.norm(one)
    for mixable in rotated.mixed:
        for side in (*mixable.left, *mixable.right):
            codec = side.site.codec
            assert isinstance(codec, Quantised)
            old, new = (a.model.weight(codec.name) for a in (analysis, rotated.analysis))
            assert old.dtype == new.dtype
            assert not np.array_equal(old, new)
            assert codec.reach(rotated.analysis.model) <= codec.reach(analysis.model)


def test_a_lossless_pass_leaves_integers_as_they_are(tmp_path: Path) -> None:
    model = attending("dynamic")
    np.savez(tmp_path / "x.npz", x=samples(40))
    found = onnxprune.run(model, passes=f"rotate{{calib={tmp_path / 'x.npz'}}}")
    for name in ("q_q", "k_q", "v_q", "o_q"):
        np.testing.assert_array_equal(found.weight(name), Model.load(model).weight(name))
    analysis, given = study(model)
    assert not rotate(analysis, analysis.grouping.groups, given, integers=False).mixed


def test_heads_that_are_paired_otherwise_are_found_out() -> None:
    analysis, given = study(attending("dynamic", crossed=True))
    rotated = rotate(analysis, analysis.grouping.groups, given)
    assert ["differs by" in why for why in rotated.refused.values()] == [True]
    assert [m.product for m in rotated.mixed] == [-1]


def test_a_cut_takes_the_axes_that_nothing_needs() -> None:
    found: dict[bool, Any] = {}
    for turn in (True, False):
        cut = onnxprune.prune(
            attending("dynamic", rank=2),
            ratio=0.5,
            align=1,
            calib={"x": samples()},
            recover="lstsq",
            rotate=turn,
        )
        found[turn] = cut.report.to_json()
        assert {t.name: t.data_type for t in cut.model.graph.initializer}["q_q"] == onnx.TensorProto.INT8
    assert {g["kind"]: g["removed"] for g in found[True]["groups"] if g["removed"]} == {"head width": 8}
    with_turn, without = (found[turn]["calibration"]["original"]["relative_error"] for turn in (True, False))
    assert with_turn < 0.8 * without


def test_seven_bits_stay_seven_bits() -> None:
    model = attending("dynamic")
    for tensor in model.graph.initializer:
        if tensor.name.endswith("_q"):
            halves = onnx.numpy_helper.to_array(tensor) // 2
            tensor.CopyFrom(onnx.numpy_helper.from_array(halves, tensor.name))
    analysis, given = study(model)
    turned = rotate(analysis, analysis.grouping.groups, given)
    assert len(turned.mixed) == 2
    assert all(np.abs(turned.analysis.model.weight(f"{n}_q").astype(int)).max() <= 64 for n in "qkvo")


def test_scales_of_blocks_hold_all_values() -> None:
    """Each block gets the least scale that does."""
    rng = np.random.default_rng(0)
    model = Model.load(attending("dynamic"))
    values = rng.normal(size=(32, 8)) * np.repeat([1.0, 20.0], 16)[:, None]
    model.add("w", rng.integers(-7, 8, (32, 8)).astype(np.int8))
    model.add("s", np.ones((2, 8), np.float32))
    blocked = Quantised("w", "s", axis=0, block=16)
    blocked.stretch(model, values)
    blocked.write(model, values)
    assert np.abs(blocked.read(model) - values).max() <= np.abs(values).max() / 7 / 2 * 1.01
    expected = np.abs(values.reshape(2, 16, 8)).max(axis=1) / 7
    np.testing.assert_allclose(model.weight("s"), expected, rtol=1e-6)
    model.add("p", rng.integers(0, 256, (8, 2, 8)).astype(np.uint8))
    model.add("ps", np.ones(16, np.float32))
    packed = Packed("p", "ps", bits=4, rows=8, blocks=2, size=16)
    below, above = packed.reach(model)
    cubes = values.T.reshape(8, 2, 16)
    packed.stretch(model, cubes)
    expected = np.maximum(cubes.max(2) / above, -cubes.min(2) / below).reshape(-1)
    np.testing.assert_allclose(model.weight("ps"), expected, rtol=1e-6)
