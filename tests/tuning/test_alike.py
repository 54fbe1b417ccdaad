"""Of members that leave about as much of what is made least, the fastest is the best."""

from onnxprune.tuning.explore import ALIKE, least_of

SLOW = {"bytes": 1000, "speedup": 0.4}
FAST = {"bytes": 1005, "speedup": 4.0}
LARGE = {"bytes": 1100, "speedup": 9.0}


def test_a_few_bytes_are_not_worth_a_slower_model() -> None:
    assert least_of([SLOW, FAST, LARGE], "bytes") is FAST
    assert least_of([SLOW, LARGE], "bytes") is SLOW
    assert least_of([], "bytes") is None


def test_the_fastest_is_the_best_where_time_is_made_least() -> None:
    nearly = {"bytes": 1, "speedup": FAST["speedup"] / ALIKE**0.5}
    for entries in ([FAST, nearly], [nearly, FAST]):
        assert least_of(entries, "latency") is FAST
