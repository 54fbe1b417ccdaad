"""Bad input: one clear sentence, its exit code, the input untouched, no output left."""

import hashlib
import stat
import time
from pathlib import Path

import pytest
from attacks import ATTACKS, Attack

from onnxprune.errors import ModelError
from onnxprune.model import Model

every_attack = pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)


def fingerprint(folder: Path) -> dict[str, str]:
    """What is in a folder: the bytes of files, the targets of links."""
    found = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        if stat.S_ISLNK(status.st_mode):
            found[str(path)] = f"-> {path.readlink()}"
        elif stat.S_ISREG(status.st_mode):
            found[str(path)] = hashlib.sha256(path.read_bytes()).hexdigest()
        else:
            found[str(path)] = str(stat.S_IFMT(status.st_mode))
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder in a folder of its own, so that what a location reaches for lies outside."""
    (tmp_path / "models").mkdir()
    return tmp_path / "models"


def sentence(text: str) -> bool:
    """One line, that starts with a capital or a quoted path and ends with a full stop."""
    return "\n" not in text and text[0] in "'\"ABCDEFGHIJKLMNOPQRSTUVWXYZ" and text.endswith(".")


@every_attack
def test_refused_in_one_sentence(attack: Attack, folder: Path) -> None:
    path = attack.make(folder)
    before, start = fingerprint(folder.parent), time.perf_counter()
    with pytest.raises(ModelError, match=attack.says) as caught:
        Model.load(path)
    assert sentence(str(caught.value))
    assert caught.value.exit_code == 3
    assert time.perf_counter() - start < 5
    assert fingerprint(folder.parent) == before


def test_every_kind_of_attack_is_there() -> None:
    assert len(ATTACKS) > 60
    assert len({attack.name for attack in ATTACKS}) == len(ATTACKS)
