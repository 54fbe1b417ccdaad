"""Options of which ids of a vocabulary stay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from onnxprune.errors import UsageError
from onnxprune.options.declare import option
from onnxprune.options.recovery import RecoveryFields, RecoveryOptions

__all__ = ["VocabularyFields", "VocabularyOptions"]


@dataclass(frozen=True, kw_only=True)
class VocabularyOptions(RecoveryOptions):
    """Which ids stay, and whether they count anew."""

    keep_tokens: Any = option(
        None,
        "cut the vocabulary to these ids: a file with one a line or a JSON list, a tokenizer.json with --words, or a "
        "number N, the N most frequent in the samples of --calib; ids count anew, and ids.json beside OUT says how",
        stage="decide",
        commands="prune plan",
        metavar="FILE|N",
    )
    words: str | None = option(
        None,
        "with --keep-tokens tokenizer.json: a file of texts, one a line; what they become stays, and special tokens",
        stage="decide",
        commands="prune plan",
        metavar="FILE",
    )
    remap: bool = option(
        False,
        "with --keep-tokens: the model takes ids as they were; one that is gone is read as --unk",
        stage="decide",
        commands="prune plan",
    )
    unk: int | None = option(
        None,
        "with --remap: the id that ids which are gone are read as; by default that of the tokenizer.json, or the "
        "least that stays",
        stage="decide",
        commands="prune plan",
        metavar="ID",
    )

    def __post_init__(self) -> None:
        """Refuse what needs ids where none are given."""
        super().__post_init__()
        given = {"--words": self.words is not None, "--remap": self.remap, "--unk": self.unk is not None}
        for flag in (flag for flag, is_given in given.items() if is_given and self.keep_tokens is None):
            raise UsageError(f"{flag} is for --keep-tokens; add that, or leave {flag} out.")
        if self.unk is not None and not self.remap:
            raise UsageError(
                "--unk is for --remap: ids that are gone have no number otherwise; leave it out."
            )
        if self.most_frequent is not None and self.calib is None:
            raise UsageError("--keep-tokens N counts ids in samples; give them with --calib, or give a file.")
        if self.most_frequent == 0:
            raise UsageError("--keep-tokens must be a file, or a number from 1; got 0.")

    @property
    def most_frequent(self) -> int | None:
        """How many of the most frequent ids of the samples stay; None where they are listed."""
        text = str(self.keep_tokens) if isinstance(self.keep_tokens, (int, str)) else ""
        return int(text) if text.isascii() and text.isdigit() else None


class VocabularyFields(RecoveryFields, total=False):
    """The fields of `VocabularyOptions`, as keyword arguments."""

    keep_tokens: Any
    words: str | None
    remap: bool
    unk: int | None
