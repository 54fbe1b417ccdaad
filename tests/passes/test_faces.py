"""Capabilities as passes: sparsify, permute and rotate in a list, what stays the same, and what they report."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from deployed_models import WORDS, encoder
from expert_models import mixture
from onnx import numpy_helper
from pass_models import CNN, TRANSFORMER, edit, error, outputs
from report.test_page import ATTACK, Page, sound
from small_models import attention, chain

import onnxprune
from onnxprune.cli import main
from onnxprune.errors import UsageError
from onnxprune.journey import passes as passlist
from onnxprune.model import Model
from onnxprune.report.lossless import LosslessReport
from onnxprune.report.record import Record


@pytest.fixture
def digits(tmp_path: Path) -> Path:
    """Return samples for the transformer of the examples."""
    inputs = onnx.load(TRANSFORMER).graph.input[0]
    shape = [d.dim_value or 32 for d in inputs.type.tensor_type.shape.dim]
    x = np.random.default_rng(0).uniform(size=(32, *shape[1:])).astype(np.float32)
    np.savez(tmp_path / "samples.npz", **{inputs.name: x})
    return tmp_path / "samples.npz"


def run(model: onnx.ModelProto | Path, passes: str, **more: object) -> tuple[onnx.ModelProto, list[Record]]:
    """Return the model after passes, and the reports that they gave."""
    reports: list[Record] = []

    def each(text: str, report: Record | None) -> None:
        if report is not None:
            reports.append(report)

    return onnxprune.run(model, passes, each=each, **more).to_proto(), reports


def weights(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}


def test_permute_keeps_outputs_and_lets_the_pattern_take_less() -> None:
    model = onnx.load(CNN)
    turned, (report,) = run(CNN, "permute{pattern=2:4}")
    assert isinstance(report, LosslessReport)
    assert report.groups
    assert 0 < error(model, turned) < 1e-4
    before, after = weights(model), weights(turned)
    moved = [n for n in before if not np.array_equal(before[n], after[n])]
    assert moved
    assert all(np.array_equal(np.sort(before[n], axis=None), np.sort(after[n], axis=None)) for n in moved)
    left = [run(m, "sparsify{pattern=2:4}")[0] for m in (model, turned)]
    kept = [sum(float((w.astype(float) ** 2).sum()) for w in weights(m).values()) for m in left]
    assert kept[1] > kept[0]


def test_permute_then_sparsify_is_sparsify_with_permute() -> None:
    apart = run(CNN, "permute{pattern=2:4},sparsify{pattern=2:4}")[0]
    at_once = onnxprune.sparsify(CNN, pattern="2:4", permute=True).model
    assert weights(apart).keys() == weights(at_once).keys()
    assert all(np.array_equal(w, weights(at_once)[n]) for n, w in weights(apart).items())


def test_sparsify_takes_sizes_of_inputs_only_where_they_count() -> None:
    model, shapes = attention(), {"x": (1, 4, 16)}
    found = run(model, "sparsify{pattern=2:4},shrink", input_shapes=shapes)[0]
    assert weights(found).keys() == weights(onnxprune.sparsify(model, pattern="2:4").model).keys()
    with pytest.raises(UsageError, match="no use to these passes"):
        run(model, "drop_dead", input_shapes=shapes)


def test_rotate_keeps_outputs_in_another_basis(digits: Path) -> None:
    model = onnx.load(TRANSFORMER)
    turned, (report,) = run(TRANSFORMER, f"rotate{{calib={digits}}}")
    assert isinstance(report, LosslessReport)
    assert report.groups
    assert not any("Failed" in why for why in report.refused.values())
    before, after = weights(model), weights(turned)
    assert before.keys() == after.keys()
    assert any(not np.allclose(before[n], after[n], atol=1e-2) for n in before)
    assert error(model, turned) < 1e-3
    broken = onnx.ModelProto.FromString(turned.SerializeToString())
    name = next(n for n in before if not np.allclose(before[n], after[n], atol=1e-2))
    (tensor,) = (t for t in broken.graph.initializer if t.name == name)
    tensor.CopyFrom(numpy_helper.from_array(before[name], name))  # one end without the other
    assert error(model, broken) > 1e-2


def test_center_norms_leaves_no_layer_norm_and_keeps_outputs() -> None:
    model = onnx.load(TRANSFORMER)
    centred, (report,) = run(TRANSFORMER, "center_norms")
    assert isinstance(report, LosslessReport)
    assert sum(group["norms"] for group in report.groups) == ops(model).count("LayerNormalization") > 0
    assert "LayerNormalization" not in ops(centred)
    assert report.error is not None
    assert 0 < report.error < 1e-5
    assert error(model, centred) < 1e-4
    broken = onnx.ModelProto.FromString(centred.SerializeToString())
    before = weights(model)
    for tensor in broken.graph.initializer:  # written with its mean again
        if tensor.name in before:
            tensor.CopyFrom(numpy_helper.from_array(before[tensor.name], tensor.name))
    assert error(model, broken) > 1e-2


def ops(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def test_where_nothing_is_to_be_done_the_model_itself_comes_back() -> None:
    model, reports = Model.load(chain(width=3)), list[Record | None]()

    def each(text: str, report: Record | None) -> None:
        reports.append(report)

    for passes in ("permute{pattern=4:8}", "rotate{calib=synthetic samples=8}", "center_norms"):
        found = passlist.apply(model, passlist.parse(passes), each=each)
        assert found is model
        report = reports.pop()
        assert isinstance(report, LosslessReport)
        assert not report.groups
        assert "no group of channels could be" in report.lines()[0]


def test_reports_of_all_passes_go_to_one_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, report = tmp_path / "out.onnx", tmp_path / "r.json"
    passes = "permute{pattern=2:4},sparsify{pattern=2:4}"
    assert main(["run", str(CNN), str(out), "--passes", passes, "--report", str(report)]) == 0
    told = {
        entry["pass"].partition("{")[0]: entry["report"] for entry in json.loads(report.read_text())["passes"]
    }
    assert told["permute"]["change"] == "reordered"
    assert told["sparsify"]["zeros"] > 0
    shown = capsys.readouterr().out
    assert "reordered" in shown
    assert "of before" in shown


def test_samples_are_given_to_a_pass_as_text() -> None:
    found, (report,) = run(chain(), "prune{ratio=0.5 align=1 calib=synthetic samples=8 recover=lstsq}")
    same = onnxprune.prune(chain(), ratio=0.5, align=1, calib="synthetic", samples=8, recover="lstsq")
    assert found.SerializeToString() == same.model.SerializeToString()
    assert report.to_json()["calibration"]["samples"] == same.report.to_json()["calibration"]["samples"]


def test_the_page_of_a_lossless_change_keeps_names_as_text() -> None:
    report = LosslessReport(
        change="reordered",
        groups=[{"group": ATTACK}],
        refused={ATTACK: ATTACK},
        summary=[ATTACK],
        notes=[ATTACK],
        files={"input": ATTACK},
        command=ATTACK,
    )
    text = report.page()
    page = Page(text)
    assert {"changed", "left", "run", "main"} <= set(sound(page))
    assert "img" not in [tag for tag, _ in page.tags]
    assert text.count("<script") == text.count("</script") == 1
    assert "<!--" not in text.partition("<!doctype")[2]


def test_one_pass_that_reports_may_write_a_page(tmp_path: Path) -> None:
    source, out, page = (tmp_path / name for name in ("in.onnx", "out.onnx", "r.html"))
    onnx.save(chain(), source)
    command = ["run", str(source), str(out), "-q", "--report", str(page), "--passes"]
    assert main([*command, "permute,drop_dead"]) == 0
    assert "in.onnx" in page.read_text()
    assert main([*command, "permute,sparsify{pattern=2:4}"]) != 0  # two report


def test_keep_vocabulary_takes_ids_as_they_were(tmp_path: Path) -> None:
    model = encoder()
    onnx.save(model, tmp_path / "in.onnx")
    (tmp_path / "ids.txt").write_text("".join(f"{n}\n" for n in range(1, 90, 2)), encoding="utf-8")
    small, (report,) = run(tmp_path / "in.onnx", f"keep_vocabulary{{tokens={tmp_path / 'ids.txt'} unk=1}}")
    assert report.to_json()["vocabulary"]
    ids = np.random.default_rng(0).integers(0, 45, (2, 7)) * 2 + 1
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    before, after = outputs(model, feeds), outputs(small, feeds)
    assert np.array_equal(before[0], after[0])
    assert np.ptp(before[0]) > 0
    unknown = {**feeds, "input_ids": np.full_like(ids, 2)}
    assert not np.array_equal(outputs(model, unknown)[0], outputs(small, unknown)[0])
    assert small.ByteSize() < model.ByteSize() - 200 * 64 * 4


def texts(count: int = 40) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    ids = rng.integers(1, WORDS, (count, 9))
    return {"input_ids": ids, "attention_mask": np.ones_like(ids)}


def test_drop_blocks_by_name_equals_the_model_without_them() -> None:
    model = encoder()
    small, _ = run(model, "drop_blocks{names=layer1.down}")
    silent = onnx.ModelProto.FromString(model.SerializeToString())
    for name in ("layer1.down.weight", "layer1.down.bias"):
        edit(silent, name, ...)
    feeds = texts(4)
    before, after, whole = outputs(silent, feeds)[0], outputs(small, feeds)[0], outputs(model, feeds)[0]
    assert np.abs(before - after).max() < 1e-5 * np.abs(before).max()
    assert np.abs(before - whole).max() > 1e-3
    assert "layer1.up.weight" not in weights(small)


def test_drop_blocks_on_samples_and_quantize_report() -> None:
    small, (cut, grids) = run(encoder(), "drop_blocks{ratio=0.25},quantize{target=bytes=0.4}", calib=texts())
    assert cut.to_json()["parameters"]["after"] < cut.to_json()["parameters"]["before"]
    assert grids.to_json()["bytes"]["after"] <= 0.4 * grids.to_json()["bytes"]["before"]
    assert small.ByteSize() < 0.45 * encoder().ByteSize()


def test_drop_experts_leaves_other_channels() -> None:
    model = mixture()
    small, (report,) = run(model, "drop_experts{ratio=0.5}")
    assert report.to_json()["law1"]["max_relative_error"] < 1e-5
    before, after = weights(model), weights(small)
    assert after["stem.weight"].shape == before["stem.weight"].shape
    assert small.ByteSize() < model.ByteSize()


@pytest.mark.parametrize(
    ("passes", "words"),
    [
        ("drop_blocks{granularity=heads}", "chooses granularity itself"),
        ("drop_experts{drop=x}", "chooses drop itself"),
        ("quantize", "needs 'target'"),
        ("quantize{target=bytes=0.5 to=zst}", "leave it out"),
    ],
)
def test_faces_refuse_what_they_choose_themselves(passes: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        run(encoder(), passes)
