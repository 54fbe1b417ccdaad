"""Ids that stay: lists, tokenizers, and what samples have."""

import json
from pathlib import Path

import numpy as np
import pytest

from onnxprune.calibration.tokens import frequent, read_tokens
from onnxprune.errors import UsageError

TOKENIZER = {
    "version": "1.0",
    "added_tokens": [
        {"id": 5, "content": "[END]", "special": True, "single_word": False, "lstrip": False, "rstrip": False,
         "normalized": False},
    ],
    "pre_tokenizer": {"type": "Whitespace"},
    "model": {"type": "WordLevel", "vocab": {"a": 0, "b": 1, "c": 2, "?": 3, "d": 4, "[END]": 5}, "unk_token": "?"},
}  # fmt: skip


@pytest.mark.parametrize("text", ["7\n3\n\n3\n", "[7, 3, 3]", " 3 7 ", "\ufeff3\n7"])
def test_lists(tmp_path: Path, text: str) -> None:
    (tmp_path / "ids").write_text(text, encoding="utf-8")
    tokens = read_tokens(tmp_path / "ids")
    assert tokens.ids.tolist() == [3, 7]
    assert tokens.unk is None


def test_numbers_in_memory() -> None:
    assert read_tokens(np.array([4, 1])).ids.tolist() == [1, 4]
    assert read_tokens(range(2)).ids.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("3\nx", "'x' is none"),
        ("[3, 1.5]", "'1.5' is none"),
        ("[3, true]", "'True' is none"),
        ("[3", "isn't JSON"),
        ("-1", "holds -1, which is no id"),
        ("1\n--5", "'--5' is none"),
        ("", "lists no id"),
        ("[]", "lists no id"),
        ("99999999999999999999", "is none"),
        ("{}", "say what it must still read with --words"),
    ],
)
def test_what_is_no_list(tmp_path: Path, text: str, what: str) -> None:
    (tmp_path / "ids").write_text(text)
    with pytest.raises(UsageError, match=what):
        read_tokens(tmp_path / "ids")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="can't be read"):
        read_tokens(tmp_path / "none")


def test_words_go_with_a_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "ids").write_text("1")
    for given in (tmp_path / "ids", [1]):
        with pytest.raises(UsageError, match="--words goes with a tokenizer"):
            read_tokens(given, tmp_path / "ids")


def test_a_tokenizer(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    path, words = tmp_path / "tokenizer.json", tmp_path / "words"
    path.write_text(json.dumps(TOKENIZER))
    words.write_text("a c\na\n")
    tokens = read_tokens(path, words)
    assert tokens.ids.tolist() == [0, 2, 3, 5]  # those of the words, the unknown one, and the special one
    assert tokens.unk == 3
    words.write_text("a\nzebra\n")
    assert read_tokens(path, words).ids.tolist() == [0, 3, 5]
    path.write_text(json.dumps({"model": {}}))
    with pytest.raises(UsageError, match="can't be read as a tokenizer"):
        read_tokens(path, words)


def test_what_samples_have_most() -> None:
    batches = [
        {"ids": np.array([[5, 5, 9], [2, 9, 5]]), "mask": np.ones((2, 3))},
        {"ids": np.array([[1, 2, 7]])},
    ]
    assert frequent(batches, ["ids"], 2).ids.tolist() == [2, 5]  # 2 and 9 are there twice: the lesser one
    assert frequent(batches, ["ids"], 99).ids.tolist() == [1, 2, 5, 7, 9]
    with pytest.raises(UsageError, match="finds no ids"):
        frequent(batches, [], 2)
