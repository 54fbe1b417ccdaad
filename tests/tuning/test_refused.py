"""Members that can't be had, over files and cuts that are made up."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from onnxprune.errors import CalibrationError, UsageError
from onnxprune.progress import Whole
from onnxprune.tuning.cuts import Width
from onnxprune.tuning.demand import Demand
from onnxprune.tuning.members import Deadline, Lever, Members, Recipe
from onnxprune.tuning.state import State

HALF, LESS = Recipe(Width("macs", 0.5)), Recipe(Width("macs", 0.4))
WRONG = "--target 'bytes=1.18': a share must be above 0 and at most 1"


class Cut:
    """Cuts of which some shares fail."""

    once = 0.0

    def __init__(self, wrong: dict[float, Exception]) -> None:
        self.wrong = wrong

    def make(self, width: Width, output: Path) -> Any:
        if width.share in self.wrong:
            raise self.wrong[width.share]
        size = SimpleNamespace(macs=1, memory=1, parameters=1)
        return SimpleNamespace(report=SimpleNamespace(before=size, after=size))


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(Members, "_measured", lambda self, entry, name, path: {**entry, "bytes": 1})

    def of(wrong: dict[float, Exception]) -> Members:
        aside: Any = SimpleNamespace(name="accuracy")
        return Members(
            tmp_path / "in.onnx", Cut(wrong), lambda: aside, aside, aside, Demand(), aside,  # type: ignore[arg-type]
            State.open(tmp_path / "st", {}), Deadline(None), Whole(lambda text: None, "tune", 1),
        )  # fmt: skip

    return of


def test_a_setting_of_a_lever_that_is_refused_costs_that_member(
    made: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Settings are the search's own choice, so no option of the user's is wrong."""

    def apply(self: Lever, *given: object) -> None:
        raise UsageError(WRONG)

    monkeypatch.setattr(Lever, "apply", apply)
    entry = made({}).make(Recipe(None, Lever("grids", "1.18")))
    assert entry["refused"] == WRONG
    assert "none" not in entry


def test_a_share_that_is_refused_after_others_costs_that_member(made: Any) -> None:
    members = made({0.4: UsageError(WRONG)})
    assert "refused" not in members.make(HALF)
    assert members.make(LESS)["refused"] == WRONG


@pytest.mark.parametrize("before", [False, True])
def test_what_the_first_cut_refuses_is_the_users(
    made: Any, monkeypatch: pytest.MonkeyPatch, before: bool
) -> None:
    """Some options are read by cuts alone: a lever that was tried before says nothing of them."""
    monkeypatch.setattr(Lever, "apply", lambda self, *given: None)
    members = made({0.5: UsageError("--exclude matches no layer")})
    if before:
        members.make(Recipe(None, Lever("int8", "dynamic")))
    with pytest.raises(UsageError, match="--exclude matches no layer"):
        members.make(HALF)


def test_other_errors_of_cuts_end_the_search_as_before(made: Any) -> None:
    members = made({0.4: CalibrationError("the model fails on the samples")})
    members.make(HALF)
    with pytest.raises(CalibrationError, match="fails on the samples"):
        members.make(LESS)
