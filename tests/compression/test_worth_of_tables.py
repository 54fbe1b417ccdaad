"""What the loss of a table of words counts beside those of layers, in models that say ids."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper
from vocabulary_models import POSITIONS, WORDS, language

from onnxprune.calibration.samples import load_samples
from onnxprune.compression import worth
from onnxprune.compression.parts import parts_of
from onnxprune.graph.analysis import analyse
from onnxprune.graph.coupling import uses_of
from onnxprune.graph.interface import interface
from onnxprune.model import Model
from onnxprune.pruning.worth import FEW, Watched, of_tensors


def ids(count):
    return {"ids": np.random.default_rng(0).integers(0, WORDS, (count, POSITIONS))}


def logs(proto, feeds):
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    rows = [session.run(None, {"ids": row[None]})[0][0].astype(np.float64) for row in feeds["ids"]]
    z = np.stack(rows)
    z -= z.max(axis=-1, keepdims=True)
    return z - np.log(np.exp(z).sum(axis=-1, keepdims=True))


def noisy(proto, name, share, rng):
    made = onnx.ModelProto()
    made.CopyFrom(proto)
    tensor = next(t for t in made.graph.initializer if t.name == name)
    array = numpy_helper.to_array(tensor)
    size = np.sqrt(share * np.mean(np.square(array)))
    moved = array + size * rng.standard_normal(array.shape)
    tensor.CopyFrom(numpy_helper.from_array(moved.astype(array.dtype), name))
    return made


@pytest.mark.parametrize("head", ["tied", "own"])
def test_a_table_costs_the_divergence_of_its_lookups_and_of_its_products(head):
    """KL = 1/2 worth L for noise of a share L of its squares, at lookups and, if it is the head too, there."""
    proto, share, feeds, rng = language(head=head), 1e-5, ids(FEW), np.random.default_rng(1)
    model = Model.load(proto)
    part = next(part for part in parts_of(model, {})[0] if part.name == "words")
    analysis = analyse(model, input_shapes={"ids": (1, POSITIONS)})
    reads = list(worth._reads(analysis, uses_of(analysis.coupling), part.name))
    assert [bool(other) for _, other in reads] == ([False, True] if head == "tied" else [False])
    places = {name: Watched(-1) for read in reads for name in read if name}
    found = of_tensors(analysis, places, load_samples(interface(analysis), feeds))
    told = worth._alone(model, part.name, reads, found) * share / 2
    before, measured = logs(proto, feeds), []
    for _ in range(24):
        after = logs(noisy(proto, "words", share, rng), feeds)
        measured.append((np.exp(before) * (before - after)).sum())
    assert told == pytest.approx(np.mean(measured), rel=0.35)
