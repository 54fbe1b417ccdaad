"""Samples as onnxruntime's quantiser asks for them."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from small_models import chain

import onnxprune
from onnxprune.errors import CalibrationError

X = np.random.default_rng(0).standard_normal((6, 3, 8, 8)).astype(np.float32)


def test_a_reader_gives_batches_of_the_models_size_and_begins_again() -> None:
    reader = onnxprune.reader(chain(), {"x": X, "y": np.arange(6)}, labels="y", samples=4)
    batches = list(iter(reader.get_next, None))
    assert [b["x"].shape for b in batches] == [(1, 3, 8, 8)] * len(reader) == [(1, 3, 8, 8)] * 4
    assert reader.get_next() is None
    reader.rewind()
    assert np.array_equal(reader.get_next()["x"], batches[0]["x"])
    with pytest.raises(CalibrationError):
        onnxprune.reader(chain(), {"z": X})


def test_onnxruntimes_quantiser_takes_it(tmp_path: Path) -> None:
    quantization = pytest.importorskip("onnxruntime.quantization")
    source, result = tmp_path / "model.onnx", tmp_path / "int8.onnx"
    onnxprune.prune(chain(), source, ratio=0.5, align=None)
    quantization.quantize_static(source, result, onnxprune.reader(source, {"x": X}))
    assert any(n.op_type == "QuantizeLinear" for n in onnx.load(result).graph.node)
