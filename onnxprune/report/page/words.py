"""Numbers and names in words, as the page shows them."""

from __future__ import annotations

__all__ = ["count", "middle", "milliseconds", "power", "size", "times"]


def size(number: float | None) -> str:
    """Return bytes in a few characters (powers of ten).

    Examples
    --------
    >>> size(999), size(2_658_000), size(None)
    ('999 B', '2.66 MB', '–')
    """
    return "–" if number is None else _scaled(number, ("B", "kB", "MB", "GB", "TB"))


def count(number: float | None) -> str:
    """Return a count in a few characters.

    Examples
    --------
    >>> count(950), count(41_234_567), count(4.1e9), count(None)
    ('950', '41.2 M', '4.10 G', '–')
    """
    return "–" if number is None else _scaled(number, ("", "k", "M", "G", "T"))


def _scaled(number: float, units: tuple[str, ...]) -> str:
    for at, unit in enumerate(units):
        value = number / 1000**at
        if value < 999.5 or at == len(units) - 1:
            digits = 0 if at == 0 or value >= 99.95 else 1 if value >= 9.995 else 2
            return f"{value:.{digits}f} {unit}".strip()
    raise AssertionError("not reached")


def times(before: float | None, after: float | None) -> str:
    """Return how many times less is left.

    Examples
    --------
    >>> times(100, 50), times(100, 100), times(100, 3), times(0, 0)
    ('2.0×', '1.0×', '33×', '')
    """
    if not before or not after:
        return ""
    ratio = before / after
    return f"{ratio:.{1 if ratio < 9.95 else 0}f}×"


def middle(text: str, most: int) -> str:
    """Return a text of so many characters at most; names differ at both ends.

    Examples
    --------
    >>> middle("encoder.layers.0.weight", 11)
    'encod…eight'
    """
    if len(text) <= most:
        return text
    end = most // 2
    return f"{text[: most - 1 - end]}…{text[-end:]}"


def milliseconds(seconds: float) -> str:
    """Return a time in a few characters.

    Examples
    --------
    >>> milliseconds(0.0000283), milliseconds(0.0123), milliseconds(2.5), milliseconds(0)
    ('0.028 ms', '12.3 ms', '2.5 s', '–')
    """
    if seconds <= 0:
        return "–"
    if seconds >= 1:
        return f"{seconds:.3g} s"
    return f"{1e3 * seconds:.3g} ms" if seconds >= 1e-4 else f"{1e3 * seconds:.3f} ms"


def power(number: float, least: float = 1e-12, digits: int = 2) -> str:
    """Return a number that may be very small; below the least one nobody asks by how much.

    Examples
    --------
    >>> power(0.25), power(0.00123), power(1.9e-7), power(1.1e-68), power(1e-8, 1e-6), power(0)
    ('0.25', '0.0012', '1.9 × 10⁻⁷', 'below 10⁻¹²', 'below 10⁻⁶', '0')
    """
    if number == 0 or number >= 1e-3:
        return f"{number:.{digits}g}"
    if number < least:
        return f"below {power(least).removeprefix('1.0 × ')}"
    first, exponent = f"{number:.1e}".split("e")
    return f"{first} × 10{str(int(exponent)).translate(_RAISED)}"


_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
