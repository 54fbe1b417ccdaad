"""What a norm counts of channels that go, while layers are fitted: they read what the cut model gives them."""

import numpy as np
import onnx
import pytest
from quantised_models import Quantiser
from small_models import Builder

import onnxprune
from onnxprune.calibration.samples import load_samples
from onnxprune.graph.analysis import analyse
from onnxprune.model import Model
from onnxprune.pruning.saliency import criterion_of
from onnxprune.reconstruction.sequential import Calibration
from onnxprune.runtime.session import open_session

WIDTH, INNER, READ = 32, 24, 16


def streamed(norm: str, form: str = "float") -> onnx.ModelProto:
    """A stream that two feed-forward parts add to, each behind a norm of its width; form: of the first layer."""
    b = Builder(0)
    last = b.constant("last", np.array([-1]))
    if form == "looked up":
        table = b.constant("table", b.rng.integers(-90, 90, (READ, WIDTH)).astype(np.int8))
        scale = b.constant("step", np.float32(0.02))
        first = b.op("ArgMax", ["x"], "picked", axis=1, keepdims=0)
        x = b.op("DequantizeLinear", [b.op("Gather", [table, first], "looked"), scale], "embed")
    elif form == "float":
        x = b.op("MatMul", ["x", b.weight("embed", READ, WIDTH)], "first")
    else:
        w = b.rng.normal(size=(READ, WIDTH)).astype(np.float32)
        x = getattr(Quantiser(b, form), form)("x", "embed", w)
    for n in range(2):
        scale = b.constant(f"scale{n}", np.linspace(0.5, 1.5, WIDTH).astype(np.float32))
        if norm == "rms":
            mean = b.op("ReduceMean", [b.op("Mul", [x, x], f"square{n}"), last], f"mean{n}")
            little = b.constant(f"little{n}", np.float32(1e-5))
            root = b.op("Sqrt", [b.op("Add", [mean, little], f"more{n}")], f"root{n}")
            read = b.op("Mul", [b.op("Div", [x, root], f"even{n}"), scale], f"norm{n}")
        elif norm == "fused":
            read = b.op("RMSNormalization", [x, scale], f"norm{n}", axis=-1)
        elif norm == "layer":
            shift = b.weight(f"shift{n}", WIDTH)
            read = b.op("LayerNormalization", [x, scale, shift], f"norm{n}", axis=-1)
        else:
            read = b.op("Relu", [x], f"plain{n}")
        up = b.op("Relu", [b.op("MatMul", [read, b.weight(f"up{n}", WIDTH, INNER)], f"wide{n}")], f"relu{n}")
        down = b.op("MatMul", [up, b.weight(f"down{n}", INNER, WIDTH)], f"back{n}")
        x = b.op("Add", [x, down], f"total{n}")
    y = b.op("MatMul", [x, b.weight("head", WIDTH, 6)], "y")
    return b.model({"x": ["N", READ]}, y, 23, domain="com.microsoft")


def inputs(count: int) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(1).standard_normal((count, READ)).astype(np.float32)}


def run(model: Model) -> np.ndarray:
    (y,) = open_session(model).run(inputs(50)).values()
    return np.asarray(y)


def calibration_of(proto: onnx.ModelProto) -> Calibration:
    found = analyse(Model.load(proto))
    samples = load_samples(proto.graph, inputs(200), types=found.inputs)
    return Calibration(found, samples, list(found.grouping.groups), criterion_of("obs").measure)


def test_groups_that_layers_alone_count_are_left_alone() -> None:
    assert not calibration_of(streamed("none")).counted


@pytest.mark.parametrize(
    ("norm", "form"),
    [
        ("rms", "float"),
        ("rms", "transposed"),
        ("rms", "nbits"),
        ("rms", "looked up"),
        ("layer", "float"),
        ("fused", "float"),
    ],
)
def test_errors_that_are_told_are_true(norm: str, form: str) -> None:
    """The error of the last layer is that of the output, on samples that nothing saw."""
    proto = streamed(norm, form)
    options = {"ratio": 0.5, "align": 1, "recover": "lstsq", "only": ["embed"], "rotate": False}
    result = onnxprune.prune(proto, calib=inputs(400), **options)
    told = {line["layer"]: line["after"] for line in result.report.to_json()["calibration"]["layers"]}
    before, after = run(Model.load(proto)), run(Model.load(result.model))
    true = np.square(before - after).sum() / np.square(before - before.mean(axis=0)).sum()
    assert true == pytest.approx(told["y"], rel=0.5)
    assert not [name for name in result.pruned.names() if "twin" in name]


def test_a_product_of_activations_counts_what_stays() -> None:
    """Both factors are made by one layer, whose halves nothing turns: the product is over what stays."""
    b = Builder(4)
    both = b.op("MatMul", ["x", b.weight("both", READ, 2 * WIDTH)], "both_out")
    halves = b.constant("halves", np.array([WIDTH, WIDTH]))
    b.op("Split", [both, halves], "split", outputs=2, axis=1)
    three = b.constant("three", np.array([-1, 4, WIDTH // 4]))
    left, right = (
        b.op("Reshape", [half, three], f"heads{n}") for n, half in enumerate(("split_out0", "split_out1"))
    )
    turned = b.op("Transpose", [right], "turned", perm=[0, 2, 1])
    scores = b.op("Tanh", [b.op("MatMul", [left, turned], "scores")], "curved")
    flat = b.op("Reshape", [scores, b.constant("flat", np.array([-1, 16]))], "flattened")
    proto = b.model({"x": ["N", READ]}, b.op("MatMul", [flat, b.weight("head", 16, 6)], "y"))
    calibration = calibration_of(proto)
    (width,) = (g.name for g in calibration.groups if g.units == WIDTH // 4)
    assert width in calibration.counted
