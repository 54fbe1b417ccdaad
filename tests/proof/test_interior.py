"""Comparisons inside of graphs: what they hold at once, and that they see the same in parts."""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np
import onnx
import pytest
from nets import build, node, normal

from onnxprune.cut.rewrite import rewrite
from onnxprune.graph.analysis import analyse
from onnxprune.graph.kept import Kept
from onnxprune.model import Model
from onnxprune.proof import interior
from onnxprune.proof.compare import Difference
from onnxprune.proof.interior import Case
from onnxprune.proof.twin import twin
from onnxprune.runtime.session import Feeds, Session

BLOCKS = 6
#: Bytes of the float in front of a jump, its integers, and the float behind it, for one input.
BLOCK = 2 * 8 * 16 * 16 * (4 + 1 + 4)


def chain() -> onnx.ModelProto:
    """Convolutions with a jump and a sum behind each."""
    weights: dict[str, Any] = {"s": np.float32(0.02), "z": np.uint8(128)}
    nodes, x, width = [], "x", 3
    for i in range(BLOCKS):
        weights[f"w{i}"] = normal(8, width, 1, 1, seed=i)
        nodes += [
            node("Conv", f"{x} w{i}", f"c{i}"),
            node("QuantizeLinear", f"c{i} s z", f"q{i}"),
            node("DequantizeLinear", f"q{i} s z", f"d{i}"),
        ]
        if i:
            nodes.append(node("Add", f"d{i} {x}", f"a{i}"))
        x, width = f"a{i}" if i else f"d{i}", 8
    weights["last"] = normal(4, 8, 1, 1)
    return build([*nodes, node("Conv", f"{x} last", "y")], weights, (2, 3, 16, 16))


def compared(
    monkeypatch: pytest.MonkeyPatch, held: int, louder: str = ""
) -> tuple[dict[str, Difference], int]:
    """Compare on four inputs; also return the most bytes of results that were there at once."""
    model = Model.load(chain())
    analysis = analyse(model)
    dead = analysis.grouping.dead({g.name: np.arange(g.units)[::2] for g in analysis.grouping.groups})
    pruned = rewrite(model, analysis.coupling, analysis.tracer, dead, analysis.other_values()).model
    if louder:
        pruned.put(louder, 2 * pruned.weight(louder))
    live: list[tuple[weakref.ref[Any], int]] = []
    most, run = 0, Session.run

    def watched(self: Session, feeds: Feeds, names: Any = None) -> dict[str, Any]:
        nonlocal most, live
        got = run(self, feeds, names)
        live = [(r, n) for r, n in live if r() is not None]
        live += [(weakref.ref(a), a.nbytes) for a in got.values()]
        most = max(most, sum(n for _, n in live))
        return got

    cases = [Case({"x": normal(2, 3, 16, 16, seed=n)}, {}) for n in range(4)]
    with monkeypatch.context() as patch:
        patch.setattr(Session, "run", watched)
        patch.setattr(interior, "HELD", held, raising=False)
        models = twin(analysis, dead), pruned
        return interior.pieces(analysis, Kept(analysis.coupling, dead), models, cases, prepack=False), most


def test_one_input_after_the_other_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    found, most = compared(monkeypatch, 10**9)
    assert {"y", "c0", "q0", f"q{BLOCKS - 1}"} <= found.keys()
    assert all(d.error < 1e-6 for d in found.values())
    assert most < 2 * BLOCKS * BLOCK


@pytest.mark.parametrize("louder", ["", "w3"])
def test_parts_hold_little_and_see_the_same(monkeypatch: pytest.MonkeyPatch, louder: str) -> None:
    whole, _ = compared(monkeypatch, 10**9, louder)
    parts, most = compared(monkeypatch, BLOCK, louder)
    assert parts == whole
    assert (parts["c3"].error > 0.1) == bool(louder)
    assert parts["c2"].error < 1e-6
    assert most < 3 * BLOCK
