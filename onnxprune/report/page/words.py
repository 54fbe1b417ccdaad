"""Numbers and names in words, as the page shows them."""

from __future__ import annotations

__all__ = ["count", "middle", "size", "times"]


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
