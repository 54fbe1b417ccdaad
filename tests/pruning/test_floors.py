"""A budget and a floor: both hold, or it is refused with what would."""

import itertools
import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest

import onnxprune
from onnxprune import cli
from onnxprune.api import family
from onnxprune.errors import CalibrationError, FloorMissed, NothingToPrune, UsageError
from onnxprune.options.target import Target
from onnxprune.pruning import decision
from onnxprune.pruning.search import FRONTIER, Floors, largest, meeting_floors
from pruning.test_calibrated import images, residual, run

QUICK = {"align": None, "recover": "lstsq", "trials": 0}


@dataclass
class Cut:
    """A trial whose agreement is what is left of the model."""

    asked: str
    original: dict | None


def fitting(seen: list[float], most: float = 1.0):
    """Cuts down from a share at which a unit has to go; agreement and accuracy fall with its square root."""

    def fit(targets: tuple[Target, ...]) -> Cut:
        share = float(np.prod([t.value for t in targets]))
        seen.append(share)
        if share > most:
            raise NothingToPrune("no unit has to go")
        now = {"before": 90.0, "after": 90.0 * share**0.5}
        return Cut("+".join(t.text for t in targets), {"agreement": share**0.5, "accuracy": now})

    return fit


@pytest.mark.parametrize(
    ("agreement", "drop", "found", "holds"),
    [
        (0.9, None, {"agreement": 0.9}, True),
        (0.9, None, {"agreement": 0.899}, False),
        (None, 1.0, {"accuracy": {"before": 90.0, "after": 89.0}}, True),
        (None, 1.0, {"accuracy": {"before": 90.0, "after": 88.9}}, False),
        (None, 0.0, {"accuracy": {"before": 90.0, "after": 91.0}}, True),
        (0.9, 1.0, {"agreement": 0.95, "accuracy": {"before": 90.0, "after": 80.0}}, False),
        (0.9, 1.0, {"agreement": 0.85, "accuracy": {"before": 90.0, "after": 90.0}}, False),
        (0.9, 1.0, {"agreement": 0.95, "accuracy": {"before": 90.0, "after": 89.5}}, True),
    ],
)
def test_all_floors_must_hold(agreement: float | None, drop: float | None, found: dict, holds: bool) -> None:
    assert Floors(agreement, drop).judge(found)[0] is holds


def test_floors_need_classes() -> None:
    for floors, name in ((Floors(0.9, None), "--min-agreement"), (Floors(None, 1.0), "--max-drop")):
        assert floors
        with pytest.raises(CalibrationError, match=f"{name} needs an output with a row of classes"):
            floors.judge({"relative_error": 0.1})
    assert not Floors(None, None)


@pytest.mark.parametrize("floors", [Floors(0.8, None), Floors(None, 18.0), Floors(0.8, 50.0)])
def test_the_largest_cut_is_near_the_floor(floors: Floors) -> None:
    seen: list[float] = []
    found = largest(fitting(seen), floors)
    assert 0.64 <= float(found.asked.removeprefix("macs=")) < 0.64 + 0.9 / 2**5
    assert len(seen) == 6
    with pytest.raises(FloorMissed, match="No cut that was tried holds"):
        largest(fitting([]), Floors(1.0, None))


def test_a_target_that_holds_its_floor_is_taken_at_once() -> None:
    seen: list[float] = []
    fit = fitting(seen)
    first = fit((Target("macs", 0.7, True, "macs=0.7"),))
    shares = [Target("macs", 0.7, True, "macs=0.7")]
    assert meeting_floors(first, fit, Floors(0.8, None), shares) is first
    assert len(seen) == 1


@pytest.mark.parametrize("most", [1.0, 0.85])
def test_one_that_does_not_is_refused_with_the_frontier(most: float) -> None:
    """The figures are those of the trials, and what it says holds does."""
    shares = [Target("macs", 0.5, True, "macs=0.5"), Target("bytes", 0.6, True, "bytes=3MB")]
    first = Cut("macs=0.5+bytes=3MB", {"agreement": 0.3**0.5})
    seen: list[float] = []
    with pytest.raises(FloorMissed) as caught:
        meeting_floors(first, fitting(seen, most), Floors(0.9, None), shares)
    text = str(caught.value)
    assert "both --target macs=0.5+bytes=3MB and --min-agreement 0.9 (" in text
    tried = re.findall(r"macs=([0-9.]+)\+bytes=([0-9.]+) gives agreement ([0-9.]+)", text)
    assert len(tried) == sum(share <= most for share in seen)
    for macs, size, agreement in tried:
        assert float(agreement) == pytest.approx((float(macs) * float(size)) ** 0.5, abs=6e-4)
    assert len(seen) == FRONTIER
    advised = re.findall(r"--target macs=([0-9.]+)\+bytes=([0-9.]+) holds: ask for that", text)
    assert len(advised) == (most == 1.0)
    holding = [(macs, size) for macs, size, agreement in tried if float(agreement) >= 0.9]
    assert advised == sorted(holding, key=lambda one: float(one[0]))[:1], "the deepest that holds"
    with pytest.raises(FloorMissed, match=r"\); ask for a looser floor\.$"):
        meeting_floors(first, fitting([]), Floors(1.0, None), shares)


def test_both_hold_end_to_end() -> None:
    model, x = residual(), images(400)
    given = {"x": x, "truth": run(model, x).argmax(axis=1)}
    found = onnxprune.prune(
        model, target="macs=0.6", min_agreement=0.8, max_drop=20.0, calib=given, labels="truth", **QUICK
    ).report
    assert found.after.macs <= 0.6 * found.before.macs
    assert all(line["holds"] for line in found.targets)
    assert found.calibration["target"] == "macs=0.6"
    original = found.calibration["original"]
    assert original["agreement"] >= 0.8
    assert original["accuracy"]["after"] >= original["accuracy"]["before"] - 20.0


def test_notes_are_those_of_the_cut_that_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each trial decides anew, and may say what it does of widths."""
    numbers = itertools.count()
    monkeypatch.setattr(decision, "_finer", lambda *given: [f"trial {next(numbers)}"])
    model, x = residual(), images(400)
    notes = onnxprune.prune(model, min_agreement=0.8, calib={"x": x}, **QUICK).report.notes
    assert next(numbers) > 2
    assert len([note for note in notes if note.startswith("trial")]) == 1


@pytest.mark.parametrize("steps", [1, 2])
def test_what_the_refusal_advises_holds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], steps: int
) -> None:
    model, x = residual(redundant=False, scale=3.0), images(400)
    onnx.save(model, tmp_path / "m.onnx")
    np.savez(tmp_path / "s.npz", x=x, truth=run(model, x).argmax(axis=1))
    words = ["prune", str(tmp_path / "m.onnx"), str(tmp_path / "o.onnx"), "--calib", str(tmp_path / "s.npz")]
    words += ["--align", "none", "--recover", "lstsq", "--trials", "0", "--labels", "truth", "-q"]
    floor = ["--max-drop", "20"]
    assert cli.main([*words, *floor, "--target", "macs=0.15", "--steps", str(steps)]) == 4
    said = capsys.readouterr().err
    assert (
        "No cut was found that holds both --target macs=0.15 and --max-drop 20 (macs=0.15 gives accuracy -"
        in said
    )
    assert not (tmp_path / "o.onnx").exists()
    (advised,) = re.findall(r"; --target (macs=[0-9.]+) holds: ask for that", said)
    report = str(tmp_path / "r.json")
    assert cli.main([*words, *floor, "--target", advised, "--report", report]) == 0
    found = json.loads(Path(report).read_text())
    assert found["targets"][0]["holds"]
    accuracy = found["calibration"]["original"]["accuracy"]
    assert accuracy["before"] - accuracy["after"] <= 20


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"target": "macs=0.7,0.5", "min_agreement": 0.5}, "one value"),
        ({"ratio": 0.5, "min_agreement": 0.5}, "leave --ratio out"),
        ({"min_agreement": 0.5, "steps": 2}, "--steps goes with --ratio or --target"),
    ],
)
def test_floors_that_could_not_hold_are_refused(fields: dict, text: str) -> None:
    do = family if "," in fields.get("target", "") else onnxprune.prune
    with pytest.raises(UsageError, match=text):
        do(residual(), calib={"x": images(40)}, **fields)


def test_floors_need_samples_that_no_fit_sees() -> None:
    with pytest.raises(CalibrationError, match=r"--min-agreement 0.5 is judged on samples that no fit sees"):
        onnxprune.prune(residual(), calib={"x": images(12)}, min_agreement=0.5)


@pytest.mark.parametrize(
    ("floor", "needed"),
    [({"min_agreement": 0.999}, 10_000), ({"min_agreement": 0.75}, 0), ({"min_agreement": 1.0}, 0)],
)
def test_a_floor_that_one_sample_decides_is_refused_with_the_number_that_tells(
    floor: dict[str, float], needed: int
) -> None:
    floors = Floors(floor["min_agreement"], None)
    if needed:
        with pytest.raises(CalibrationError, match=f"takes 1000 at least, so give {needed} samples"):
            floors.resolvable(6)
    else:
        floors.resolvable(6)


def test_a_drop_of_one_point_takes_a_hundred_samples_set_aside() -> None:
    Floors(None, 1.0).resolvable(100)
    with pytest.raises(CalibrationError, match="takes 100 at least"):
        Floors(None, 1.0).resolvable(99)
    with pytest.raises(CalibrationError, match="can't be told on 6 samples"):
        onnxprune.prune(residual(), calib={"x": images(60)}, min_agreement=0.9)
