"""``--granularity depth`` and ``--drop``: whole residual branches go, and what stays is fitted to the original."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from depth_models import WIDTH, decoder, images, no_branches, transformer
from expert_models import mixture
from nets import attention as two_heads

import onnxprune
from onnxprune.calibration.agreement import distance
from onnxprune.calibration.samples import load_samples
from onnxprune.cli import main
from onnxprune.errors import NothingToPrune, PlanError, UsageError, VerificationError
from onnxprune.graph.analysis import analyse
from onnxprune.graph.depth import Depth
from onnxprune.model import Model
from onnxprune.pruning import influence
from onnxprune.runtime.session import open_session

BRANCHES = {"layers.0.attn", "layers.0.mlp", "layers.1.attn", "layers.1.mlp"}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    onnx.save(transformer(), tmp_path / "in.onnx")
    return tmp_path / "in.onnx"


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    onnx.save(images(blocks=4), tmp_path / "pictures.onnx")
    return tmp_path / "pictures.onnx"


def samples(*shape: int) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(0).standard_normal(shape).astype(np.float32)}


TEXTS, PICTURES = samples(120, 6, WIDTH), samples(160, 4, 6, 6)


def error(before: Path, after: Path, given: dict[str, np.ndarray]) -> float:
    one, two = (next(iter(open_session(Model.load(p)).run(given).values())) for p in (before, after))
    return distance(one, two)


def gone(result: onnxprune.Result) -> list[str]:
    depth = result.report.to_json()["depth"]
    return [branch["name"] for branch in depth["gone"]]


def test_a_target_by_depth_alone(pictures: Path) -> None:
    out = pictures.with_name("out.onnx")
    result = onnxprune.prune(
        pictures, out, granularity="depth", target=("macs=0.6",), calib=PICTURES, recover="lstsq"
    )
    report = result.report.to_json()
    assert report["targets"][0]["holds"]
    assert report["depth"]["law1"]["max_relative_error"] < 1e-6
    assert report["macs"]["after"] <= 0.6 * report["macs"]["before"]
    assert len(gone(result)) == 2
    assert {line["name"] for line in report["groups"] if line["removed"]} == set(gone(result))
    assert report["calibration"]["layers"]
    assert any(
        line.startswith("depth: 2 of 4 residual branches are gone: ") for line in result.report.lines()
    )


def test_the_cheapest_go_first(pictures: Path) -> None:
    """With one branch out, the one of least distance from the original; fitted it is nearer."""
    alone, plain, fitted = {}, pictures.with_name("p.onnx"), pictures.with_name("f.onnx")
    for number in range(4):
        onnxprune.prune(pictures, plain, drop=(f"blocks.{number}",))
        alone[f"blocks.{number}"] = error(pictures, plain, PICTURES)
    given = {"granularity": "depth", "ratio": 0.25, "calib": PICTURES}
    result = onnxprune.prune(pictures, plain, recover="none", **given)
    assert gone(result) == [min(alone, key=lambda name: alone[name])]
    onnxprune.prune(pictures, fitted, recover="lstsq", **given)
    assert error(pictures, fitted, samples(64, 4, 6, 6)) < 0.7 * error(pictures, plain, samples(64, 4, 6, 6))


def test_where_looks_are_dear_what_turns_the_stream_least_is_looked_at(
    pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(influence, "WORK", 1.0)
    monkeypatch.setattr(influence, "FEW", 2)
    runs: list[list[str]] = []
    without = influence._Looks.without

    def look(self: influence._Looks, names: list[str]) -> float:
        runs.append(sorted(names))
        return without(self, names)

    monkeypatch.setattr(influence._Looks, "without", look)
    depth = Depth.of(analyse(Model.load(pictures)))
    read = load_samples(Model.load(pictures).proto.graph, PICTURES)
    turned = influence.turns(depth, depth.branches, read.few(influence.LEAST))
    least = sorted(turned, key=lambda name: turned[name])
    order = influence.influence(depth, depth.branches, read, lambda branch: 1.0)
    assert {name for names in runs for name in names} == set(least[:2])
    assert {worth.branch.name for worth in order[:2]} == set(least[:2])
    assert [worth.branch.name for worth in order[2:]] == least[2:]
    assert [worth.after for worth in order[2:]] == [None, None]
    session = open_session(depth.analysis.model, ["blocks.0.conv2_out", "blocks.0.add_out"])
    values = [session.run(batch) for batch in read.few(influence.LEAST).batches]
    added, whole = (
        np.concatenate([np.square(v[n]).sum(-1) for v in values])
        for n in ("blocks.0.conv2_out", "blocks.0.add_out")
    )
    assert turned["blocks.0"] == pytest.approx((added / whole).mean(), rel=1e-4)


def test_depth_beside_widths(source: Path) -> None:
    out = source.with_name("out.onnx")
    result = onnxprune.prune(
        source,
        out,
        granularity="depth,channels",
        target=("macs=0.5",),
        calib=TEXTS,
        recover="lstsq",
        align=None,
    )
    report = result.report.to_json()
    assert report["targets"][0]["holds"]
    tried = [note for note in report["notes"] if note.startswith("branches out, and what is lost")]
    assert len(tried) == 1
    assert report["law1"]["max_relative_error"] < 1e-4


def test_a_ratio_of_both(source: Path) -> None:
    result = onnxprune.prune(
        source, None, granularity="depth,channels", ratio=0.5, calib=TEXTS, recover="lstsq", align=None
    )
    assert len(gone(result)) == 2
    widths = [g for g in result.report.groups if g["kind"] != "depth"]
    assert any(0 < g["removed"] < g["units"] for g in widths)


@pytest.fixture
def stubborn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no model without the second block be what the original is with it masked."""
    from onnxprune.pruning import depth

    def masked(found: Depth, names: list[str], real: Any = depth.multiplied) -> Model:
        return real(found, [name for name in names if name != "blocks.1"])

    monkeypatch.setattr(depth, "multiplied", masked)


@pytest.mark.usefixtures("stubborn")
@pytest.mark.parametrize("more", [{"ratio": 0.75}, {"target": ("macs=0.6",)}])
@pytest.mark.parametrize("kinds", ["depth", "depth,channels"])
def test_a_branch_that_law_1_does_not_hold_without_stays(
    pictures: Path, kinds: str, more: dict[str, Any]
) -> None:
    """Others go in its place, and a note says why."""
    out = pictures.with_name("out.onnx")
    result = onnxprune.prune(
        pictures, out, granularity=kinds, calib=PICTURES, recover="lstsq", align=1, **more
    )
    names = [branch["name"] for branch in result.report.to_json().get("depth", {"gone": ()})["gone"]]
    assert "blocks.1" not in names
    if "ratio" in more:
        assert names == ["blocks.0", "blocks.2", "blocks.3"]
        assert any(
            "'blocks.1' stays, since without it law 1 doesn't hold" in note for note in result.report.notes
        )
    else:
        assert result.report.targets[0]["holds"]


@pytest.mark.usefixtures("stubborn")
def test_a_branch_by_name_that_law_1_does_not_hold_without_is_named(pictures: Path) -> None:
    out = pictures.with_name("out.onnx")
    with pytest.raises(VerificationError, match=r"--drop: without the branch 'blocks.1' the result isn't"):
        onnxprune.prune(pictures, out, drop=r"blocks\.[012]")
    assert not out.exists()


def test_branches_and_experts_take_a_ratio() -> None:
    """Each block of these is a mixture, and half of the experts of what is left go."""
    given: dict[str, Any] = {
        "calib": {"x": np.random.default_rng(0).standard_normal((60, 5)).astype(np.float32)},
        "granularity": "depth,experts",
    }
    result = onnxprune.prune(mixture(layers=4), ratio=0.5, **given)
    assert len(gone(result)) == 2
    assert [len(g.removed_units) for g in result.plan.groups] == [3, 3]
    with pytest.raises(UsageError, match="isn't tried together; give --ratio"):
        onnxprune.prune(mixture(layers=4), target="macs=0.5", **given)


def test_heads_alone() -> None:
    result = onnxprune.prune(two_heads(), None, granularity="heads", ratio=0.5, align=None)
    assert {g["kind"] for g in result.report.groups} == {"heads"}
    assert any(g["removed"] for g in result.report.groups)
    with pytest.raises(NothingToPrune, match="no units of --granularity heads"):
        onnxprune.prune(images(), None, granularity="heads", ratio=0.5)


def test_a_plan_holds_the_branches(source: Path) -> None:
    plan, direct, applied = (source.with_name(n) for n in ("p.json", "direct.onnx", "applied.onnx"))
    given = {"granularity": "depth,channels", "ratio": 0.5, "calib": TEXTS, "recover": "none", "align": None}
    given["rotate"] = False
    result = onnxprune.prune(source, direct, **given)
    result.plan.save(plan)
    assert json.loads(plan.read_text())["depth"] == gone(result)
    again = onnxprune.apply(source, plan, applied)
    assert gone(again) == gone(result)
    assert applied.read_bytes() == direct.read_bytes()
    assert onnxprune.verify(source, applied, plan)["max_relative_error"] < 1e-6
    other = json.loads(plan.read_text())
    other["depth"] = sorted(BRANCHES - set(gone(result)))
    with pytest.raises((VerificationError, PlanError)):
        onnxprune.verify(source, applied, type(result.plan).loads(json.dumps(other)))


def test_branches_by_name(source: Path) -> None:
    out = source.with_name("out.onnx")
    result = onnxprune.prune(source, out, drop=("mlp",))
    assert gone(result) == ["layers.0.mlp", "layers.1.mlp"]
    names = set(Model.load(out).names())
    assert not any("mlp" in name for name in names)
    assert any("attn" in name for name in names)
    both = onnxprune.prune(source, None, drop=("mlp",), ratio=0.5, align=None)
    assert gone(both) == ["layers.0.mlp", "layers.1.mlp"]
    assert any(g["removed"] for g in both.report.groups if g["kind"] != "depth")


def test_a_reader_that_gives_samples_but_once(pictures: Path) -> None:
    given = {"granularity": "depth,channels", "ratio": 0.5, "recover": "lstsq", "align": None}
    parts = [{"x": part} for part in np.split(PICTURES["x"], 4)]
    once = onnxprune.prune(pictures, None, calib=iter(parts), **given)
    again = onnxprune.prune(pictures, None, calib=parts, **given)
    assert gone(once) == gone(again)
    left, right = (next(iter(open_session(r.pruned).run(PICTURES).values())) for r in (once, again))
    assert distance(left, right) < 1e-4  # in other batches


def test_inspect_lists_branches(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(source)]) == 0
    assert "layers.1.attn" in capsys.readouterr().out.partition("Residual branches")[2]
    told = onnxprune.inspect(transformer(more="layers.0.attn.k.add_out")).to_json()["depth"]
    assert [b["name"] for b in told["branches"]] == ["layers.0.mlp", "layers.1.attn", "layers.1.mlp"]
    assert list(told["refused"]) == ["layers.0.attn"]


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["--ratio", "0.5", "--granularity", "depth"], 2, "give samples with --calib, or name the branches"),
        (["--ratio", "0.5", "--granularity", "deep"], 2, "takes channels, depth, experts, heads"),
        (["--drop", "layers.7"], 2, "matches no residual branch; there are 'layers."),
        (["--drop", "x", "--granularity", "depth", "--calib", "synthetic", "--ratio", "0.5"], 2, "give one of them"),
        (["--drop", "x", "--keep-tokens", "ids"], 2, "are two steps"),
        (["--target", "macs=0.01", "--granularity", "depth", "--calib", "synthetic"], 4, "by residual branches alone"),
        (["--target", "macs=1", "--granularity", "depth", "--calib", "synthetic"], 4, "holds as it is"),
        (["--ratio", "0.05", "--granularity", "depth", "--calib", "synthetic"], 4, "there are 4; ask for more"),
        (
            ["--min-agreement", "0.9", "--granularity", "depth", "--calib", "synthetic"], 2,
            "--granularity depth takes --ratio or --target",
        ),
    ],
)  # fmt: skip
def test_bad_use_gets_a_sentence(
    source: Path, words: list[str], code: int, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["prune", str(source), str(source.with_name("out.onnx")), *words]) == code
    error = capsys.readouterr().err
    assert text in error
    assert not source.with_name("out.onnx").exists()


def test_a_model_without_branches(tmp_path: Path) -> None:
    with pytest.raises(NothingToPrune, match="no residual branch that can go: no sum adds to a stream"):
        onnxprune.prune(no_branches(), None, drop=("x",))
    cached = transformer(layers=1, more="layers.0.attn.k.add_out")
    with pytest.raises(UsageError, match="can't go, since layers of it give the output"):
        onnxprune.prune(cached, None, drop=("attn",))


CACHE = {"open_io": ("past|present",)}


@pytest.fixture
def cached(tmp_path: Path) -> Path:
    onnx.save(decoder(), tmp_path / "cached.onnx")
    return tmp_path / "cached.onnx"


def texts_with_past(count: int = 60, past: int = 3) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    sizes = {"x": 6} | {f"past.layers.{n}.attn.{kind}": past for n in range(2) for kind in ("keys", "values")}
    return {n: rng.standard_normal((count, size, WIDTH)).astype(np.float32) for n, size in sizes.items()}


def test_a_layer_goes_with_its_cache(cached: Path) -> None:
    """Dropped by name; samples and inputs are those of the file that was read."""
    out, given = cached.with_name("out.onnx"), texts_with_past()
    few = {name: array[:2] for name, array in given.items()}
    more = {"calib": given, "recover": "lstsq", "inputs": few, **CACHE}
    result = onnxprune.prune(cached, out, drop=(r"layers\.1\.attn",), **more)
    names = [v.name for v in onnx.load(out).graph.input]
    assert names == ["x", "past.layers.0.attn.keys", "past.layers.0.attn.values"]
    depth = result.report.to_json()["depth"]
    assert depth["law1"]["given_inputs"] == 1
    assert depth["gone"][0]["outputs"] == ["present.layers.1.attn.keys", "present.layers.1.attn.values"]
    assert any(
        "inputs and outputs of the model went with them: past.layers.1" in t for t in result.report.lines()
    )
    plain = cached.with_name("plain.onnx")
    onnxprune.prune(cached, plain, drop=(r"layers\.1\.attn",), **CACHE)
    assert cached_error(cached, out, given) < 0.9 * cached_error(cached, plain, given)


def cached_error(before: Path, after: Path, given: dict[str, np.ndarray]) -> float:
    outputs = []
    for path in (before, after):
        session = open_session(Model.load(path))
        taken = {name: array for name, array in given.items() if name in session.shapes}
        outputs.append(session.run(taken)["head.add_out"])
    return distance(*outputs)


def test_a_plan_opens_the_cache_again(cached: Path) -> None:
    plan, out, again = (cached.with_name(n) for n in ("plan.json", "out.onnx", "again.onnx"))
    opened = ["--open-io", "past|present", "--drop", "attn"]
    assert main(["plan", str(cached), "-o", str(plan), "--ratio", "0.25", *opened]) == 0
    assert main(["apply", str(cached), str(plan), str(out)]) == 0
    assert main(["verify", str(cached), str(out), "--plan", str(plan)]) == 0
    assert main(["prune", str(cached), str(again), "--ratio", "0.25", *opened]) == 0
    assert out.read_bytes() == again.read_bytes()
    assert [v.name for v in onnx.load(out).graph.output] == ["head.add_out"]


def test_depth_by_samples_takes_the_cache_too(cached: Path) -> None:
    out = cached.with_name("out.onnx")
    asked = {"granularity": "depth,channels", "target": ("macs=0.5",), "calib": texts_with_past(), **CACHE}
    result = onnxprune.prune(cached, out, recover="lstsq", **asked)
    assert result.report.to_json()["targets"][0]["holds"]
    with pytest.raises(UsageError, match=r"'layers\.0\.attn' can't go, since layers of it give the output"):
        onnxprune.prune(cached, out, drop=(r"0\.attn",))
