"""A mean over channels is cut exactly, since how many there were is put right; not where it is taken off."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper
from small_models import Builder

import onnxprune
from onnxprune.errors import VerificationError
from onnxprune.ops.base import EMITTERS

WIDTH = 16


def response(b: Builder, x: str) -> str:
    """Norms of channels by their mean, as ConvNeXt's second version weighs them."""
    norms = b.op("ReduceL2", [x], "norms", axes=[1])
    mean = b.op("ReduceMean", [norms], "mean", axes=[-1])
    some = b.constant("some", np.array(1e-2, np.float32))
    return b.op("Mul", [x, b.op("Div", [norms, b.op("Add", [mean, some], "more")], "share")], "weighed")


def likeness(b: Builder, x: str) -> str:
    """The mean of products of two maps, as in a cost volume, beside one of them."""
    other = b.linear("x", "second", 6, WIDTH)
    alike = b.op("ReduceMean", [b.op("Mul", [x, other], "products")], "alike", axes=[-1])
    return b.op("Mul", [x, alike], "weighed")


def pooled(b: Builder, x: str) -> str:
    """A mean over the last of three axes as a pool."""
    return b.op("Mul", [x, b.op("GlobalAveragePool", [b.op("Abs", [x], "size")], "mean")], "weighed")


def keras(b: Builder, x: str, mean: Callable[[Builder, str, str], str]) -> str:
    """x s + (b - mean s), as tf2onnx writes a LayerNorm of Keras."""
    first = mean(b, x, "first")
    off = b.op("Sub", [x, first], "off")
    spread = mean(b, b.op("Mul", [off, off], "squares"), "spread")
    eps = b.constant("eps", np.array(1e-2, np.float32))
    root = b.op("Reciprocal", [b.op("Sqrt", [b.op("Add", [spread, eps], "more")], "root")], "one.by.root")
    scale = b.op("Mul", [root, b.weight("w", WIDTH)], "scale")
    rest = b.op("Sub", [b.weight("b", WIDTH), b.op("Mul", [first, scale], "shift")], "rest")
    return b.op("Add", [b.op("Mul", [x, scale], "scaled"), rest], "normed")


def reduced(b: Builder, x: str, name: str) -> str:
    return b.op("ReduceMean", [x], name, axes=[-1])


def pool(b: Builder, x: str, name: str) -> str:
    return b.op("GlobalAveragePool", [x], name)


def net(middle: Callable[[Builder, str], str]) -> onnx.ModelProto:
    b = Builder(17)
    y = middle(b, b.linear("x", "first", 6, WIDTH))
    return b.model({"x": ["N", 3, 6]}, b.linear(y, "head", WIDTH, 5))


def dims(model: onnx.ModelProto, name: str) -> tuple[int, ...]:
    return next(tuple(t.dims) for t in model.graph.initializer if t.name == name)


def run(model: onnx.ModelProto, n: int) -> Any:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": np.random.default_rng(n).standard_normal((n, 3, 6), np.float32)})[0]


def zeroed(model: onnx.ModelProto, cuts: list[Any]) -> onnx.ModelProto:
    """The original with zeros for all that went, by nothing but the report."""
    model = onnx.ModelProto.FromString(model.SerializeToString())
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor).copy()
        for cut in (c for c in cuts if c.tensor == tensor.name):
            np.moveaxis(array, cut.axis, 0)[list(cut.removed)] = 0
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    return model


@pytest.mark.parametrize("middle", [response, likeness, pooled], ids=lambda f: f.__name__)
def test_a_mean_over_channels_is_cut_and_equals_the_original_with_zeros(middle: Any) -> None:
    model = net(middle)
    result = onnxprune.prune(model, ratio=0.5, align=None)
    assert dims(result.model, "first.weight") == (6, WIDTH // 2)
    assert dims(result.model, "head.weight") == (WIDTH // 2, 5)
    assert not result.report.inexact
    assert not result.report.put_back
    masked = zeroed(model, result.report.cuts)
    for n in (2, 5):
        assert np.abs(run(model, n) - run(result.model, n)).max() > 1e-3
        np.testing.assert_allclose(run(result.model, n), run(masked, n), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("middle", [response, pooled], ids=lambda f: f.__name__)
def test_without_the_count_put_right_the_proof_fails(middle: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for key in list(EMITTERS):
        if key[1] in ("ReduceMean", "GlobalAveragePool"):
            monkeypatch.setitem(EMITTERS, key, lambda node, cut: [])
    with pytest.raises(VerificationError, match="law 1 doesn't hold"):
        onnxprune.prune(net(middle), ratio=0.5, align=None)


def off(b: Builder, x: str) -> str:
    """The mean distance from the mean: a channel of zeros isn't at a distance of zero."""
    far = b.op("Abs", [b.op("Sub", [x, reduced(b, x, "mean")], "off")], "far")
    return b.op("Mul", [x, reduced(b, far, "mean.far")], "weighed")


def reverse(b: Builder, x: str) -> str:
    """The same, with the mean in front."""
    off = b.op("Sub", [reduced(b, x, "mean"), x], "off")
    far = b.op("Mul", [off, off], "far")
    return b.op("Mul", [x, reduced(b, far, "mean.far")], "weighed")


def whole(b: Builder, x: str) -> str:
    """A mean of whole numbers is rounded, so that no product puts it right."""
    numbers = b.op("Cast", [x], "numbers", to=onnx.TensorProto.INT32)
    mean = b.op("Cast", [reduced(b, numbers, "mean")], "mean.float", to=onnx.TensorProto.FLOAT)
    return b.op("Mul", [x, mean], "weighed")


@pytest.mark.parametrize("middle", [off, reverse, whole], ids=lambda f: f.__name__)
def test_other_means_keep_their_channels(middle: Any) -> None:
    with pytest.raises(onnxprune.OnnxPruneError, match="averaged over"):
        onnxprune.prune(net(middle), ratio=0.5, align=None, center_norms=False)


def test_means_of_what_is_left_take_no_factor_where_they_are_asked_for() -> None:
    result = onnxprune.prune(net(off), ratio=0.5, align=None, center_norms=False, allow_inexact=True)
    assert result.report.inexact
    assert not any(t.name.endswith("_factor") for t in result.model.graph.initializer)


def plain(b: Builder, x: str) -> str:
    """A LayerNorm whose mean goes elsewhere, too."""
    mean = reduced(b, x, "first")
    far = b.op("Sub", [x, mean], "off")
    eps = b.constant("eps", np.array(1e-2, np.float32))
    more = b.op("Add", [reduced(b, b.op("Mul", [far, far], "squares"), "spread"), eps], "more")
    normed = b.op(
        "Mul", [b.op("Div", [far, b.op("Sqrt", [more], "root")], "unit"), b.weight("w", WIDTH)], "normed"
    )
    return b.op("Mul", [normed, mean], "weighed")


NORMS = {
    "reduced": lambda b, x: keras(b, x, reduced),
    "pool": lambda b, x: keras(b, x, pool),
    "elsewhere": plain,
}


@pytest.mark.parametrize("middle", NORMS.values(), ids=NORMS)
def test_a_norm_whose_mean_is_read_again_is_cut_as_an_rms_norm(middle: Any) -> None:
    model = net(middle)
    result = onnxprune.prune(model, ratio=0.5, align=None)
    assert dims(result.model, "first.weight") == (6, WIDTH // 2)
    assert dims(result.model, "head.weight") == (WIDTH // 2, 5)
    assert not result.report.put_back
    assert result.report.law1["max_relative_error"] < 1e-5
    with pytest.raises(onnxprune.OnnxPruneError, match="averaged over"):
        onnxprune.prune(model, ratio=0.5, align=None, center_norms=False)
    inexact = onnxprune.prune(model, ratio=0.5, align=None, center_norms=False, allow_inexact=True)
    assert inexact.report.inexact
    assert not any(t.name.endswith("_factor") for t in inexact.model.graph.initializer)
