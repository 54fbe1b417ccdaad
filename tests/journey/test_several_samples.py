"""Samples for a folder with several models: each gets its own, and files of one network stay one after a fit."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from decoder_files import FIRST, NEXT, gap, renamed, weights
from deployed_models import WORDS, decoder, detector, encoder
from onnx import numpy_helper
from onnxruntime import InferenceSession

from onnxprune import api
from onnxprune.calibration.dealt import dealt
from onnxprune.cli import main
from onnxprune.errors import CalibrationError, FloorMissed, VerificationError
from onnxprune.pruning import folder

IDS = np.random.default_rng(5).integers(0, WORDS, (40, 6))
PICTURES = np.random.default_rng(6).standard_normal((24, 3, 32, 32)).astype(np.float32)


@pytest.fixture
def ids(tmp_path: Path) -> Path:
    path = tmp_path / "ids.npz"
    np.savez(path, input_ids=IDS)
    return path


@pytest.mark.parametrize("recover", ["lstsq", "blocks"])
@pytest.mark.parametrize("opened", [(), ("past|present",)])
def test_a_token_is_the_same_by_both_decoders_after_a_fit(
    causal: Path, tmp_path: Path, ids: Path, recover: str, opened: tuple[str, ...]
) -> None:
    given = {"ratio": 0.5, "align": None, "open_io": opened, "recover": recover}
    results = api.prune_folder(causal, tmp_path / "out", calib={"decoder_model": ids}, **given)  # type: ignore[arg-type]
    assert gap(tmp_path / "out") < 1e-5
    report = results[FIRST].report.to_json()
    assert report["calibration"]["source"] == str(ids)
    changed = [line for line in report["calibration"]["layers"] if line["variant"] != "kept"]
    assert {line["layer"] for line in changed} >= (
        {"0.down.y_node"} if not opened else {"0.out.y_node", "0.down.y_node"}
    )
    follower = results[NEXT].report.to_json()
    assert f"layers have the weights that were fitted in {FIRST}" in follower["notes"]
    assert not [note for note in follower["notes"] if "no samples" in note]
    assert follower["law1"]["max_relative_error"] < 1e-5
    one, two = (sorted(w.tobytes() for w in weights(tmp_path / "out" / n).values()) for n in (FIRST, NEXT))
    assert one == two


def test_the_fit_is_that_of_the_file_alone(causal: Path, tmp_path: Path, ids: Path) -> None:
    api.prune_folder(causal, tmp_path / "out", ratio=0.5, align=None, calib=str(ids), recover="lstsq")
    (causal / NEXT).unlink()
    api.prune_folder(
        causal, tmp_path / "alone", ratio=0.5, align=None, calib=str(ids), recover="lstsq",
        center_norms=False, rotate=False,
    )  # fmt: skip
    assert (tmp_path / "out" / FIRST).read_bytes() == (tmp_path / "alone" / FIRST).read_bytes()


def test_files_keep_the_basis_that_they_have_in_common(tmp_path: Path) -> None:
    """Alone each would have its heads turned; two files of one encoder give the same all the same."""
    (tmp_path / "in").mkdir()
    onnx.save(encoder(), tmp_path / "in" / "a.onnx")
    onnx.save(renamed(encoder()), tmp_path / "in" / "b.onnx")
    feeds = {"input_ids": IDS, "attention_mask": np.ones_like(IDS)}
    given = {"ratio": 0.5, "align": None, "recover": "lstsq"}
    results = api.prune_folder(tmp_path / "in", tmp_path / "out", calib={"a": feeds}, **given)  # type: ignore[arg-type]
    one, two = (
        InferenceSession(str(tmp_path / "out" / name)).run(None, feeds)[0] for name in ("a.onnx", "b.onnx")
    )
    assert np.abs(one - two).max() < 1e-5 * np.abs(one).max()
    assert not results["a.onnx"].report.to_json()["calibration"]["rotated"]["groups"]


def without_bias(model: onnx.ModelProto) -> onnx.ModelProto:
    """Let the biases of all layers but the last be nothing, so that their bytes tell nothing."""
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.ndim == 1 and array.dtype == np.float32 and "scale" not in tensor.name:
            tensor.CopyFrom(numpy_helper.from_array(np.zeros_like(array), tensor.name))
    return model


def test_biases_that_were_alike_follow_their_layers(tmp_path: Path, ids: Path) -> None:
    (tmp_path / "in").mkdir()
    onnx.save(without_bias(decoder(layers=1, first=True)), tmp_path / "in" / FIRST)
    onnx.save(renamed(without_bias(decoder(layers=1))), tmp_path / "in" / NEXT)
    api.prune_folder(
        tmp_path / "in", tmp_path / "out", ratio=0.5, align=None, calib=str(ids), recover="lstsq"
    )
    assert gap(tmp_path / "out") < 1e-5
    assert np.any(weights(tmp_path / "out" / FIRST)["0.down.bias"])
    assert not np.any(weights(tmp_path / "out" / FIRST)["0.q.bias"])


def test_a_layer_that_another_file_has_otherwise_is_refused(tmp_path: Path, ids: Path) -> None:
    """There the weight is multiplied by an input before it is used, so no fit may change it."""
    (causal := tmp_path / "in").mkdir()
    onnx.save(decoder(layers=3, first=True), causal / FIRST)
    model = renamed(decoder(layers=3))
    (at,) = [n for n, node in enumerate(model.graph.node) if node.output[0] == "0.down.y"]
    down = model.graph.node[at]
    model.graph.input.append(onnx.helper.make_tensor_value_info("by", onnx.TensorProto.FLOAT, []))
    model.graph.node.insert(at, onnx.helper.make_node("Mul", [down.input[1], "by"], ["more"], "more"))
    model.graph.node[at + 1].input[1] = "more"
    onnx.save(model, causal / NEXT)
    words = r"was fitted in decoder_model\.onnx; here the layer with this weight"
    with pytest.raises(VerificationError, match=words):
        api.prune_folder(
            causal,
            tmp_path / "out",
            ratio=0.5,
            align=None,
            calib=str(ids),
            recover="lstsq",
            min_agreement=None,
        )
    assert not (tmp_path / "out").exists()


@pytest.fixture
def two(tmp_path: Path) -> Path:
    place = tmp_path / "two"
    place.mkdir()
    onnx.save(detector(), place / "eye.onnx")
    onnx.save(decoder(layers=1, first=True), place / "mouth.onnx")
    return place


def test_each_finds_its_own_inputs_in_one_file(
    two: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ONNXPRUNE_CACHE", str(tmp_path / "one"))
    np.savez(tmp_path / "all.npz", input_ids=IDS, image=PICTURES)
    words = ["prune", str(two), str(tmp_path / "out"), "--ratio", "0.5", "--recover", "lstsq", "-q"]
    assert main([*words, "--calib", str(tmp_path / "all.npz")]) == 0
    np.savez(tmp_path / "a.npz", image=PICTURES)
    np.savez(tmp_path / "b.npz", input_ids=IDS)
    words[2] = str(tmp_path / "again")
    monkeypatch.setenv("ONNXPRUNE_CACHE", str(tmp_path / "other"))
    texts = [f"eye={tmp_path / 'a.npz'}", f"mouth={tmp_path / 'b.npz'}"]
    assert main([*words, "--calib", texts[0], "--calib", texts[1]]) == 0
    for name in ("eye.onnx", "mouth.onnx"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_a_floor_that_no_cut_holds_is_no_reason_to_copy(
    two: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missed(*given: object) -> None:
        raise FloorMissed("No cut that was tried holds what was asked.")

    monkeypatch.setattr(folder, "prune", missed)
    with pytest.raises(FloorMissed):
        api.prune_folder(two, tmp_path / "out", ratio=0.5)
    assert not (tmp_path / "out").exists()


def test_a_model_without_samples_is_cut_by_its_weights(two: Path, tmp_path: Path, ids: Path) -> None:
    (tmp_path / "samples").mkdir()
    ids.rename(tmp_path / "samples" / "mouth.npz")
    results = api.prune_folder(
        two, tmp_path / "out", ratio=0.5, calib=tmp_path / "samples", recover="lstsq", criterion="obs"
    )
    alone = api.prune_folder(two, tmp_path / "plain", ratio=0.5)
    eye = "eye.onnx"
    assert (tmp_path / "out" / eye).read_bytes() == (tmp_path / "plain" / eye).read_bytes()
    assert results["mouth.onnx"].report.to_json()["calibration"]["samples"] > 5
    assert results[eye].report.calibration is None
    assert [n for n in results[eye].report.notes if "no samples" in n] != []
    assert [n for n in alone[eye].report.notes if "no samples" in n] == []


GRAPHS = {
    "a/model.onnx": decoder(layers=1, first=True).graph,
    "b/model.onnx": detector().graph,
    "last.onnx": decoder(layers=1).graph,
}


@pytest.mark.parametrize("name", ["a", "a/model", "a/model.onnx"])
def test_a_model_goes_by_any_name_that_no_other_has(name: str) -> None:
    assert dealt({name: "x.npz"}, GRAPHS) == {"a/model.onnx": "x.npz"}
    assert dealt(f"{name}=x.npz", GRAPHS) == {"a/model.onnx": "x.npz"}


def test_files_of_a_folder_are_known_by_name(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "model").mkdir()
    (tmp_path / "last.npz").touch()
    assert dealt(tmp_path, GRAPHS) == {
        "a/model.onnx": str(tmp_path / "a" / "model"),
        "last.onnx": str(tmp_path / "last.npz"),
    }


def test_a_model_gets_arrays_of_which_none_is_missing() -> None:
    """The last one takes the same words, and a cache that nobody gives."""
    assert list(dealt({"input_ids": IDS}, GRAPHS)) == ["a/model.onnx"]


def test_synthetic_ones_are_made_for_each() -> None:
    assert dealt("synthetic", GRAPHS) == dict.fromkeys(GRAPHS, "synthetic")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (
            {"a": "x", "lost": "y"},
            "names 'lost', but the folder's models are a/model.onnx, b/model.onnx, last.onnx",
        ),
        (["a=x", "lasst=y"], "Did you mean 'last'?"),
        ("lasst=y.npz", "Did you mean 'last'?"),
        (["a=x", "model=y"], "names 'model', but the folder's models are"),
        (["a=x", "y.npz"], "each MODEL=SAMPLES; got 'y.npz'"),
        (["a=x", "a=y"], "there twice"),
        ({"tokens": IDS}, "The samples have tokens, which are the inputs of no model in the folder"),
        (IDS, "Arrays without names"),
        ("nowhere.npz", "nowhere.npz"),
    ],
)
def test_what_fits_no_model_is_refused(given: object, words: str) -> None:
    with pytest.raises(CalibrationError) as caught:
        dealt(given, GRAPHS)
    assert words in str(caught.value)


def test_samples_with_and_without_a_name_are_refused_together(
    two: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["prune", str(two), str(tmp_path / "out"), "--ratio", "0.5", "--calib", "eye=a.npz"]
    assert main([*words, "--calib", "b.npz"]) == 2
    assert "MODEL=VALUE each time, or never; got eye=a.npz and b.npz" in capsys.readouterr().err
    words[1] = str(two / "eye.onnx")
    assert main([*words, "--calib", "mouth=b.npz"]) == 8
    assert "is given 2 times, for the models of a folder, and this is one model" in capsys.readouterr().err
