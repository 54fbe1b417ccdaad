"""No test asserts an absolute time: another machine may be a hundred times busier."""

import ast
from pathlib import Path

import pytest

CLOCKS = {"perf_counter", "process_time", "monotonic", "time", "thread_time", "perf_counter_ns", "time_ns"}


def absolute(text: str) -> list[int]:
    """Lines of assertions that compare what a clock says with a number."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.Assert):
            continue
        for compared in (part for part in ast.walk(node.test) if isinstance(part, ast.Compare)):
            calls = [c.func for c in ast.walk(compared) if isinstance(c, ast.Call)]
            names = {f.attr if isinstance(f, ast.Attribute) else getattr(f, "id", "") for f in calls}
            sides = [compared.left, *compared.comparators]
            if names & CLOCKS and any(isinstance(side, ast.Constant) for side in sides):
                found.append(node.lineno)
    return found


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("assert time.perf_counter() - start < 10", [1]),
        ("x = 1\nassert 0 < perf_counter() - start", [2]),
        ("assert seconds(100) < 40 * seconds(10)", []),
        ("assert len(x) < 3", []),
    ],
)
def test_the_search_itself(text: str, lines: list[int]) -> None:
    assert absolute(text) == lines


def test_no_test_asserts_an_absolute_time() -> None:
    tests = sorted(Path(__file__).parents[1].rglob("*.py"))
    assert len(tests) > 60
    assert {str(p): lines for p in tests if (lines := absolute(p.read_text("utf-8")))} == {}
