"""Heads folded into the batch axis: the targets that are computed from sizes follow the cut, at every size."""

import itertools

import numpy as np
import pytest
from folded_heads import Folded

import onnxprune
from onnxprune.cut import mend

CASES = [
    {"heads": heads, "fold": fold, "unfold": unfold, "mask": mask}
    for heads, fold, unfold, mask in [
        ("constant", "product", "divided", ""),
        ("divided", "rest", "divided", "expand"),
        ("divided", "product", "float", "tile"),
        ("constant", "rest", "float", ""),
        ("divided", "rest", "shape", "tile"),
        ("constant", "product", "rest", "expand"),
    ]
]


def feeds(model, batch, length):
    rng = np.random.default_rng(batch + 10 * length)
    shapes = {"x": (batch, length, 16), "mask": (batch, length)}
    return {v.name: rng.standard_normal(shapes[v.name]).astype(np.float32) for v in model.graph.input}


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(case.values()))
@pytest.mark.parametrize(("batch", "ratio"), [("b", 0.5), ("b", 0.75), (2, 0.75)])
def test_heads_are_cut_whatever_the_sizes(case, batch, ratio):
    model = Folded(**case).model(batch)
    plan = onnxprune.plan(model, ratio=ratio, align="none")
    result = onnxprune.apply(model, plan, verify=False)
    left = int(4 * (1 - ratio))
    last = next(t for t in reversed(result.model.graph.initializer) if len(t.dims) == 2)
    assert list(last.dims) == [4 * left, 16]
    sizes = itertools.product([1, 2, 3, 7] if batch == "b" else [batch], [1, 5])
    proof = onnxprune.verify(model, result.model, plan, inputs=[feeds(model, b, t) for b, t in sizes])
    assert proof["given_inputs"] >= 2
    assert proof["max_relative_error"] <= 1e-5


def test_without_restored_sizes_the_verification_fails(monkeypatch):
    monkeypatch.setattr(mend.Mender, "_restore", lambda *_: None)
    model = Folded(heads="constant", unfold="divided").model()
    with pytest.raises(onnxprune.OnnxPruneError):
        onnxprune.prune(model, ratio=0.5, align="none")
