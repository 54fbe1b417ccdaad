"""Ids of a vocabulary that the user lists, or that samples have."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.errors import UsageError

__all__ = ["Tokens", "frequent", "read_tokens"]

#: Bytes of a file beyond which it lists no ids.
MOST_BYTES = 1 << 28


@dataclass(frozen=True)
class Tokens:
    """Ids that stay.

    Attributes
    ----------
    ids : int64[n]
        Ascending, each once.
    unk : int or None
        The one for what isn't known, where a tokenizer says so.
    """

    ids: NDArray[np.int64]
    unk: int | None = None


def read_tokens(given: Any, words: str | os.PathLike[str] | None = None) -> Tokens:
    """Read ids.

    Parameters
    ----------
    given : path or iterable of int
        A path leads to a text of numbers, a JSON list of them, or a tokenizer.json.
    words : path, optional
        With a tokenizer.json: texts, one a line.

    Raises
    ------
    UsageError
        If it can't be read, or holds anything else.
    """
    if not isinstance(given, (str, os.PathLike)):
        if words is not None:
            raise UsageError("--words goes with a tokenizer.json; ids that are given as a list need none.")
        return Tokens(_ids(given, "The given ids"))
    text, where = _read("--keep-tokens", given), f"--keep-tokens {str(given)!r}"
    values: Any = None
    if text.lstrip()[:1] in ("[", "{"):
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"{where} isn't JSON: {error}.") from error
    if isinstance(values, dict):
        if words is None:
            raise UsageError(f"{where} is a tokenizer; say what it must still read with --words FILE.")
        return _tokenized(text, values, _read("--words", words).splitlines(), where)
    if words is not None:
        raise UsageError(f"--words goes with a tokenizer.json; {where} is a list of ids.")
    return Tokens(_ids(text.split() if values is None else values, where))


def frequent(batches: Iterable[Mapping[str, NDArray[Any]]], names: Sequence[str], most: int) -> Tokens:
    """Return the ids that these inputs of samples have most often, the lesser ones of equally frequent.

    Raises
    ------
    UsageError
        If there are none.
    """
    ids = [np.asarray(batch[name]).reshape(-1) for batch in batches for name in names if name in batch]
    known, counts = np.unique(np.concatenate([np.zeros(0, np.int64), *ids]), return_counts=True)
    if not known.size:
        raise UsageError("--keep-tokens N finds no ids in the samples; list them in a file.")
    order = np.argsort(-counts, kind="stable")[:most]
    return Tokens(np.sort(known[order]).astype(np.int64))


def _read(what: str, path: str | os.PathLike[str]) -> str:
    try:
        with Path(path).open("rb") as file:
            data = file.read(MOST_BYTES + 1)
        if len(data) > MOST_BYTES:
            raise ValueError(f"it has more than {MOST_BYTES:,} bytes")
        return data.decode("utf-8-sig")
    except (OSError, ValueError) as error:
        raise UsageError(f"{what} {str(path)!r} can't be read: {error}.") from error


def _ids(values: Iterable[Any], where: str) -> NDArray[np.int64]:
    ids = []
    for value in values:
        number = value
        if isinstance(value, str) and re.fullmatch("-?[0-9]{1,18}", value):
            number = int(value)
        if not isinstance(number, (int, np.integer)) or isinstance(number, bool):
            raise UsageError(
                f"{where} must hold ids, one a line or as a JSON list; {str(value)[:40]!r} is none."
            )
        if not 0 <= number < 2**63:
            raise UsageError(f"{where} holds {number}, which is no id: they count from 0.")
        ids.append(int(number))
    if not ids:
        raise UsageError(f"{where} lists no id; at least one must stay.")
    return np.unique(np.asarray(ids, np.int64))


def _tokenized(text: str, values: Mapping[str, Any], lines: Sequence[str], where: str) -> Tokens:
    """Return what texts become, with all special tokens and what those need."""
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise UsageError(
            f"{where} is read by the package 'tokenizers', which isn't installed; install it, or list ids."
        ) from error
    try:
        tokenizer = Tokenizer.from_str(text)
        tokenizer.no_truncation()
        ids = [number for line in tokenizer.encode_batch(list(lines)) for number in line.ids]
    except Exception as error:  # the package raises plain Exception
        raise UsageError(f"{where} can't be read as a tokenizer: {error}.") from error
    ids += list(tokenizer.get_added_tokens_decoder())
    model = values.get("model")
    name = model.get("unk_token") if isinstance(model, dict) else None
    unk = tokenizer.token_to_id(name) if isinstance(name, str) else None
    if unk is None and isinstance(model, dict) and isinstance(model.get("unk_id"), int):
        unk = int(model["unk_id"])
    return Tokens(_ids([*ids, *([] if unk is None else [unk])], where), unk)
