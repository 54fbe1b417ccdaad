"""Values that differ between two runs of the same model: found, left out, and nothing else with them."""

import importlib
from typing import Any

import numpy as np
import pytest

import onnxprune
from onnxprune.errors import VerificationError
from onnxprune.proof.interior import Case
from onnxprune.proof.repeat import left_out, unrepeatable

from small_models import attention  # isort: skip

X = np.arange(12, dtype=np.float32).reshape(3, 4)


class Session:
    """Writes all rows of its output but the last, which keeps what was there; and is rounded otherwise each time."""

    def __init__(self, loose: float, rounded: float = 0.0) -> None:
        self.loose, self.rounded, self.runs = loose, rounded, 0

    def run(self, feeds: dict[str, Any]) -> dict[str, Any]:
        self.runs += 1
        y = 2 * feeds["x"] + np.float32(self.rounded * self.runs)
        y[-1, 1] += self.loose * self.runs
        return {"y": y, "n": np.arange(3)}


def places(session: Session) -> dict[str, Any]:
    case = Case({"x": X}, session.run({"x": X}))
    return dict(unrepeatable(session, [case], 1e-4)[0])


def test_a_row_that_isnt_written_is_found_and_no_other() -> None:
    loose = places(Session(1.0))
    assert loose["y"].tolist() == [[False] * 4, [False] * 4, [True] * 4]
    left = left_out({"y": X, "n": X}, loose)
    assert left["y"].tolist() == X[:2].ravel().tolist()
    assert left["n"] is X


@pytest.mark.parametrize("session", [Session(0.0), Session(0.0, 1e-6)], ids=["the same", "rounded"])
def test_rounding_leaves_nothing_out(session: Session) -> None:
    assert places(session) == {}


def test_what_is_noise_as_a_whole_is_not_left_out() -> None:
    """Else a model whose only output is noise would pass."""

    class Noise(Session):
        def run(self, feeds: dict[str, Any]) -> dict[str, Any]:
            self.runs += 1
            return {"y": feeds["x"] + np.float32(self.runs)}

    assert places(Noise(0.0)) == {}


@pytest.mark.parametrize(("step", "rounds"), [(1e-6, 2), (1.0, 3)], ids=["rounded", "a row"])
def test_other_places_of_the_same_row_and_rounding_are_no_reason_to_look_again(
    step: float, rounds: int
) -> None:
    """Where each run moves another element, nothing new is learned by twelve rounds."""

    class Moving(Session):
        def run(self, feeds: dict[str, Any]) -> dict[str, Any]:
            self.runs += 1
            y = np.zeros((3, 100), np.float32) + feeds["x"][:, :1]
            y[-1, self.runs] += np.float32(step)
            return {"y": y}

    session = Moving(0.0)
    loose = places(session)
    assert session.runs == 1 + 2 * rounds  # the reference, and two runs in each round
    assert loose == {} if step < 1 else loose["y"].tolist() == [[False] * 100, [False] * 100, [True] * 100]


class Loose:
    """A session of onnxruntime that leaves some rows of its output as they were."""

    runs = 0

    def __init__(self, session: Any, rows: slice) -> None:
        self.session, self.rows = session, rows

    def run(self, feeds: Any) -> dict[str, Any]:
        Loose.runs += 1
        outputs = dict(self.session.run(feeds))
        for name, array in outputs.items():
            outputs[name] = array.copy()
            outputs[name][..., self.rows, :] += Loose.runs
        return outputs


@pytest.mark.parametrize("rows", [slice(7, 8), slice(0, 8)], ids=["some", "all"])
def test_the_proof_leaves_out_rows_that_arent_written(monkeypatch: pytest.MonkeyPatch, rows: slice) -> None:
    module = importlib.import_module("onnxprune.proof.verify")
    for place in (module, importlib.import_module("onnxprune.proof.references")):
        real = place.open_session
        monkeypatch.setattr(place, "open_session", lambda *a, real=real, **k: Loose(real(*a, **k), rows))
    if rows.start:
        notes = onnxprune.prune(attention(seq=8), ratio=0.5, align=None).report.notes
        assert any("other values in each run" in note for note in notes)
    else:
        with pytest.raises(VerificationError):
            onnxprune.prune(attention(seq=8), ratio=0.5, align=None)
