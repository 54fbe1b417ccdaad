"""What errors inside a language model cost at its end."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from depth_models import images, transformer
from onnx import TensorProto, numpy_helper
from vocabulary_models import POSITIONS, WIDTH, WORDS, Net, language, table_of

import onnxprune
from onnxprune.calibration.samples import load_samples
from onnxprune.errors import CalibrationError
from onnxprune.graph.analysis import analyse
from onnxprune.graph.interface import interface
from onnxprune.graph.vocabulary import says_ids
from onnxprune.model import Model
from onnxprune.pruning import worth
from onnxprune.reconstruction.evidence import evened, typical
from onnxprune.reconstruction.layers import sites

SHAPES = {"ids": (1, POSITIONS)}


def two_parts(last: float = 1.0) -> onnx.ModelProto:
    """Two feed-forward parts without biases, and a head; last: what the second is multiplied by."""
    net = Net()
    x = table_of(net, "float")
    for n in (0, 1):
        up = net.op("Relu", [net.op("MatMul", [x, net.weight(f"up{n}", WIDTH, 32)], f"wide{n}")], f"relu{n}")
        down = net.put(
            f"down{n}", (last if n else 1.0) * net.rng.standard_normal((32, WIDTH)).astype(np.float32) / 8
        )
        x = net.op("Add", [x, net.op("MatMul", [up, down], f"back{n}")], f"sum{n}")
    net.op("MatMul", [x, net.weight("head", WIDTH, WORDS)], "logits")
    return net.model({"logits": (TensorProto.FLOAT, ["N", "T", WORDS])})


def opened(proto):
    return analyse(Model.load(proto), input_shapes=SHAPES if proto.graph.name == "language" else {})


def ids(count):
    return {"ids": np.random.default_rng(0).integers(0, WORDS, (count, POSITIONS))}


def worths(proto, count=worth.FEW):
    analysis = opened(proto)
    layers = [site for site in sites(analysis) if site.total is not None]
    found = worth.of_layers(analysis, layers, load_samples(interface(analysis), ids(count)))
    return [found[site.number] for site in layers]


@pytest.mark.parametrize(
    ("head", "says"), [("tied", True), ("own", True), ("none", False), ("argmax", False)]
)
def test_logits_of_the_ids_that_are_read(head, says):
    assert says_ids(opened(language(head=head))) is says


@pytest.mark.parametrize("proto", [images(), transformer()])
def test_classes_and_states_are_no_ids(proto):
    assert not says_ids(opened(proto))


@pytest.mark.parametrize("loud", [False, True])
def test_an_error_in_front_of_the_head_costs_what_the_head_says(loud):
    """F = W (diag p - p p^T) W^T for logits W^T t; a loud word's rows count less, so their errors count more."""
    proto = two_parts()
    tensors = {t.name: t for t in proto.graph.initializer}
    for name in ("words", "up0", "up1", "head") if loud else ():  # a channel that nothing reads
        array = np.array(numpy_helper.to_array(tensors[name]))
        array[(slice(8), 0) if name == "words" else 0] = 100 * (name == "words")
        tensors[name].CopyFrom(numpy_helper.from_array(array, name))
    head = numpy_helper.to_array(tensors["head"]).astype(np.float64)
    proto.graph.output.append(
        onnx.helper.make_tensor_value_info("sum1", TensorProto.FLOAT, ["N", "T", WIDTH])
    )
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    total, plain, rows, uneven = 0.0, 0.0, [], False
    for one in ids(worth.FEW)["ids"]:
        logits, stream = (a[0].astype(np.float64) for a in session.run(None, {"ids": one[None]}))
        p = np.exp(logits - logits.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        traces = ((head**2).T @ np.ones(WIDTH)) @ p.T - np.square(p @ head.T).sum(axis=1)
        factors = evened(stream)
        even = np.ones(len(stream)) if factors is None else factors[:, 0]
        uneven |= factors is not None
        total += (traces / even**2).sum() / WIDTH
        plain += traces.sum() / WIDTH
        rows.append(stream * even[:, None])
    true = total * typical(np.concatenate(rows).var(axis=0))
    assert uneven == loud
    found = worths(proto)
    assert found[1] == pytest.approx(true, rel=0.25)
    assert found[0] != pytest.approx(true, rel=0.25)
    assert (plain != pytest.approx(total, rel=0.25)) is loud


def test_groups_cost_what_their_layers_do_and_one_on_average():
    found = worth.of_groups({3: 2.0, 7: 8.0}, {"a": [3], "b": [7], "both": [3, 7], "none": [9]})
    assert found == pytest.approx({"a": 0.5, "b": 2.0, "both": 1.25, "none": 1.0})
    assert worth.of_groups({}, {"a": [3]}) == {"a": 1.0}


def removed(monkeypatch, factor):
    """Return how many units of each part go where errors of the second weigh so much."""

    def priced(analysis, layers, *_):
        return {site.number: factor**n for n, site in enumerate(layers)}

    if factor:
        monkeypatch.setattr(worth, "of_layers", priced)
    result = onnxprune.prune(
        two_parts(), target="macs=0.8", trials=0, calib=ids(40), recover="lstsq", input_shapes=SHAPES, align=1,
        only=["up"],
    )  # fmt: skip
    counts = {g["name"][:3]: g["removed"] for g in result.report.groups}
    return counts, " ".join(result.report.notes)


def test_a_budget_takes_what_costs_least_at_the_end(monkeypatch):
    dear, notes = removed(monkeypatch, 100.0)
    cheap, _ = removed(monkeypatch, 0.01)
    assert dear["up1"] < cheap["up1"]
    assert dear["up0"] > cheap["up0"]
    assert "100 times as much in one layer as in another" in notes


def test_without_gradients_all_errors_weigh_the_same(monkeypatch):
    def refused(*_):
        raise CalibrationError("No gradients: Odd has no gradient rule.")

    monkeypatch.setattr(worth, "of_layers", refused)
    counts, notes = removed(monkeypatch, 0)
    assert "Errors of all layers weigh the same. No gradients: Odd has no gradient rule." in notes
    assert (counts, "") == (removed(monkeypatch, 1.0)[0], "")
