"""What is known of a result's accuracy: said first, and how good it is, before anything else is claimed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TextIO

from onnxprune.report.printing import drawn_on
from onnxprune.report.sentences import original_lines

__all__ = ["Known", "known", "say"]

#: Points of accuracy that may be lost, as measured and as the interval has it, for a result to be called good; and that
#: are lost beyond doubt where it is called bad.
GOOD_DROP, GOOD_HIGH, BAD_DROP = 1.0, 5.0, 5.0
#: The same of the share of samples with the original's class.
GOOD_SHARE, GOOD_LOW, BAD_SHARE = 0.98, 0.95, 0.9
#: The same of the relative error of outputs that are no classes.
GOOD_ERROR, BAD_ERROR = 0.05, 0.5

_COLOURS = {"good": "green", "warn": "yellow", "bad": "red"}


@dataclass(frozen=True)
class Known:
    """What is known.

    Attributes
    ----------
    level : str
        ``good``, ``warn`` or ``bad``.
    word : str
        In two words.
    text : str
        A sentence.
    """

    level: str
    word: str
    text: str

    @property
    def line(self) -> str:
        """Both, as a line of text."""
        return f"{self.word.lower()}: {self.text}"


def known(calibration: Mapping[str, Any] | None, command: str) -> Known:
    """Return what is known of the accuracy of a result.

    Parameters
    ----------
    calibration : mapping or None
        What a report says of the samples, if there were any.
    command : str
        That made the result, such as ``prune``.
    """
    if calibration is None:
        return Known(
            "warn",
            "Accuracy unknown",
            "no samples were given, so nothing was fitted or measured; 'onnxprune "
            f"{command} IN OUT ... --calib samples.npz' does both",
        )
    original = calibration["original"]
    if original is None:
        return Known("warn", "Accuracy unknown", original_lines(None)[0])
    word = "Accuracy" if "accuracy" in original else "Agreement"
    return Known(_level(original), f"{word} measured", original_lines(original)[0])


def say(told: Known, stream: TextIO) -> None:
    """Print what is known as a line, in its colour on a terminal."""
    if not stream.isatty():
        stream.write(f"{told.line}\n")
        return
    from rich.console import Console
    from rich.text import Text

    Console(file=drawn_on(stream)).print(Text(told.line, style=f"bold {_COLOURS[told.level]}"))


def _level(original: Mapping[str, Any]) -> str:
    if "accuracy" in original:
        pair = original["accuracy"]
        drop = pair["before"] - pair["after"]
        low, high = pair.get("drop_interval") or (drop, drop)
        return "bad" if low > BAD_DROP else "good" if drop <= GOOD_DROP and high <= GOOD_HIGH else "warn"
    if "agreement" in original:
        share, (low, high) = original["agreement"], original["agreement_interval"]
        return "bad" if high < BAD_SHARE else "good" if share >= GOOD_SHARE and low >= GOOD_LOW else "warn"
    error = original["relative_error"]
    return "good" if error <= GOOD_ERROR else "warn" if error <= BAD_ERROR else "bad"
