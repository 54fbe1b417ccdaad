"""``--keep-tokens``: the vocabulary is cut first, and all else works on what is left."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from vocabulary_models import WORDS, Net, language

import onnxprune
from onnxprune import granularity
from onnxprune.cli import main
from onnxprune.errors import (
    NothingToPrune,
    OnnxPruneError,
    OutputError,
    PlanError,
    VerificationError,
)
from onnxprune.graph.vocabulary import Vocabulary
from onnxprune.model import Model
from onnxprune.runtime.session import open_session

KEEP = [0, 3, 5, 7, 11, 20, 39]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    onnx.save(language(head="own"), tmp_path / "in.onnx")
    return tmp_path / "in.onnx"


def outputs(path: Path, ids: np.ndarray) -> dict[str, np.ndarray]:
    return open_session(Model.load(path)).run({"ids": ids})


def numbers(path: Path) -> np.ndarray:
    """The new number of each old one, -1 for those that are gone."""
    table = np.full(WORDS, -1, np.int64)
    for old, new in json.loads(path.read_text()).items():
        table[int(old)] = new
    return table


def test_ids_count_anew(source: Path) -> None:
    out = source.with_name("out.onnx")
    result = onnxprune.prune(source, out, keep_tokens=KEEP)
    new = numbers(source.with_name("ids.json"))
    assert np.flatnonzero(new >= 0).tolist() == KEEP
    for size in ((1, 1), (2, 6), (3, 16)):
        ids = np.random.default_rng(0).choice(KEEP, size)
        before, after = outputs(source, ids)["logits"], outputs(out, new[ids])["logits"]
        np.testing.assert_array_equal(before[..., KEEP], after)
    report = result.report.to_json()
    assert report["interface"] == [
        {"name": "logits", "kind": "output", "before": ["N", "T", WORDS], "after": ["N", "T", len(KEEP)]}
    ]
    told = report["vocabulary"]
    assert told["law1"]["max_relative_error"] == 0
    assert {k: told[k] for k in ("size", "kept", "outputs", "remap", "unk")} == {
        "size": WORDS, "kept": len(KEEP), "outputs": ["logits"], "remap": False, "unk": None
    }  # fmt: skip
    assert set(told["weights"]) == {"words", "head", "bias"} or set(told["weights"]) == {"words"}
    assert {(c["tensor"], c["axis"]) for c in report["cuts"]} == {("words", 0), ("head", 1), ("bias", 0)}
    assert report["parameters"]["before"] - report["parameters"]["after"] == (WORDS - len(KEEP)) * 17
    assert any("7 of 40 ids of words stay; they count anew" in line for line in result.report.lines())


def test_ids_stay_as_they_were(source: Path) -> None:
    out = source.with_name("out.onnx")
    onnxprune.prune(source, out, keep_tokens=KEEP, remap=True, unk=5)
    ids = np.resize(np.arange(WORDS), (4, 10))
    clean = np.where(np.isin(ids, KEEP), ids, 5)
    before, after = outputs(source, clean)["logits"], outputs(out, ids)["logits"]
    np.testing.assert_array_equal(before[..., KEEP], after)
    assert np.flatnonzero(numbers(source.with_name("ids.json")) >= 0).tolist() == KEEP  # for the logits


def test_no_file_of_ids_where_nothing_counts_anew(tmp_path: Path) -> None:
    onnx.save(language(head="none"), tmp_path / "in.onnx")
    onnxprune.prune(tmp_path / "in.onnx", tmp_path / "out.onnx", keep_tokens=KEEP, remap=True)
    assert not (tmp_path / "ids.json").exists()


@pytest.mark.parametrize("remap", [False, True])
def test_a_plan_says_what_stays(source: Path, remap: bool) -> None:
    out, again, plan = (source.with_name(n) for n in ("out.onnx", "again.onnx", "plan.json"))
    result = onnxprune.prune(source, out, keep_tokens=KEEP, remap=remap, ratio=0.5, align=None)
    result.plan.save(plan)
    made = onnxprune.plan(source, keep_tokens=KEEP, remap=remap, ratio=0.5, align=None)
    assert made.dumps() == plan.read_text()
    onnxprune.apply(source, plan, again)
    assert out.read_bytes() == again.read_bytes()
    given = [{"ids": np.resize(KEEP, (1, 9))}]
    assert onnxprune.verify(source, out, plan, inputs=given)["max_relative_error"] < 1e-5
    other = source.parent / "other" / "other.onnx"  # whose ids are others
    onnxprune.prune(source, other, keep_tokens=[1, *KEEP[1:]], remap=True, ratio=0.5, align=None)
    with pytest.raises(VerificationError):
        onnxprune.verify(source, other, plan)
    values = json.loads(plan.read_text())
    for change, what in (
        ({"size": 41}, "there are 41 ids"),
        ({"unk": 1}, "doesn't hold"),
        ({"keep": [99]}, "beyond"),
    ):
        values["vocabulary"] = json.loads(plan.read_text())["vocabulary"] | change
        plan.with_name("wrong.json").write_text(json.dumps(values))
        with pytest.raises(PlanError, match=what):
            onnxprune.apply(source, plan.with_name("wrong.json"), again)


@pytest.mark.parametrize("remap", [False, True])
def test_widths_are_cut_and_fitted_on_samples_of_the_old_ids(source: Path, remap: bool) -> None:
    samples = {"ids": np.random.default_rng(0).choice(KEEP, (64, 6))}
    out = source.with_name("out.onnx")
    result = onnxprune.prune(
        source,
        out,
        keep_tokens=KEEP,
        remap=remap,
        target=("params=0.35",),
        calib=samples,
        recover="lstsq",
        align=None,
    )
    report = result.report.to_json()
    assert report["targets"][0]["holds"]
    assert report["targets"][0]["asked"] == pytest.approx(0.35 * report["parameters"]["before"])
    # a share of what was read: all widths would be tenths of what they are if it were one of what is left of it
    assert report["parameters"]["after"] > 0.3 * report["parameters"]["before"]
    assert report["calibration"]["original"] is not None
    cut = [g for g in report["groups"] if g["removed"]]
    assert {g["kind"] for g in cut} == {"vocabulary", "channels"}


def test_a_target_that_the_vocabulary_meets_alone(source: Path) -> None:
    result = onnxprune.prune(source, None, keep_tokens=KEEP, target=("params=0.9",), align=None)
    assert [g["kind"] for g in result.report.groups if g["removed"]] == ["vocabulary"] * 2
    assert result.report.targets[0]["holds"]


def test_the_most_frequent(source: Path) -> None:
    ids = np.random.default_rng(0).choice(KEEP, (64, 6))
    ids[0, 0] = 30
    result = onnxprune.prune(
        source,
        source.with_name("out.onnx"),
        keep_tokens=len(KEEP),
        target=("params=0.9",),
        calib={"ids": ids},
    )
    assert result.plan.vocabulary is not None
    assert result.plan.vocabulary.keep == tuple(KEEP)


def test_several_targets_of_one_vocabulary(source: Path) -> None:
    targets = ("params=0.4,0.35",)
    results = onnxprune.api.family(
        source, source.with_name("out.onnx"), keep_tokens=KEEP, target=targets, align=None
    )
    for result in results.values():
        assert result.plan.vocabulary is not None
        assert result.report.targets[0]["holds"]


@pytest.mark.parametrize(
    ("words", "code", "what"),
    [
        (["--keep-tokens", "beyond"], 2, "The id 40 is out of range: 'words' has 40 rows, from 0 to 39."),
        (["--keep-tokens", "ids", "--remap", "--unk", "77"], 2, "The id 77 is out of range"),
        (["--keep-tokens", "none"], 2, "can't be read"),
        (["--keep-tokens", "all"], 4, "All 40 ids of 'words' would stay"),
        (["--keep-tokens", "12"], 2, "counts ids in samples"),
        (["--keep-tokens", "0"], 2, "counts ids in samples"),
        (["--keep-tokens", "ids", "--words", "ids"], 2, "--words goes with a tokenizer.json"),
        (["--ratio", "0.5", "--remap"], 2, "--remap is for --keep-tokens"),
        (["--ratio", "0.5", "--unk", "1"], 2, "--unk is for --keep-tokens"),
        (["--ratio", "0.5", "--words", "ids"], 2, "--words is for --keep-tokens"),
        (["--keep-tokens", "ids", "--unk", "3"], 2, "--unk is for --remap"),
    ],
)
def test_bad_use_gets_one_sentence(
    source: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str], code: int,
    what: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(source.parent)
    for name, ids in {"beyond": [1, 40], "all": range(40), "ids": KEEP}.items():
        Path(name).write_text("\n".join(map(str, ids)))
    assert main(["prune", "in.onnx", "out.onnx", *words]) == code
    said = capsys.readouterr().err.strip()
    assert what in said
    assert len(said.splitlines()) == 1
    assert not Path("out.onnx").exists()
    assert not Path("ids.json").exists()


def test_models_that_have_none_or_tie_it(tmp_path: Path) -> None:
    net = Net(TensorProto.FLOAT)
    net.op("MatMul", ["ids", net.weight("w", 6, 4)], "out")
    bare = net.model({"out": (TensorProto.FLOAT, ["N", 4])})
    bare.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 6
    for model, what in (
        (bare, "has no vocabulary"),
        (language(head="softmax"), "'words' of 40 ids can't be cut: normalised over"),
        (language(pad=True), "Equal 'is_pad_node' reads the numbers of 'ids', too; with --remap"),
    ):
        with pytest.raises(NothingToPrune, match=what):
            onnxprune.prune(model, tmp_path / "out.onnx", keep_tokens=KEEP)
    onnxprune.prune(language(pad=True), tmp_path / "out.onnx", keep_tokens=KEEP, remap=True)


def test_ids_of_another_model_are_not_replaced(source: Path) -> None:
    source.with_name("ids.json").write_text("{}")
    with pytest.raises(OutputError, match="is of another model"):
        onnxprune.prune(source, source.with_name("out.onnx"), keep_tokens=KEEP)
    assert source.with_name("ids.json").read_text() == "{}"


def test_in_place_the_ids_of_the_input_are_not_lost(source: Path) -> None:
    """They lead from the words to what the input takes; those of the second cut alone lead nowhere."""
    onnxprune.prune(source, source, keep_tokens=KEEP, in_place=True)
    first, model = source.with_name("ids.json").read_text(), source.read_bytes()
    with pytest.raises(OutputError, match="says how the ids of the input count"):
        onnxprune.prune(source, source, keep_tokens=[0, 2, 3], in_place=True)
    assert source.with_name("ids.json").read_text() == first
    assert source.read_bytes() == model


@pytest.mark.parametrize("remap", [False, True])
def test_a_result_has_another_name_than_its_ids(source: Path, remap: bool) -> None:
    out = source.with_name("ids.json")
    end = r"\." if remap else r", or give --remap\."  # logits count anew in any case
    with pytest.raises(OutputError, match=rf"is where ids are told of; choose another name for OUT{end}"):
        onnxprune.prune(source, out, keep_tokens=KEEP, remap=remap)
    assert not out.exists()


def test_a_cut_that_is_wrong_is_not_written(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places = Vocabulary.places

    def shifted(self: Vocabulary, keep: Any, unk: int) -> Any:
        return np.roll(places(self, keep, unk), 1)

    monkeypatch.setattr(Vocabulary, "places", shifted)
    with pytest.raises(VerificationError, match="vocabulary isn't exact"):
        onnxprune.prune(source, source.with_name("out.onnx"), keep_tokens=KEEP)
    assert not source.with_name("out.onnx").exists()


def test_numbers_that_are_wrong_are_seen(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from onnxprune.pruning import vocabulary

    def anew(run: Any, given: Any) -> Any:
        return {"ids": np.zeros_like(given["ids"])}

    monkeypatch.setattr(vocabulary, "_anew", anew)
    with pytest.raises(OnnxPruneError, match="ids that count anew the result differs"):
        onnxprune.prune(source, source.with_name("out.onnx"), keep_tokens=KEEP)


def test_a_kind_is_found() -> None:
    assert granularity.load("vocabulary").groups is not None
