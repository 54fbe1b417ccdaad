"""Every float type prunes alike; onnxruntime's missing kernels only change how law 1 is checked."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

import onnxprune

SAMPLE = Path(__file__).parents[2] / "samples" / "01_digits_cnn" / "digits_cnn.onnx"
TYPES = {
    TensorProto.FLOAT16: np.float16,
    TensorProto.BFLOAT16: ml_dtypes.bfloat16,
    TensorProto.DOUBLE: np.float64,
}


def recast(proto: onnx.ModelProto, elem: int) -> onnx.ModelProto:
    """Return a copy in which every fp32 tensor and value has another element type."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    for tensor in copy.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            array = numpy_helper.to_array(tensor).astype(TYPES[elem])
            raw = TensorProto(name=tensor.name, data_type=elem, dims=array.shape, raw_data=array.tobytes())
            tensor.CopyFrom(raw)
    for value in (*copy.graph.input, *copy.graph.output, *copy.graph.value_info):
        if value.type.tensor_type.elem_type == TensorProto.FLOAT:
            value.type.tensor_type.elem_type = elem
    return copy


@pytest.mark.parametrize("elem", TYPES, ids=lambda elem: TensorProto.DataType.Name(elem))
def test_a_model_of_another_float_type_is_cut_like_the_fp32_one(elem: int) -> None:
    plain = onnx.load(SAMPLE)
    want = onnxprune.prune(plain, ratio=0.5, align="none", criterion="random")
    found = onnxprune.prune(recast(plain, elem), ratio=0.5, align="none", criterion="random")
    assert found.report.cuts == want.report.cuts
    assert found.report.law1["max_relative_error"] < 1e-4
    kinds = {t.data_type for t in found.model.graph.initializer}
    assert elem in kinds
    assert TensorProto.FLOAT not in kinds
