"""Every option of every command does something that can be seen, or is refused; a new one must be shown here.

The two runs of a case in effects.py must differ in what they print, in a file that they write, or in their exit code.
Reports don't count what they repeat of the command line.
"""

import argparse
import contextlib
import io
import json
import os
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from depth_models import transformer
from effects import EFFECTS, HALF, JUDGED, STUB
from expert_models import mixture
from onnxruntime import InferenceSession
from small_models import Builder
from vocabulary_models import language

import onnxprune
from onnxprune import cli
from onnxprune.api import calibrate, compress
from onnxprune.cli.arguments import build
from onnxprune.latency.apart import Apart
from onnxprune.latency.clock import Bench, Race
from onnxprune.latency.profile import Timed
from onnxprune.model import Model
from onnxprune.pruning import layer_times, speed
from onnxprune.reconstruction import walk
from onnxprune.tuning import explore, members

#: A metric of the user's own.
SCRIPT = """
import numpy as np, onnxruntime as ort
def evaluate(session):
    d = np.load("v.npz")
    return 100 * np.mean(session.run(None, {"x": d["x"]})[0].argmax(1) == d["truth"])
"""

#: Shown elsewhere: they print and end, limit the process, say who does the work (tests/fleet), or take out what these
#: tests don't look at (tests/integrations/test_around.py).
ELSEWHERE = {"--help", "--max-memory", "--max-seconds", "--jobs", "--retry", "--reproducible"}
CASES = [(command, name) for command, options in EFFECTS.items() for name in options]
#: What reports repeat of the command line, and what differs from run to run.
REPEATED = ("command", "created", "options", "seconds", "versions", "sha256", "files", "seed", "model_sha256")


def commands() -> dict[str, argparse.ArgumentParser]:
    (sub,) = (a for a in build()._actions if isinstance(a, argparse._SubParsersAction))
    return dict(sub.choices)


def flags(parser: argparse.ArgumentParser) -> set[str]:
    """The long name of each option."""
    return {a.option_strings[-1] for a in parser._actions if a.option_strings}


def test_every_option_of_every_command_is_shown() -> None:
    found = {command: flags(parser) - ELSEWHERE for command, parser in commands().items()}
    assert found == {command: set(options) for command, options in EFFECTS.items()}


def attention() -> onnx.ModelProto:
    """Two layers over a sequence, and one head of attention, whose values may be turned."""
    b = Builder(5)
    up = b.op("Relu", [b.linear("x", "up", 12, 16)], "relu")
    x = b.linear(up, "down", 16, 12)
    q, k, v = (b.linear(x, name, 12, 8) for name in ("query", "key", "value"))
    scores = b.op("MatMul", [q, b.op("Transpose", [k], "turned", perm=[0, 2, 1])], "scores")
    mixed = b.op("MatMul", [b.op("Softmax", [scores], "softmax", axis=-1), v], "mix")
    y = b.op("ReduceMean", [b.linear(mixed, "out", 8, 12)], "mean", axes=[1], keepdims=0)
    norm = [y, b.weight("ln.scale", 12, low=0.5), b.weight("ln.bias", 12)]
    return b.model({"x": ["N", "T", 12]}, b.linear(b.op("LayerNormalization", norm, "ln"), "head", 12, 5))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What all commands read."""
    place = tmp_path_factory.mktemp("reads")
    model = attention()
    onnx.save(model, place / "in.onnx")
    (place / "models").mkdir()
    onnx.save(model, place / "models" / "one.onnx")
    b = Builder(6)
    norm = [b.linear("x", "up", 12, 16), b.weight("s", 16, low=0.5), b.weight("b", 16)]
    last = b.linear(b.op("LayerNormalization", norm, "ln"), "head", 16, 5)
    onnx.save(b.model({"x": ["N", 12]}, last), place / "norm.onnx")
    onnx.save(language(head="none"), place / "words.onnx")
    onnx.save(mixture(), place / "experts.onnx")
    onnx.save(transformer(), place / "deep.onnx")
    (place / "ids").write_text("0 3 7 9")
    vocabulary = {"a": 0, "b": 1, "c": 2, "?": 3}
    (place / "t.json").write_text(
        json.dumps({"model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "?"}})
    )
    (place / "w.txt").write_text("a")
    (place / "recipe.toml").write_text('[[pass]]\nname = "prune"\nratio = 0.5\n')
    result = onnxprune.prune(place / "in.onnx", place / "pruned.onnx", ratio=0.5, align=None)
    result.plan.save(place / "plan.json")
    onnxprune.plan(place / "in.onnx", ratio=0.25, align=None).save(place / "other_plan.json")
    x = np.random.default_rng(0).standard_normal((60, 7, 12)).astype(np.float32)
    np.savez(place / "f.npz", x=x[:2])
    np.savez(place / "s.npz", x=x)
    np.savez(place / "t.npz", x=x, truth=np.random.default_rng(1).integers(0, 5, 60))
    for seed, name in enumerate(("u", "v", "w")):
        given = np.random.default_rng(seed).standard_normal((200, 7, 12)).astype(np.float32)
        truth = InferenceSession(place / "in.onnx").run(None, {"x": given})[0].argmax(axis=1)
        np.savez(place / f"{name}.npz", x=given, truth=truth)
    for name, shard in (("one", "1/2"), ("two", "2/2"), ("all", None)):
        calibrate(place / "in.onnx", place / f"{name}.npz", calib=str(place / "s.npz"), shard=shard)
    compress(place / "in.onnx", place / "in.zst")
    (place / "m.py").write_text(SCRIPT, encoding="utf-8")
    return place


def outcome(command: str, words: str, name: str, folder: Path, place: Path) -> tuple[object, ...]:
    """Run a command in a folder of its own; return all that can be seen of it."""
    line = STUB[command].split()
    for word in words.split():
        if word.startswith("IN="):
            line[1:2] = [word[3:]] * bool(word[3:])
        elif word == "JSON=":
            line.remove("--json")
        elif word in line:  # given twice, the last counts
            line.append(word)
        else:
            line.append(word)
    if name == "--in-place":
        line[line.index("out.onnx")] = "in.onnx"
    shutil.copytree(folder, place)
    before, out, err = Path.cwd(), io.StringIO(), io.StringIO()
    os.chdir(place)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = cli.main(line)
    finally:
        os.chdir(before)
    read = {p.name for p in folder.glob("*.npz")}
    files = {p.name: seen(p) for p in sorted(place.iterdir()) if p.name not in read and p.is_file()}
    files |= {p.name: seen(p) for p in (place / "out").glob("*.onnx")}  # of a fleet
    printed = seen_text(out.getvalue())
    return code, printed, err.getvalue() if "-v" in line or name == "--verbose" or code else "", files


def seen_text(text: str) -> str:
    """Leave out of JSON what it repeats of the command line."""
    try:
        values = json.loads(text)
    except ValueError:
        return text
    return json.dumps(plain(values), sort_keys=True)


def plain(values: object) -> object:
    if isinstance(values, dict):
        return {name: plain(value) for name, value in values.items() if name not in REPEATED}
    return [plain(value) for value in values] if isinstance(values, list) else values


def seen(path: Path) -> object:
    return seen_text(path.read_text("utf-8")) if path.suffix == ".json" else path.read_bytes()


@pytest.fixture(autouse=True)
def _no_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every result is twice as fast, and more with threads and larger batches."""

    def race(before: object, after: object, bench: Bench, **_: object) -> Race:
        ratio = 2.0 + (bench.threads or 0) + 0.1 * len(bench.feeds["x"])
        return Race(np.full(9, ratio), np.full(9, 1.0), 1.0, ratio, 1.9, 9.9)

    monkeypatch.setattr(speed, "race", race)
    monkeypatch.setattr(members, "race", race)
    monkeypatch.setattr(members, "race_apart", lambda a, b, bench: Apart([race(a, b, bench).to_json()]))
    monkeypatch.setattr(layer_times, "profile", lambda models, makers, bench: [Timed(1.0, {0: 0.5}, 0.1)])
    monkeypatch.setattr(speed.Speed, "confirm", lambda *_: None)
    monkeypatch.setattr(walk, "ABREAST", 1)  # so that even these few layers can be dealt
    monkeypatch.setattr(explore, "levers", lambda aim: [])
    monkeypatch.setattr(explore, "ladders", lambda aim: [explore.Ladder("macs", 1)])
    monkeypatch.setattr(explore, "STEPS", 2)


@pytest.mark.parametrize(("command", "name"), CASES)
def test_it_does_something(command: str, name: str, folder: Path, tmp_path: Path) -> None:
    without, with_ = EFFECTS[command][name]
    one, other = (
        outcome(command, words, name, folder, tmp_path / at)
        for words, at in ((without, "without"), (with_, "with"))
    )
    assert one != other
    codes = one[0], other[0]
    assert 1 not in codes, "a bug"
    refused = name in ("--in-place", "--calib") or (command, name) == ("calibrate", "--labels")
    if not refused:  # without these it is
        assert one[0] == 0, one
    if name in ("--provider", "--calib-provider", "--minutes", "--rtol", "--min-agreement", "--max-drop"):
        return  # may be refused, for what it finds
    if (command, name) not in {
        ("verify", "--plan"),
        ("sparsify", "--input-shape"),
        ("compress", "--input-shape"),
    }:
        assert other[0] == 0, other


def test_the_look_at_a_run_sees_no_difference_where_there_is_none(folder: Path, tmp_path: Path) -> None:
    """The negative control: the same words, and an option at its default."""
    for command, words in (
        ("prune", HALF),
        ("plan", HALF),
        ("sensitivity", "--calib s.npz"),
        ("inspect", ""),
    ):
        one = outcome(command, words, "", folder, tmp_path / f"{command}1")
        assert one[0] == 0
        assert one == outcome(command, words, "", folder, tmp_path / f"{command}2")
    again = outcome("prune", f"{HALF} --seed 0 --scope local", "", folder, tmp_path / "again")
    assert again == outcome("prune", HALF, "", folder, tmp_path / "prune3")


@pytest.mark.parametrize(
    "line",
    [
        "prune in.onnx out.onnx --ratio 0.5 --threads 1",
        "prune in.onnx out.onnx --ratio 0.5 --provider cuda",
        "prune in.onnx out.onnx --ratio 0.5 --batch 2",
        "plan in.onnx -o p.json --ratio 0.5 --threads 1",
        "prune in.onnx out.onnx --ratio 0.5 --no-verify --rtol 1e-3",
        "prune in.onnx out.onnx --ratio 0.5 --no-verify --inputs f.npz",
        "apply in.onnx plan.json out.onnx --no-verify --rtol 1e-3",
        "prune in.onnx out.onnx --target macs=0.5 --scope global",
        "prune in.onnx out.onnx --ratio 0.5 --cap 0.5",
        "prune in.onnx out.onnx --ratio 0.5 --calib s.npz --trials 2",
        "prune in.onnx out.onnx --min-agreement 0.5 --calib s.npz --steps 2",
        "prune in.onnx out.onnx --ratio 0 --check-speed",
        "prune in.onnx out.onnx --ratio 0.5 --open-io nothing",
        "sparsify in.onnx out.onnx --pattern 2:4 --seed 3",
        "sparsify in.onnx out.onnx --pattern 2:4 --input-shape x:1,7,12",
        "inspect in.onnx --target macs=0.5",
        "explain in.onnx up.weight --target macs=0.5",
        "inspect in.onnx --ops",
        "inspect --ops --html h.html",
        "inspect in.onnx --sparsity --html h.html",
        "inspect in.onnx --sparsity --input-shape x:1,7,12",
        "inspect in.onnx --sparsity --allow-inexact",
        "inspect --ops --sparsity",
        "run in.onnx out.onnx --passes drop_dead --input-shape x:1,7,12",
        "compress in.onnx out.onnx",
        "compress in.onnx out.onnx --to zst --calib s.npz",
        "compress in.onnx out.onnx --target bytes=0.5 --seed 1",
        f"tune in.onnx out.onnx {JUDGED} --lower-is-better",
        "tune in.onnx out.onnx --max-drop 1 --calib s.npz --metric m.py --eval v.npz",
        "run in.onnx out.onnx --passes drop_dead --report r.html",
        "run in.onnx out.onnx --passes prune{ratio=0.1},prune{ratio=0.1} --report r.html",
    ],
)
def test_what_would_do_nothing_is_refused(
    line: str,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(folder, tmp_path / "f")
    monkeypatch.chdir(tmp_path / "f")
    before = sorted(p.name for p in Path().iterdir())
    assert cli.main(line.split()) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert len(said.err.splitlines()) == 1
    assert sorted(p.name for p in Path().iterdir()) == before


TEXTS = {
    "prune --report": "prune in.onnx out.onnx --ratio 0.5 --report -",
    "prune --plan": "prune in.onnx out.onnx --ratio 0.5 --plan -",
    "plan -o": "plan in.onnx -o - --ratio 0.5",
    "apply --report": "apply in.onnx plan.json out.onnx --report -",
    "run --report": "run in.onnx out.onnx --passes prune{ratio=0.5} --report -",
    "sparsify --report": "sparsify in.onnx out.onnx --pattern 2:4 --report -",
    "compress --report": "compress in.onnx out.onnx --to zst --report -",
    "tune --report": f"tune in.onnx out.onnx {JUDGED} --recover lstsq --report -",
    "inspect --html": "inspect in.onnx --html -",
}


def test_all_text_outputs_are_here() -> None:
    known = {f"{c} {o}" for c, p in commands().items() for o in ("--report", "--plan", "--html", "-o")
             if any(o in a.option_strings for a in p._actions)}  # fmt: skip
    assert known - {"verify --plan", "calibrate -o", "merge -o"} == set(TEXTS)


@pytest.mark.parametrize("what", TEXTS)
def test_a_dash_is_standard_output_and_nothing_else_goes_there(
    what: str,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(folder, tmp_path / "f")
    monkeypatch.chdir(tmp_path / "f")
    line = TEXTS[what].split()
    assert cli.main(line) == 0
    told = capsys.readouterr().out
    if what == "inspect --html":
        assert told.startswith("<!doctype html>")
        assert told.endswith("</html>\n")
    else:
        assert json.loads(told)["format"] == 1
    assert not Path("-").exists()
    if line[0] not in ("plan", "run"):
        assert cli.main([*line, "--json"]) == 2
        said = capsys.readouterr()
        assert said.out == ""
        assert "and --json would both go to standard output" in said.err


@pytest.mark.parametrize(
    ("line", "code", "says"),
    [
        ("prune in.onnx - --ratio 0.5", 7, "a model needs a file"),
        ("sparsify in.onnx - --pattern 2:4", 7, "a model needs a file"),
        ("compress in.onnx - --target bytes=0.5", 7, "a model needs a file"),
        ("apply in.onnx plan.json -", 7, "a model needs a file"),
        ("run in.onnx - --passes drop_dead", 7, "a model needs a file"),
        ("prune in.onnx o.onnx --ratio 0.5 --report - --plan -", 2, "would both go to standard output"),
        ("prune in.onnx o.onnx --target macs=0.7,0.5 --report -", 2, "can't share standard output"),
    ],
)
def test_a_dash_that_cannot_be_is_refused(
    line: str,
    code: int,
    says: str,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(folder, tmp_path / "f")
    monkeypatch.chdir(tmp_path / "f")
    assert cli.main(line.split()) == code
    said = capsys.readouterr()
    assert said.out == ""
    assert says in said.err
    assert not Path("-").exists()


def test_run_shows_what_prune_found_and_writes_it_down(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(folder, tmp_path / "f")
    monkeypatch.chdir(tmp_path / "f")
    passes = "resolve_shapes,prune{ratio=0.5 align=none},drop_dead"
    assert cli.main(["run", "in.onnx", "o.onnx", "--passes", passes, "--report", "r.json"]) == 0
    said = capsys.readouterr()
    assert "prune{ratio=0.5 align=none}:" in said.out
    assert "law 1: pruned = masked original" in said.out
    told = json.loads(Path("r.json").read_text("utf-8"))
    names = [one["pass"] for one in told["passes"]]
    assert names == ["resolve_shapes", "prune{ratio=0.5 align=none}", "drop_dead"]
    inner = told["passes"][1]["report"]
    assert inner["law1"]["max_relative_error"] < 1e-4
    assert inner["parameters"]["after"] < inner["parameters"]["before"]
    assert [one["report"] for one in (told["passes"][0], told["passes"][2])] == [None, None]
    assert told["notes"] == [
        line for line in said.err.splitlines() if line.startswith(("resolve", "drop", "shr"))
    ]
    assert told["sha256"]["input"] == Model.load("in.onnx").sha256
    assert cli.main(["run", "in.onnx", "o.onnx", "--passes", passes, "--report", "r.html", "-q"]) == 0
    assert "<!doctype html>" in Path("r.html").read_text("utf-8")
