"""Habits of a command line: names that are misspelt, help that fits, completion, sizes, any encoding."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
from small_models import attention, chain

from onnxprune import cli
from onnxprune.cli.arguments import build
from onnxprune.cli.parser import flags_of, paragraphs
from onnxprune.report.printing import Printable, drawn_on, printed_on
from onnxprune.version import __version__

COMMANDS = tuple(build().commands)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "in.onnx"
    onnx.save(chain(), path)
    return path


def run(*line: str) -> int:
    return cli.main([str(part) for part in line])


def said(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("prne a b", "There is no command 'prne'; they are prune, inspect, "),
        ("prne a b", "Did you mean 'prune'?"),
        ("help sparsfy", "Did you mean 'sparsify'?"),
        ("prune a b --rato 0.5", "arguments: --rato 0.5; see 'onnxprune prune --help'. Did you mean '--ratio'?"),
        ("prune a b --input_shape x:1", "Did you mean '--input-shape'?"),
        ("prune a b --overwrite", "unrecognized arguments: --overwrite; see 'onnxprune prune --help'.\n"),
        ("prune a b --pattern 2:4", "It is an option of 'sparsify'."),
        ("prune a b --ratio 0.5 --align trt_fp16", "Did you mean 'trt-fp16'?"),
        ("prune a b --target mac=0.5", "Did you mean 'macs'?"),
        ("prune a b c --ratio 0.5", "unrecognized arguments: c; see 'onnxprune prune --help'."),
        ("compress a b --target bytes=0.5 --target bytes=0.2", "--target: is given twice, bytes=0.5 and bytes=0.2;"),
        ("completion fish", "'completion' knows bash, zsh, tcsh; got 'fish'."),
    ],
)  # fmt: skip
def test_what_was_meant(line: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*line.split()) == 2
    assert says in said(capsys)


def test_names_of_criteria_and_of_samples(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = model.with_name("out.onnx")
    assert run("prune", model, out, "--ratio", "0.5", "--criterion", "l22") == 2
    assert "Did you mean 'l2'?" in said(capsys)
    np.savez(model.with_name("s.npz"), X=np.zeros((8, 3, 8, 8), np.float32))
    assert run("prune", model, out, "--ratio", "0.5", "--calib", model.with_name("s.npz")) == 8
    assert "have 'X', which is no input of the model; the model's inputs are x. Did you mean 'x'?" in said(
        capsys
    )
    assert run("run", model, out, "--passes", "prune{ration=0.5}") == 2
    assert "Did you mean 'ratio'?" in said(capsys)
    assert not out.exists()


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("columns", [80, 120])
def test_help_fits_the_terminal(
    command: str, columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    assert run("help", command) == 0
    first = capsys.readouterr().out
    assert max(map(len, first.splitlines())) <= columns
    with pytest.raises(SystemExit):
        run(command, "--help")
    assert capsys.readouterr().out == first
    assert f"usage: onnxprune {command}" in first


def test_help_of_all(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert run("help") == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    for command in COMMANDS:
        assert f"\n    {command}" in text
    assert run("version") == 0
    assert capsys.readouterr().out == f"onnxprune {__version__}\n"
    assert run("version", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"onnxprune": __version__}


def test_a_command_in_help_can_be_copied(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A long example goes on after a backslash, and no option is parted from its value."""
    monkeypatch.setenv("COLUMNS", "60")
    run("help", "tune")
    text = capsys.readouterr().out
    joined = text.replace(" \\\n", " ")
    lines = [" ".join(line.split()) for line in joined.splitlines() if line.startswith("  onnxprune tune")]
    assert len(lines) == 5
    for line in lines:
        build().parse_args(line.split()[1:])
    parts = [part.split()[-1] for part in text.splitlines() if part.endswith(" \\")]
    assert parts
    assert set(parts) == {"\\"}
    assert not [p for p in text.splitlines() if p.endswith(" \\") and p.split()[-2].startswith("--")]


def test_paragraphs_are_joined_and_tables_are_not() -> None:
    text = "a b\nc d\n\n  onnxprune x\n      one\n      two\n 1  a   b\n 2  c   d\n"
    assert paragraphs(text) == "a b c d\n\n  onnxprune x\n      one two\n 1  a   b\n 2  c   d"


def test_completion_comes_from_shtab(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    shtab = ModuleType("shtab")
    shtab.complete = lambda parser, shell: asked.append((parser.prog, shell)) or "complete it"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "shtab", shtab)
    assert run("completion", "zsh") == 0
    assert capsys.readouterr().out == "complete it\n"
    assert asked == [("onnxprune", "zsh")]
    monkeypatch.setitem(sys.modules, "shtab", None)  # type: ignore[arg-type]
    assert run("completion", "bash") == 2
    assert "needs shtab, which isn't installed; 'pip install shtab'" in said(capsys)


def test_what_can_be_completed_as_a_file_says_so() -> None:
    prune = build().commands["prune"]
    files = {a.dest for a in prune._actions if hasattr(a, "complete")}
    assert {"in", "out", "calib", "inputs", "moments", "words"} <= files
    assert files.isdisjoint({"ratio", "target", "ignore"})


def test_a_command_reads_its_own_options_only() -> None:
    some = build(whole=False)
    some.parse_args(["prune", "a", "b", "--ratio", "0.5"])
    whole = build()
    assert set(some.commands) == set(whole.commands)
    assert flags_of(some.commands["prune"]) == flags_of(whole.commands["prune"])
    assert "--pattern" in flags_of(whole.commands["sparsify"])
    assert "--pattern" not in flags_of(some.commands["sparsify"])


def test_an_array_that_needs_a_name_is_told_how(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(model.with_name("s.npz"), data=np.zeros((8, 3, 8, 8), np.float32), target=np.zeros(8))
    line = (
        "prune",
        model,
        model.with_name("out.onnx"),
        "--ratio",
        "0.5",
        "--calib",
        model.with_name("s.npz"),
    )
    assert run(*line) == 8
    text = said(capsys)
    assert (
        "Save it under such a name, as in np.savez('samples.npz', x=array); labels are named with --labels."
        in text
    )


def test_reasons_that_nobody_expects_come_last(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("prune", model, model.with_name("out.onnx"), "--ratio", "0.5", "--align", "none") == 0
    frozen = [line for line in capsys.readouterr().out.splitlines() if line.startswith("frozen: ")]
    assert len(frozen) > 1
    assert frozen[-1].endswith("the positions of a convolution (Conv)")


def test_flags_are_those_of_the_parser() -> None:
    for parser in build().commands.values():
        known = {flag for a in parser._actions for flag in a.option_strings if flag.startswith("--")}
        assert set(flags_of(parser)) == known


def test_sizes_are_printed(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("prune", model, model.with_name("out.onnx"), "--ratio", "0.5", "--align", "none") == 0
    assert "\nsizes: x 1 x 3 x 8 x 8\n" in capsys.readouterr().out
    onnx.save(attention(), model)
    assert run("prune", model, model.with_name("out.onnx"), "--ratio", "0.5", "--check-speed") in (0, 9)


def test_inspect_leads_with_what_can_be_done(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("inspect", model) == 0
    text = capsys.readouterr().out
    first = text.splitlines()[0]
    assert (
        first
        == "2 groups can be cut; half of their units gone leaves 36% of the parameters and 32% of the MACs"
    )
    assert f"next: onnxprune prune {model} small.onnx --ratio 0.5\n" in text
    places = [text.index(part) for part in ("Ceiling", "sizes: ", "next: ", "Groups", "Frozen", "Ops")]
    assert places == sorted(places)


def test_the_next_command_of_inspect_is_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a model's.onnx"
    onnx.save(chain(), path)
    assert run("inspect", path) == 0
    (line,) = [x for x in capsys.readouterr().out.splitlines() if x.startswith("next: ")]
    env = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[2])}
    command = line.removeprefix("next: ").replace("onnxprune", f"{sys.executable} -m onnxprune", 1)
    subprocess.run(command, shell=True, check=True, cwd=tmp_path, env=env, capture_output=True)
    assert (tmp_path / "small.onnx").stat().st_size < path.stat().st_size


def test_nothing_to_cut_is_said_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "in.onnx"
    graph = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[2] x) => (float[2] y) {y = Relu(x)}'
    )
    onnx.save(graph, path)
    assert run("inspect", path) == 0
    text = capsys.readouterr().out
    assert text.startswith("nothing can be cut\n")
    assert "next: nothing can be cut; 'onnxprune explain IN TENSOR'" in text


NAMES = ["weight\x1b[2J", "重み", "ünïcode", "two\nlines", "‮right to left"]


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8", "utf-16"])
def test_names_are_safe_on_any_output(encoding: str, tmp_path: Path) -> None:
    made = chain()
    for number, tensor in enumerate(made.graph.initializer):
        old, new = tensor.name, f"{NAMES[number % len(NAMES)]}{number}"
        tensor.name = new
        for node in made.graph.node:
            node.input[:] = [new if name == old else name for name in node.input]
    path = tmp_path / "in.onnx"
    onnx.save(made, path)
    env = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONPATH": str(Path(cli.__file__).parents[2])}
    for line in (["inspect", path], ["prune", path, tmp_path / "out.onnx", "--ratio", "0.5"]):
        command = [sys.executable, "-m", "onnxprune", *map(str, line)]
        done = subprocess.run(command, capture_output=True, env=env, check=False)
        assert done.returncode == 0, done.stderr
        text = done.stdout.decode(encoding)
        assert "\x1b" not in text
        assert "\u202e" not in text
        assert "two\nlines" not in text


def test_a_stream_takes_what_it_cannot_encode() -> None:
    class Narrow:
        encoding = "ascii"

        def __init__(self) -> None:
            self.text = ""

        def write(self, text: str) -> int:
            self.text += text.encode("ascii").decode()
            return len(text)

        def isatty(self) -> bool:
            return True

    narrow: Any = Narrow()
    printed_on(narrow).write("é\x1b")
    assert narrow.text == "\\xe9\\u001b"
    drawn_on(printed_on(narrow)).write("é\x1b")
    assert narrow.text.endswith("\\xe9\x1b")
    already: Any = Printable(narrow)
    assert printed_on(already) is already


def test_lines_are_cleaned_as_texts_are() -> None:
    stream = io.StringIO()
    Printable(stream).writelines(["a\x1b[31m\n", "b\n"])
    assert stream.getvalue() == "a\\u001b[31m\nb\n"


@pytest.mark.parametrize(
    ("command", "true", "untrue"),
    [
        ("prune", "MODEL=SAMPLES", "no"),
        ("tune", "by which accuracy is judged", "MODEL=SAMPLES"),
        ("sensitivity", "seed of the random criterion and of positions", "test inputs"),
        ("verify", "seed of the random test inputs", "criterion"),
        ("plan", "seed of the random criterion", "test inputs"),
        ("calibrate", "which are left out", "accuracy in the report"),
    ],
)
def test_help_is_true_of_its_command(
    capsys: pytest.CaptureFixture[str], command: str, true: str, untrue: str
) -> None:
    with pytest.raises(SystemExit):
        run(command, "--help")
    said = " ".join(capsys.readouterr().out.split())
    assert true in said
    assert untrue == "no" or untrue not in said
