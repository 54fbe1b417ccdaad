"""Rules of convolutions and pooling, for random windows."""

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from onnxprune.errors import CalibrationError
from onnxprune.gradient.taps import FEWEST_INPUTS
from onnxprune.runtime.session import RunError, open_session
from tests.gradient.finite import (
    apart,
    disagreement,
    gradients,
    linear_gap,
    model,
    node,
    normal,
)

CLOSE = 2e-4

WINDOWS = st.fixed_dictionaries({
    "kernel": st.tuples(st.integers(1, 3), st.integers(1, 3)),
    "strides": st.tuples(st.integers(1, 3), st.integers(1, 2)),
    "dilations": st.tuples(st.integers(1, 2), st.integers(1, 2)), "pads": st.tuples(*[st.integers(0, 2)] * 4),
    "auto": st.sampled_from(["NOTSET", "NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"]),
    "group": st.sampled_from([1, 2, 4]),
})  # fmt: skip


def spatial(case: dict[str, object]) -> dict[str, object]:
    attrs: dict[str, object] = {"strides": list(case["strides"]), "dilations": list(case["dilations"])}  # type: ignore[call-overload]
    if case["auto"] == "NOTSET":
        attrs["pads"] = list(case["pads"])  # type: ignore[call-overload]
    else:
        attrs["auto_pad"] = case["auto"]
    return attrs


@settings(max_examples=60, deadline=None)
@given(WINDOWS, st.integers(7, 9), st.sampled_from([4, FEWEST_INPUTS]))
def test_convolution(case: dict[str, object], size: int, inputs: int) -> None:
    attrs, group = spatial(case), case["group"]
    if case["auto"] in ("SAME_UPPER", "SAME_LOWER"):
        attrs["dilations"] = [1, 1]  # the reference evaluator has no others there
    weights = {"w": normal(4, inputs // group, *case["kernel"]), "b": normal(4)}  # type: ignore[misc, operator]
    feeds = {"x": normal(2, inputs, size, 8)}
    proto = model([node("Conv", "x", "w", "b", group=group, **attrs)], feeds, weights)
    assert disagreement(proto, feeds, ["x", "w", "b"]) < CLOSE


@settings(max_examples=25, deadline=None)
@given(WINDOWS, st.integers(0, 1))
def test_transposed_convolution(case: dict[str, object], extra: int) -> None:
    attrs, group = spatial({**case, "auto": "NOTSET", "pads": (0, 0, 0, 0)}), case["group"]
    attrs["pads"] = [min(p, k - 1) for p, k in zip(case["pads"], case["kernel"] * 2, strict=True)]  # type: ignore[call-overload, operator]
    attrs["output_padding"] = [min(extra, s - 1) for s in case["strides"]]  # type: ignore[attr-defined]
    feeds, weights = {"x": normal(2, 4, 4, 5)}, {"w": normal(4, 2, *case["kernel"])}  # type: ignore[misc]
    proto = model([node("ConvTranspose", "x", "w", group=group, **attrs)], feeds, weights)
    assert linear_gap(proto, feeds) < CLOSE
    if group == 1:
        y = open_session(proto).run(feeds)["y"]
        seed = normal(*y.shape)
        change = gradients(proto, feeds, ["w"], seed)["w"]  # the op is linear in its weight as well
        assert (
            abs(float((change * weights["w"]).sum() - (seed * y).sum())) / float(np.linalg.norm(change))
            < CLOSE
        )


@pytest.mark.parametrize(
    "attrs", [{"output_shape": [9, 10]}, {"auto_pad": "SAME_UPPER"}, {"auto_pad": "SAME_LOWER"}]
)
def test_transposed_convolution_with_a_given_size(attrs: dict[str, object]) -> None:
    """The evaluator pads otherwise than onnxruntime here; the op is linear, so large steps of onnxruntime are exact."""
    feeds, weights = {"x": normal(2, 3, 4, 5)}, {"w": normal(3, 2, 4, 3)}
    proto = model([node("ConvTranspose", "x", "w", strides=[2, 2], **attrs)], feeds, weights)
    assert linear_gap(proto, feeds) < CLOSE


def test_a_padding_that_runtimes_read_differently_has_no_gradient() -> None:
    feeds, weights = {"x": normal(1, 1, 2)}, {"w": normal(1, 1, 2)}
    attrs = {"strides": [2], "auto_pad": "SAME_LOWER", "output_padding": [1]}
    proto = model([node("ConvTranspose", "x", "w", **attrs)], feeds, weights)
    with pytest.raises(CalibrationError, match="runtimes differ"):
        gradients(proto, feeds, ["x"], normal(1, 1, 4))


@settings(max_examples=30, deadline=None)
@given(WINDOWS, st.booleans())
def test_max_pool(case: dict[str, object], ceil: bool) -> None:
    attrs = spatial(case)
    if case["auto"] == "NOTSET":
        attrs["pads"] = [min(p, k - 1) for p, k in zip(case["pads"], case["kernel"] * 2, strict=True)]  # type: ignore[call-overload, operator]
        attrs["ceil_mode"] = int(ceil)
    attrs["dilations"] = [1, 1]
    feeds = {"x": apart(2, 3, 7, 8)}
    proto = model([node("MaxPool", "x", kernel_shape=list(case["kernel"]), **attrs)], feeds)  # type: ignore[call-overload]
    assert unless_refused(pool_gap, proto, feeds) < CLOSE


@settings(max_examples=30, deadline=None)
@given(WINDOWS, st.booleans(), st.integers(0, 1))
def test_average_pool(case: dict[str, object], ceil: bool, include: int) -> None:
    attrs = spatial(case)
    if case["auto"] == "NOTSET":
        attrs["pads"] = [min(p, k - 1) for p, k in zip(case["pads"], case["kernel"] * 2, strict=True)]  # type: ignore[call-overload, operator]
        attrs["ceil_mode"] = int(ceil)
    del attrs["dilations"]
    feeds = {"x": normal(2, 3, 7, 8)}
    proto = model(
        [node("AveragePool", "x", kernel_shape=list(case["kernel"]), count_include_pad=include, **attrs)],
        feeds,  # type: ignore[call-overload]
    )
    assert unless_refused(linear_gap, proto, feeds) < CLOSE


def unless_refused(gap: Callable[..., float], proto: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> float:
    """A gap; zero for windows that onnxruntime doesn't take itself, or that lie in the padding."""
    try:
        open_session(proto).run(feeds)
    except RunError:
        reject()
    try:
        return gap(proto, feeds)
    except CalibrationError as error:
        if "lies in the padding" in str(error):
            reject()
        raise


def pool_gap(proto: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> float:
    """Against onnxruntime: within a step that changes no maximum, the pool is linear."""
    session = open_session(proto)
    along = normal(*feeds["x"].shape) * np.float32(0.002)
    ends = [
        session.run({"x": (feeds["x"] + s * along).astype(np.float32)})["y"].astype(np.float64)
        for s in (1, -1)
    ]
    seed = normal(*ends[0].shape)
    found = gradients(proto, feeds, ["x"], seed)["x"]
    true = float((seed * (ends[0] - ends[1])).sum() / 2)
    return abs(float((found * along).sum()) - true) / float(np.linalg.norm(found))


def test_pool_of_a_longer_window_and_one_axis() -> None:
    feeds = {"x": apart(2, 3, 9)}
    proto = model([node("MaxPool", "x", kernel_shape=[3], strides=[2], dilations=[2])], feeds)
    assert pool_gap(proto, feeds) < CLOSE


def test_global_pools() -> None:
    feeds = {"x": apart(2, 3, 4, 5)}
    for op in ("GlobalAveragePool", "GlobalMaxPool"):
        assert disagreement(model([node(op, "x")], feeds), feeds, ["x"]) < CLOSE
