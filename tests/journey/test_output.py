"""Saving: complete or not at all, the input untouched, the same bytes again, external data too."""

import hashlib
import os
import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from attacks import chain
from onnx import helper, numpy_helper
from two_layers import SIZE, V, W, contents, embedded, halve, loads_halved, two_layers

from onnxprune.errors import OutputError
from onnxprune.model import Model

# ------------------------------------------------------------------ edited


def test_embedded_stays_embedded(tmp_path: Path) -> None:
    source = embedded(tmp_path / "in")
    before = contents(tmp_path)
    digest = halve(Model.load(source)).save(tmp_path / "out.onnx")
    assert list(contents(tmp_path)) == ["in/model.onnx", "out.onnx"]
    assert digest == hashlib.sha256((tmp_path / "out.onnx").read_bytes()).hexdigest()
    assert contents(tmp_path / "in") == {"model.onnx": before["in/model.onnx"]}


def test_external_goes_to_a_data_file_of_its_own(tmp_path: Path) -> None:
    source = two_layers(tmp_path / "in")
    before = contents(tmp_path)
    halve(Model.load(source)).save(tmp_path / "out.onnx")
    after = contents(tmp_path)
    assert list(after) == ["in/model.onnx", "in/model.onnx.data", "out.onnx", "out.onnx.data"]
    assert after | before == after
    assert after["out.onnx.data"] == W[:, :16].tobytes().ljust(SIZE // 2, b"\0") + V[:16].tobytes()
    loads_halved(tmp_path / "out.onnx")


def test_the_same_bytes_again(tmp_path: Path) -> None:
    source = two_layers(tmp_path / "in")
    results = []
    for run in ("one", "two"):
        (tmp_path / run).mkdir()
        digests = {
            halve(Model.load(source)).save(tmp_path / run / "out.onnx") for _ in range(2)
        }  # over itself too
        results.append((digests, contents(tmp_path / run)))
    assert results[0] == results[1]
    assert len(results[0][0]) == 1


def test_large_tensors_start_on_a_page(tmp_path: Path) -> None:
    weights = [
        numpy_helper.from_array(np.full(n, n % 256, np.uint8), f"w{n}") for n in (2000, 5000, 130, 9000)
    ]
    model = Model.load(chain([helper.make_node("Relu", ["x"], ["y"])], weights))
    model.save(tmp_path / "m.onnx", external_threshold=1)
    saved = onnx.load(tmp_path / "m.onnx", load_external_data=False).graph.initializer
    places = [{e.key: e.value for e in tensor.external_data} for tensor in saved]
    assert [int(p["offset"]) for p in places] == [0, 4096, 9152, 12288]
    assert onnx.load(tmp_path / "m.onnx").graph.initializer[3].raw_data == bytes([9000 % 256]) * 9000


def test_threshold(tmp_path: Path) -> None:
    weights = [numpy_helper.from_array(np.full(n, 7, np.uint8), f"w{n}") for n in (10, 2000, 5000)]
    model = Model.load(chain([helper.make_node("Relu", ["x"], ["y"])], weights))
    model.save(tmp_path / "m.onnx", external_threshold=2000)
    saved = onnx.load(tmp_path / "m.onnx", load_external_data=False).graph.initializer
    assert [tensor.data_location for tensor in saved] == [0, 1, 1]
    assert [len(Model.load(tmp_path / "m.onnx").weight(t.name)) for t in saved] == [10, 2000, 5000]


def test_too_large_for_protobuf_goes_to_external_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onnxprune.files.output.MOST_EMBEDDED", 4000)
    halve(Model.load(chain())).save(tmp_path / "small.onnx")
    model = Model.load(chain())
    model.put("w", V)
    model.save(tmp_path / "large.onnx")
    assert sorted(contents(tmp_path)) == ["large.onnx", "large.onnx.data", "small.onnx"]
    assert np.array_equal(Model.load(tmp_path / "large.onnx").weight("w"), V)


def test_shared_data_stays_shared(tmp_path: Path) -> None:
    path = two_layers(tmp_path)
    proto = onnx.load(path, load_external_data=False)
    proto.graph.initializer[1].external_data[1].value = "0"  # now both are W
    onnx.save(proto, path)
    model = Model.load(path)
    model.proto.doc_string = "edited"
    model.save(tmp_path / "out.onnx")
    assert (tmp_path / "out.onnx.data").read_bytes() == W.tobytes()
    assert np.array_equal(Model.load(tmp_path / "out.onnx").weight("v"), W)


# ------------------------------------------------------------------ unedited


def test_unedited_in_another_folder_is_a_copy(tmp_path: Path) -> None:
    source = two_layers(tmp_path / "in", "sub/weights.bin")
    (tmp_path / "out").mkdir()
    Model.load(source).save(tmp_path / "out" / "model.onnx")
    assert contents(tmp_path / "out") == contents(tmp_path / "in")
    Model.load(source).save(tmp_path / "out" / "model.onnx")  # again, over it
    assert contents(tmp_path / "out") == contents(tmp_path / "in")


def test_unedited_in_the_same_folder_shares_the_data(tmp_path: Path) -> None:
    source = two_layers(tmp_path)
    Model.load(source).save(tmp_path / "out.onnx")
    assert sorted(contents(tmp_path)) == ["model.onnx", "model.onnx.data", "out.onnx"]
    assert (tmp_path / "out.onnx").read_bytes() == source.read_bytes()


def test_another_models_data_is_not_overwritten(tmp_path: Path) -> None:
    source = two_layers(tmp_path / "in", "weights.bin")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "weights.bin").write_bytes(b"of another model")
    Model.load(source).save(tmp_path / "out" / "model.onnx")
    after = contents(tmp_path / "out")
    assert after["weights.bin"] == b"of another model"
    assert list(after) == ["model.onnx", "model.onnx.data", "weights.bin"]
    assert np.array_equal(Model.load(tmp_path / "out" / "model.onnx").weight("v"), V)


# ------------------------------------------------------------------ the input is safe


@pytest.mark.parametrize("alias", ["model.onnx", "link.onnx", "hard.onnx", "../in/model.onnx"])
def test_the_input_is_not_overwritten(tmp_path: Path, alias: str) -> None:
    source = embedded(tmp_path / "in")
    (tmp_path / "in" / "link.onnx").symlink_to("model.onnx")
    os.link(source, tmp_path / "in" / "hard.onnx")
    before = contents(tmp_path)
    target = tmp_path / "in" / alias
    says = f"The output '{target}' is the input itself; give another name, or --in-place to replace it."
    with pytest.raises(OutputError, match=re.escape(says)):
        halve(Model.load(source)).save(target)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("in_place", [False, True])
def test_the_inputs_data_is_not_overwritten_by_the_model(tmp_path: Path, in_place: bool) -> None:
    source = two_layers(tmp_path)
    before = contents(tmp_path)
    says = "is the input's external data 'model.onnx.data'; give another name."
    with pytest.raises(OutputError, match=re.escape(says)):
        halve(Model.load(source)).save(tmp_path / "model.onnx.data", in_place=in_place)
    assert contents(tmp_path) == before


def test_the_inputs_data_is_not_overwritten_by_data(tmp_path: Path) -> None:
    source = two_layers(tmp_path, "out.onnx.data")
    before = contents(tmp_path)
    halve(Model.load(source)).save(tmp_path / "out.onnx")
    after = contents(tmp_path)
    assert after | before == after
    assert sorted(after) == ["model.onnx", "out.onnx", "out.onnx.1.data", "out.onnx.data"]
    loads_halved(tmp_path / "out.onnx")


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("folder", r"'.*folder' is a folder; give the name of a file\.$"),
        ("model.onnx/out.onnx", r"is to be below '.*model\.onnx', which is no folder; give another name\.$"),
        ("x" * 300, r"can't be written: File name too long; nothing was left behind\.$"),
    ],
)
def test_where_nothing_can_be_written(tmp_path: Path, target: str, says: str) -> None:
    (tmp_path / "folder").mkdir()
    source = embedded(tmp_path)
    before = contents(tmp_path)
    with pytest.raises(OutputError, match=says) as caught:
        halve(Model.load(source)).save(tmp_path / target)
    assert caught.value.exit_code == 7
    assert contents(tmp_path) == before


# ------------------------------------------------------------------ in place


def test_in_place(tmp_path: Path) -> None:
    source = embedded(tmp_path)
    model = halve(Model.load(source))
    model.save(source, in_place=True)
    assert list(contents(tmp_path)) == ["model.onnx"]
    assert np.array_equal(Model.load(source).weight("w"), model.weight("w"))


def test_in_place_and_unedited_writes_nothing(tmp_path: Path) -> None:
    source = two_layers(tmp_path)
    before, time = contents(tmp_path), source.stat().st_mtime_ns
    digest = Model.load(source).save(source, in_place=True)
    assert digest == hashlib.sha256(before["model.onnx"]).hexdigest()
    assert contents(tmp_path) == before
    assert source.stat().st_mtime_ns == time


def test_in_place_replaces_data_named_after_the_model(tmp_path: Path) -> None:
    source = two_layers(tmp_path)
    halve(Model.load(source)).save(source, in_place=True)
    assert sorted(contents(tmp_path)) == ["model.onnx", "model.onnx.data"]
    loads_halved(source)
    model = Model.load(source)
    model.take("v", {1: range(32)[::-1]})
    model.save(source, in_place=True)
    assert sorted(contents(tmp_path)) == ["model.onnx", "model.onnx.data"]
    assert np.array_equal(Model.load(source).weight("v"), V[:16, ::-1])


def test_in_place_keeps_data_that_may_be_shared(tmp_path: Path) -> None:
    source = two_layers(tmp_path, "weights.bin")
    data = (tmp_path / "weights.bin").read_bytes()
    halve(Model.load(source)).save(source, in_place=True)
    assert sorted(contents(tmp_path)) == ["model.onnx", "model.onnx.data", "weights.bin"]
    assert (tmp_path / "weights.bin").read_bytes() == data
    loads_halved(source)


def test_in_place_keeps_data_that_a_hard_link_of_the_model_needs(tmp_path: Path) -> None:
    source = two_layers(tmp_path)
    os.link(source, tmp_path / "other.onnx")
    halve(Model.load(source)).save(source, in_place=True)
    loads_halved(source)
    assert np.array_equal(Model.load(tmp_path / "other.onnx").weight("v"), V)


def test_in_place_through_a_link_the_file_is_replaced_and_the_link_stays(tmp_path: Path) -> None:
    source = two_layers(tmp_path, "link.onnx.data")
    (tmp_path / "link.onnx").symlink_to("model.onnx")
    halve(Model.load(source)).save(tmp_path / "link.onnx", in_place=True)
    assert (tmp_path / "link.onnx").is_symlink()
    loads_halved(tmp_path / "link.onnx")
    loads_halved(source)
    assert "link.onnx.data" in contents(tmp_path)  # it isn't named after the model


# ------------------------------------------------------------------ interrupted


def test_killed_while_a_weight_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = two_layers(tmp_path)
    model, before = halve(Model.load(source)), contents(tmp_path)
    done = []

    def broken(array: np.ndarray, cuts: object) -> np.ndarray:
        if done:
            raise MemoryError
        done.append(1)
        return array

    monkeypatch.setattr("onnxprune.files.payload.take", broken)
    with pytest.raises(MemoryError):
        model.save(tmp_path / "out.onnx")
    assert contents(tmp_path) == before


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = embedded(tmp_path)
    model, before = halve(Model.load(source)), contents(tmp_path)

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(
        OutputError, match=r"can't be written: No space left on device; nothing was left behind\.$"
    ):
        model.save(tmp_path / "out.onnx")
    assert contents(tmp_path) == before


def test_the_output_has_the_usual_mode(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    halve(Model.load(chain())).save(tmp_path / "out.onnx")
    assert (tmp_path / "out.onnx").stat().st_mode == (tmp_path / "plain").stat().st_mode
