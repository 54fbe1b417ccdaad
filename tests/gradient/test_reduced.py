"""Label-free losses, and their gradients reduced to second moments."""

import numpy as np
import pytest
from onnx import helper

from onnxprune.calibration.samples import load_samples
from onnxprune.errors import CalibrationError
from onnxprune.gradient.reduced import reduced
from onnxprune.gradient.seeds import Seeds, kind_of, probabilities
from onnxprune.graph.analysis import analyse
from onnxprune.model import Model
from tests.nets import build, convs, node, normal

LAST = ("N", 3, 8, 8)
HEAD = [node("GlobalAveragePool", "h", "p"), node("Flatten", "p", "f"), node("MatMul", "f v", "z")]


def net(*last):
    return convs([*HEAD, *last], LAST, {"v": normal(10, 4) * 0.4}, outputs={"y": 1})


def second(model, samples, axes, seed=0):
    """Return tensor -> the sum of ``g g^T`` over positions and samples, ``g`` the gradient of one sample's loss."""

    def reduce(t, name, grad):
        rank = len(t.dims(name))
        axis = axes[name] % rank
        first = t.transpose(grad, [axis, *(i for i in range(rank) if i != axis)])
        flat = t.reshape(first, [*t.static(name, [axis]), -1])
        return t.op("Gemm", flat, flat, *t.no_bias(), transB=1)

    total = {}
    for values in reduced(analyse(model), samples, list(axes), reduce, seed):
        for name, gram in values.items():
            total[name] = total.get(name, 0) + gram
    return total


def draw(proto, axes, repeat=1, **more):
    x = np.random.default_rng(1).standard_normal((96, 3, 8, 8), np.float32)
    samples = load_samples(proto.graph, {"x": np.tile(x, (repeat, 1, 1, 1))})
    return second(Model.load(proto), samples, axes, **more), samples


def test_the_factor_is_that_of_logits_known_in_closed_form():
    """On the logits themselves, E (p - e_c)(p - e_c)^T = diag p - p p^T."""
    proto = net(node("Identity", "z", "y"))
    found, samples = draw(proto, {"z": 1}, repeat=100)
    from onnxprune.calibration.agreement import outputs

    p = probabilities(outputs(Model.load(proto), samples), "logits", 1)
    true = np.mean([np.diag(q) - np.outer(q, q) for q in p], axis=0)
    np.testing.assert_allclose(found["z"] / samples.count, true, atol=0.01 * np.abs(true).max() + 5e-3)
    assert np.abs(true).max() > 0.1


def test_a_softmax_at_the_end_changes_nothing():
    """The loss is the same function of the activations, so are its gradients, draw by draw."""
    plain, _ = draw(net(node("Identity", "z", "y")), {"r": 1, "a": 1, "z": -1})
    soft, _ = draw(net(node("Softmax", "z", "y")), {"r": 1, "a": 1, "z": -1})
    logs, _ = draw(net(node("LogSoftmax", "z", "y")), {"r": 1, "a": 1, "z": -1})
    for name, gram in plain.items():
        size = np.abs(gram).max()
        assert size > 0
        np.testing.assert_allclose(soft[name], gram, atol=1e-4 * size)
        np.testing.assert_allclose(logs[name], gram, atol=1e-4 * size)


def test_the_same_seed_gives_the_same_bits_and_another_one_does_not():
    proto = net(node("Softmax", "z", "y"))
    one, two, other = (draw(proto, {"r": 1}, seed=s)[0]["r"] for s in (3, 3, 4))
    np.testing.assert_array_equal(one, two)
    assert np.abs(one - other).max() > 1e-3 * np.abs(one).max()


def test_values_are_measured_in_their_own_spread():
    """An output that is ten times as large has the same curvature."""
    nodes = [node("Relu", "h", "k"), node("Mul", "k s", "y")]
    small, large = (
        draw(convs(nodes, LAST, {"s": s}, outputs={"y": 1}), {"r": 1})[0]["r"] for s in (1.0, 10.0)
    )
    np.testing.assert_allclose(small, large, rtol=1e-3, atol=1e-5 * np.abs(small).max())


def test_what_an_output_is():
    rng = np.random.default_rng(0)
    z = rng.standard_normal((6, 5))
    p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    assert kind_of(z) == ("logits", 1)
    assert kind_of(p) == ("probabilities", 1)
    assert kind_of(np.log(p)) == ("log-probabilities", 1)
    assert kind_of(np.moveaxis(np.stack([p] * 3), 2, 1)) == ("probabilities", 1)
    assert kind_of(z[:, :1])[0] == "values"
    assert kind_of(rng.standard_normal((2, 3, 4)))[0] == "values"


def test_classes_are_drawn_as_often_as_the_model_says():
    p = np.tile([[0.7, 0.2, 0.1, 0.0]], (20000, 1))
    seeds = Seeds.of([p], 0)
    found = seeds.draw(p)
    share = (found != 0).mean(axis=0)
    np.testing.assert_allclose(share, p[0], atol=0.015)
    np.testing.assert_allclose(found[found != 0], -1 / p[found != 0])


def test_refusals():
    recurrent = build(
        [
            helper.make_node("LSTM", ["x", "w", "r"], ["h"], hidden_size=4, clip=1.0, name="lstm"),
            node("Relu", "h", "y"),
        ],
        {"w": normal(1, 16, 6), "r": normal(1, 16, 4)},
        (7, 2, 6),
    )
    samples = load_samples(recurrent.graph, {"x": normal(7, 2, 6)})
    with pytest.raises(CalibrationError, match="LSTM 'lstm': it is clipped"):
        second(Model.load(recurrent), samples, {"x": 2})
