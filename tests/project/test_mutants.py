"""The rows of benchmarks/mutants.py are about the code as it is: one whose text has changed is named here."""

import contextlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def mutants() -> ModuleType:
    spec = importlib.util.spec_from_file_location("mutants", BENCHMARKS / "mutants.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["mutants"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def places(mutants: ModuleType) -> dict[object, str]:
    """Row -> file, of those whose text is there."""
    texts, found = mutants.sources(mutants.ROOT), {}
    for row in mutants.rows():
        with contextlib.suppress(LookupError):
            found[row] = mutants.place(row, texts)
    return found


def test_rows_break_one_place_each_and_have_tests(mutants: ModuleType) -> None:
    """A few may be stale, as code changes; who runs the benchmark mends them, since it stops at each."""
    rows, texts, found = mutants.rows(), mutants.sources(mutants.ROOT), places(mutants)
    assert len(rows) >= 60
    assert len({(row.file, row.old, row.new) for row in rows}) == len(rows)
    stale = [f"{row.file}: {row.old}" for row in rows if row not in found]
    assert len(stale) <= len(rows) // 10, stale
    for row, where in found.items():
        assert mutants.broken(row, texts[where]) != texts[where]
        assert mutants.tests_of(row, mutants.ROOT)


def test_all_rooms_have_rows(mutants: ModuleType) -> None:
    """A room is a folder of onnxprune; a new one gets a row."""
    texts = mutants.sources(mutants.ROOT)
    rooms = {n.split("/")[1] for n in texts if n.count("/") > 1 and n.startswith("onnxprune/")}
    broken = set(places(mutants).values())
    assert rooms - {name.split("/")[1] for name in broken if name.count("/") > 1} == set()
    assert any(name.startswith("passes/") for name in broken)


def test_a_text_is_found_where_its_file_has_moved_and_only_once(mutants: ModuleType) -> None:
    row = mutants.Mutant("onnxprune/old.py", "x = 1", "x = 2", ("test_mutants.py",))
    assert mutants.place(row, {"onnxprune/new/place.py": "x = 1\n", "passes/other.py": "y = 1\n"}) == (
        "onnxprune/new/place.py"
    )
    with pytest.raises(
        LookupError, match=r"'x = 1' of the row for onnxprune/old.py is nowhere; mend the row"
    ):
        mutants.place(row, {"onnxprune/old.py": "x = 3\n"})
    with pytest.raises(LookupError, match=r"is at 2 places \(a.py, b.py\)"):
        mutants.place(row, {"a.py": "x = 1\n", "b.py": "x = 1\n"})
    with pytest.raises(LookupError, match="is at 2 places"):
        mutants.place(row, {"onnxprune/old.py": "x = 1\nx = 1\n"})
    with pytest.raises(LookupError, match=r"'test_nothing.py' of the row for onnxprune/old.py are 0 files"):
        mutants.tests_of(mutants.Mutant(row.file, row.old, row.new, ("test_nothing.py",)), mutants.ROOT)


def test_what_is_no_python_is_refused(mutants: ModuleType) -> None:
    with pytest.raises(SyntaxError):
        mutants.broken(mutants.Mutant("a.py", "x = 1", "x = ", ("t",)), "x = 1\n")


def test_a_mutant_is_killed_by_a_test_that_fails_and_its_place_is_mended(
    mutants: ModuleType, tmp_path: Path
) -> None:
    """One in a tree of two lines: what a test looks at is killed, what none looks at survives."""
    for folder in ("onnxprune", "passes", "tests"):
        (tmp_path / folder).mkdir()
    text = "seen = 1\nunseen = 1\n"
    (tmp_path / "onnxprune" / "place.py").write_text(text)
    (tmp_path / "tests" / "test_place.py").write_text(
        "import sys\nsys.path.insert(0, 'onnxprune')\nimport place\n\ndef test_it():\n    assert place.seen == 1\n"
    )
    found = [
        mutants.judge(
            mutants.Mutant("onnxprune/place.py", old, new, ("test_place.py",), why), tmp_path, before
        )
        for old, new, why, before in (
            ("seen = 1\nu", "seen = 2\nu", "", "tests/test_place.py::test_it"),
            ("unseen = 1", "unseen = 2", "none looks", "tests/test_place.py::test_that_is_gone"),
        )
    ]
    assert [one.killer for one in found] == ["tests/test_place.py::test_it", ""]
    assert "SURVIVED: none looks" in mutants.line(found[1])
    assert (tmp_path / "onnxprune" / "place.py").read_text() == text


def test_what_is_kept_is_read_again_for_rows_as_they_are(mutants: ModuleType, tmp_path: Path) -> None:
    path, (row, other, *_) = tmp_path / "results.jsonl", mutants.rows()
    assert mutants.read_results(None) == mutants.read_results(path) == {}
    gone = mutants.Mutant("onnxprune/gone.py", "x = 1", "x = 2", ("t",))
    kept = [mutants.Outcome(row, "tests/t.py::test_it", 2.0), mutants.Outcome(other, "", 9.0)]
    for one in (*kept, mutants.Outcome(gone, "", 1.0)):
        mutants.keep_result(path, one)
    assert mutants.read_results(path) == {row: kept[0], other: kept[1]}


def test_what_killed_a_row_before_goes_first(mutants: ModuleType) -> None:
    """All cases of a test where the name of its case was cut at a space; nothing where its file is no part any more."""
    tests = ["tests/new/test_a.py", "tests/test_b.py"]
    assert mutants.first_test("tests/test_a.py::test_x[1:4]", tests) == "tests/new/test_a.py::test_x[1:4]"
    assert mutants.first_test("tests/test_b.py::test_x[BatchNorm", tests) == "tests/test_b.py::test_x"
    assert mutants.first_test("tests/test_c.py::test_x", tests) == ""
    assert mutants.first_test("they hang: not done within 1800 s", tests) == ""
