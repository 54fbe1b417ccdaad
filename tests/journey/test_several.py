"""A folder with several models: those that are one network lose the same units, and all still fit each other."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from decoder_files import FIRST, NEXT, OTHER, gap, renamed, weights
from deployed_models import DIM, HEADS, decoder, detector, encoder
from onnx import numpy_helper
from onnxruntime import InferenceSession

import onnxprune
from onnxprune import api
from onnxprune.cli import main
from onnxprune.errors import UsageError
from onnxprune.options.pruning import Options
from onnxprune.pruning.folder import _File
from onnxprune.pruning.journey import open_run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An encoder of its own weights, a decoder as two files, and what lies beside them."""
    place = tmp_path / "in"
    place.mkdir()
    onnx.save(decoder(first=True), place / FIRST)
    onnx.save(renamed(decoder()), place / NEXT)
    onnx.save(encoder(), place / OTHER)
    (place / "config.json").write_text('{"d_model": 64}')
    return place


@pytest.mark.parametrize("more", [[], ["--open-io", "past|present"]])
def test_a_token_is_the_same_by_both_decoders(causal: Path, tmp_path: Path, more: list[str]) -> None:
    assert gap(causal) < 1e-5
    assert (
        main(["prune", str(causal), str(tmp_path / "out"), "--ratio", "0.5", "--align", "none", "-q", *more])
        == 0
    )
    assert gap(tmp_path / "out") < 1e-5
    shape = InferenceSession(str(tmp_path / "out" / NEXT)).get_inputs()[1].shape
    assert shape[1] * shape[3] == HEADS * DIM // (2 if more else 1)


def test_files_that_would_take_a_mean_off_elsewhere_fit_each_other(causal: Path, tmp_path: Path) -> None:
    """The table of one file has another reader, so it can't be written without its mean there."""
    model = onnx.load(causal / NEXT)
    (look,) = [n for n in model.graph.node if n.op_type == "Gather"]
    model.graph.node.append(onnx.helper.make_node("Gather", list(look.input), ["again"], "again"))
    model.graph.initializer.append(numpy_helper.from_array(np.array([2]), "width"))
    model.graph.node.append(onnx.helper.make_node("ReduceSum", ["again", "width"], ["sum"], "sum"))
    model.graph.output.append(onnx.helper.make_tensor_value_info("sum", onnx.TensorProto.FLOAT, None))
    onnx.save(model, causal / NEXT)
    api.prune_folder(causal, tmp_path / "out", ratio=0.5, align=None)
    assert gap(tmp_path / "out") < 1e-5


def test_cut_one_by_one_decoders_do_not_fit(causal: Path, tmp_path: Path) -> None:
    """The control: other units of the same file give another token."""
    (tmp_path / "out").mkdir()
    for seed, name in enumerate((FIRST, NEXT)):
        onnxprune.prune(
            causal / name,
            tmp_path / "out" / name,
            ratio=0.5,
            align=None,
            criterion="random",
            seed=seed,
            center_norms=False,
        )
    assert gap(tmp_path / "out") > 1e-2


def test_all_files_are_cut_and_the_rest_follows(folder: Path, tmp_path: Path) -> None:
    told: list[str] = []
    results = api.prune_folder(
        folder, tmp_path / "out", ratio=0.5, align=None, each=lambda name, _: told.append(name)
    )
    assert list(results) == told == [FIRST, NEXT, OTHER]
    for name, result in results.items():
        report = result.report.to_json()
        assert report["law1"]["max_relative_error"] < 1e-5
        assert (tmp_path / "out" / name).stat().st_size < 0.9 * (folder / name).stat().st_size
    assert (tmp_path / "out" / "config.json").read_text() == '{"d_model": 64}'
    one, two = (sorted(w.tobytes() for w in weights(tmp_path / "out" / n).values()) for n in (FIRST, NEXT))
    assert one == two
    units = [{g.removed_units for g in results[n].plan.groups if g.removed_units} for n in (FIRST, NEXT)]
    assert units[0] == units[1]


def test_a_group_that_another_file_has_otherwise_stays_whole(folder: Path, tmp_path: Path) -> None:
    """In one file the neurons of a block are an output, and so frozen."""
    model = decoder(first=True)
    model.graph.output.append(onnx.helper.make_tensor_value_info("0.relu", onnx.TensorProto.FLOAT, None))
    onnx.save(model, folder / FIRST)
    results = api.prune_folder(folder, tmp_path / "out", ratio=0.5, align=None)
    for name in (FIRST, NEXT):
        shapes = [tuple(w.shape) for w in weights(tmp_path / "out" / name).values()]
        assert shapes.count((64, 128)) == 1
        assert shapes.count((64, 64)) >= 1
    assert any("kept whole: " in note for note in [*results[FIRST].report.notes, *results[NEXT].report.notes])


def test_models_of_their_own_are_cut_by_themselves(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    onnx.save(detector(), tmp_path / "in" / "a.onnx")
    onnx.save(encoder(), tmp_path / "in" / "b.onnx")
    words = ["prune", str(tmp_path / "in"), str(tmp_path / "out"), "--ratio", "0.5"]
    assert main([*words, "--report", str(tmp_path / "r.json"), "--plan", str(tmp_path / "p.json"), "-q"]) == 0
    for name, make in (("a", detector), ("b", encoder)):
        alone = onnxprune.prune(make(), ratio=0.5)
        assert weights(tmp_path / "out" / f"{name}.onnx").keys() == {
            t.name for t in alone.model.graph.initializer
        }
        assert json.loads((tmp_path / f"r-{name}.json").read_text())["law1"]
        assert (tmp_path / f"p-{name}.json").is_file()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"keep_tokens": "10", "calib": "synthetic"}, "--keep-tokens is for one model, and the folder has 3"),
        ({"open_io": ("nowhere",)}, "'nowhere' matches no input or output of"),
        ({"granularity": "heads"}, "channels go"),
    ],
)
def test_what_is_for_one_model_is_refused(
    folder: Path, tmp_path: Path, options: dict[str, object], words: str
) -> None:
    with pytest.raises(UsageError) as caught:
        api.prune_folder(folder, tmp_path / "out", ratio=0.5, **options)  # type: ignore[arg-type]
    assert words in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_interfaces_of_two_networks_are_not_opened_together(folder: Path, tmp_path: Path) -> None:
    model = detector()
    model.graph.output.append(
        onnx.helper.make_tensor_value_info("fine.relu", onnx.TensorProto.FLOAT, ["N", 32, 8, 8])
    )
    onnx.save(model, folder / OTHER)
    words = ["prune", str(folder), str(tmp_path / "out"), "--ratio", "0.5", "--open-io", "past|present|fine"]
    assert main(words) == 2
    assert not (tmp_path / "out").exists()


def test_a_twin_has_the_same_positions_and_units() -> None:
    file = _File.open("a", open_run(decoder(), Options(ratio=0.5, align=None, open_io=("past|present",))))
    for group in file.groups:
        held = file.held(group)
        assert file.twin(held) == group.name
        (mark, units), *_ = held.items()
        assert file.twin({**held, mark: units[::-1]}) is None
    assert file.twin({("of another file", 0): b""}) == ""
    assert file.twin({}) is None
