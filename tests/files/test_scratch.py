"""New values of large weights go to a file without a name, and are the same values."""

import tempfile

import numpy as np
import pytest
from small_models import Builder

from onnxprune.files import scratch as _scratch
from onnxprune.files.scratch import Scratch
from onnxprune.model import Model


@pytest.fixture
def narrow(monkeypatch, tmp_path):
    monkeypatch.setattr(_scratch, "ROOM", 3000)
    monkeypatch.setattr(_scratch, "LEAST", 1000)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_what_there_is_no_room_for_lies_on_disk_and_leaves_nothing(narrow):
    scratch = Scratch()
    parts = [np.full(size, n, np.uint8) for n, size in enumerate((2000, 900, 2000, 999))]
    kept = [scratch.hold(part) for part in parts]
    assert [isinstance(part, np.memmap) for part in kept] == [False, False, True, False]
    for one, other in zip(kept, parts, strict=True):
        np.testing.assert_array_equal(one, other)
    assert not list(narrow.iterdir())


def test_without_a_disk_they_stay_in_memory(narrow, monkeypatch):
    def full(**_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    data = np.ones(9000, np.uint8)
    assert Scratch().hold(data) is data


def test_a_model_reads_and_saves_what_was_put(narrow, tmp_path):
    b = Builder()
    model = Model.load(b.model({"x": ["n", 40]}, b.linear(b.linear("x", "one", 40, 40), "two", 40, 40)))
    fork, new = model.fork(), {}
    for n, name in enumerate(["one.weight", "two.weight"]):
        new[name] = np.full((40, 40), n + 0.5, np.float32)
        (fork if n else model).put(name, new[name])
    assert model._store.scratch is fork._store.scratch  # one account for all
    np.testing.assert_array_equal(fork.weight("two.weight"), new["two.weight"])
    assert fork.weight("one.weight")[0, 0] != 0.5
    fork.save(tmp_path / "out.onnx")
    np.testing.assert_array_equal(Model.load(tmp_path / "out.onnx").weight("two.weight"), new["two.weight"])
