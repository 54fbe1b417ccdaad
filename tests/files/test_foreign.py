"""Models in other forms than paths and protos: open files, folders, models of onnx-ir."""

import io
from pathlib import Path
from typing import Any

import onnx
import onnx_ir
import pytest
from small_models import chain

import onnxprune
from onnxprune.errors import ModelError
from onnxprune.files.foreign import models_in
from onnxprune.model import Model


def external(folder: Path) -> Path:
    """A repository as Triton has it: a folder that is called like a model, with its data beside it."""
    place = folder / "model.onnx"
    place.mkdir(parents=True)
    onnx.save(
        chain(), place / "model.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0
    )
    return place


def test_an_open_file_and_a_model_of_onnx_ir(tmp_path: Path) -> None:
    path = external(tmp_path) / "model.onnx"
    right = onnxprune.prune(path, ratio=0.5, align=None).report.after
    sources: list[Any] = [
        io.BytesIO(chain().SerializeToString()),
        onnx_ir.from_proto(chain()),
        onnx_ir.load(path),
    ]
    for source in sources:
        after = onnxprune.prune(source, ratio=0.5, align=None).report.after
        assert (after.parameters, after.macs) == (right.parameters, right.macs)


def test_a_folder_stands_for_the_only_model_in_it(tmp_path: Path) -> None:
    place = external(tmp_path / "1")
    for folder in (place, tmp_path / "1"):
        assert Model.load(folder).path == place / "model.onnx"
    (place / "config.pbtxt").write_text("name: 'model'")
    result = onnxprune.prune(tmp_path / "1", tmp_path / "out.onnx", ratio=0.5, align=None)
    assert result.report.files == {"input": "model.onnx", "output": "out.onnx"}
    assert (place / "config.pbtxt").read_text() == "name: 'model'"


def test_folders_of_none_or_several_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="in it: there is none"):
        Model.load(tmp_path)
    place = external(tmp_path)
    onnx.save(chain(), place / "decoder.onnx")
    with pytest.raises(ModelError, match=r"there are 'decoder\.onnx', 'model\.onnx'\."):
        Model.load(place)


def test_models_are_looked_for_at_any_depth(tmp_path: Path) -> None:
    for name in ("a.onnx", "deep/b.ONNX", "net/1/model.onnx/c.onnx", ".cache/d.onnx", "deep/.e.onnx"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        onnx.save(chain(), tmp_path / name, format="protobuf")
    (tmp_path / "gone.onnx").symlink_to("nowhere")
    names = [p.relative_to(tmp_path).as_posix() for p in models_in(tmp_path)]
    assert names == ["a.onnx", "deep/b.ONNX", "gone.onnx", "net/1/model.onnx/c.onnx"]


@pytest.mark.parametrize("file", [io.StringIO("text"), io.BytesIO(b"none")])
def test_files_that_hold_no_model_are_refused(file: Any) -> None:
    with pytest.raises(ModelError):
        Model.load(file)
    closed = io.BytesIO(b"")
    closed.close()
    with pytest.raises(ModelError, match="can't be read"):
        Model.load(closed)
