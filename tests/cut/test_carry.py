"""What fails of a list is found by bisection, and all the rest is kept."""

from collections.abc import Callable, Sequence

import pytest

from onnxprune.cut.put_back import Failed, most
from onnxprune.errors import VerificationError


def holding(bad: str) -> Callable[[Sequence[str]], str]:
    """Names that hold together unless one of them is bad; of two digits only one may be there."""

    def attempt(names: Sequence[str]) -> str:
        if wrong := [name for name in names if name in bad]:
            raise Failed(f"{wrong[0]} differs")
        if sum(name.isdigit() for name in names) > 1:
            raise Failed("two digits")
        return "".join(names)

    return attempt


@pytest.mark.parametrize("bad", ["", "a", "h", "ab", "adg", "cdef", "abcdefg"])
def test_all_that_holds_is_kept_and_the_rest_is_named(bad: str) -> None:
    kept, put_back = most("abcdefgh", holding(bad))
    assert kept == "".join(name for name in "abcdefgh" if name not in bad)
    assert put_back == {name: f"{name} differs" for name in bad}


def test_of_two_that_do_not_hold_together_the_first_stays() -> None:
    assert most("a1b2c", holding("")) == ("a1bc", {"2": "two digits"})


def test_nothing_that_holds_is_an_error() -> None:
    with pytest.raises(VerificationError, match="whichever group is cut: a differs"):
        most("ab", holding("ab"))

    def never(names: Sequence[str]) -> str:
        raise Failed(f"{len(names)} names")

    with pytest.raises(VerificationError, match=r"Even without any cut .* verification: 0 names"):
        most("ab", never)
