"""The command line: exit codes, sentences, streams, and files that appear complete or not at all."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from small_models import FLOAT, MODELS, Builder, attention, chain, residual

from onnxprune import registry
from onnxprune.cli import main
from onnxprune.errors import OutputError

Args = list[str]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    onnx.save(chain(), path)
    return path


def ask(*args: object) -> int:
    return main([str(a) for a in args])


def test_prune_writes_a_smaller_model_and_says_what_it_did(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, report, plan = tmp_path / "out.onnx", tmp_path / "report.json", tmp_path / "plan.json"
    before = model.read_bytes()
    assert (
        ask("prune", model, out, "--ratio", 0.5, "--align", "none", "--report", report, "--plan", plan) == 0
    )
    shapes = {t.name: tuple(t.dims) for t in onnx.load(out).graph.initializer}
    assert shapes["conv1.weight"] == (4, 3, 3, 3)
    assert shapes["conv2.weight"] == (4, 4, 3, 3)
    assert shapes["fc.weight"] == (10, 4)
    assert model.read_bytes() == before
    printed = capsys.readouterr()
    assert re.search(r"^parameters +962 +342 +35\.6 %$", printed.out, re.MULTILINE)
    assert "law 1: pruned = masked original within" in printed.out
    assert printed.err == ""
    found = json.loads(report.read_text())
    assert {"tensor": "fc.weight", "axis": 0, "reason": "axis of the graph output 'fc_out'"} in found[
        "frozen"
    ]
    assert {(c["tensor"], c["axis"]): len(c["removed"]) for c in found["cuts"]}["conv2.weight", 1] == 4
    assert found["law1"]["inputs"] >= 1
    assert found["law1"]["max_relative_error"] <= 1e-4
    assert len(found["sha256"]["input"]) == len(found["sha256"]["output"]) == 64
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "model.onnx",
        "out.onnx",
        "plan.json",
        "report.json",
    ]


def test_json_goes_to_standard_output_alone(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ask("prune", model, tmp_path / "out.onnx", "--ratio", 0.5, "--json", "-v", "--align", "none") == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["parameters"] == {"before": 962, "after": 342}
    assert "verify" in printed.err


def test_quiet_says_nothing(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ask("prune", model, tmp_path / "out.onnx", "--ratio", 0.5, "-q", "--align", "none") == 0
    assert capsys.readouterr() == ("", "")


def test_plan_apply_and_verify_meet_at_a_file(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan, both, two = tmp_path / "plan.json", tmp_path / "both.onnx", tmp_path / "two.onnx"
    options = ["--ratio", 0.5, "--criterion", "l1", "--align", "none"]
    assert ask("prune", model, both, *options) == 0
    assert ask("plan", model, "-o", plan, *options) == 0
    assert ask("apply", model, plan, two) == 0
    assert both.read_bytes() == two.read_bytes()
    assert ask("verify", model, two, "--plan", plan) == 0
    assert "law 1 holds" in capsys.readouterr().out


def test_plan_can_be_edited_by_hand(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan, out = tmp_path / "plan.json", tmp_path / "out.onnx"
    assert ask("plan", model, "-o", plan, "--ratio", 0.5, "--align", "none") == 0
    found = json.loads(plan.read_text())
    found["groups"][0]["removed_units"] = [1, 2]
    plan.write_text(json.dumps(found))
    assert ask("apply", model, plan, out) == 6
    assert 'delete the list "cuts"' in capsys.readouterr().err
    assert not out.exists()
    found["cuts"] = []
    plan.write_text(json.dumps(found))
    assert ask("apply", model, plan, out) == 0
    weights = {t.name: numpy_helper.to_array(t) for t in onnx.load(out).graph.initializer}
    original = {t.name: numpy_helper.to_array(t) for t in onnx.load(model).graph.initializer}
    assert np.array_equal(weights["conv1.weight"], original["conv1.weight"][[0, 3, 4, 5, 6, 7]])


def test_plan_of_another_model_is_refused_with_both_hashes(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other, plan = tmp_path / "other.onnx", tmp_path / "plan.json"
    onnx.save(residual(), other)
    assert ask("plan", model, "-o", plan, "--ratio", 0.5, "--align", "none") == 0
    assert ask("apply", other, plan, tmp_path / "out.onnx") == 6
    assert len(re.findall(r"[0-9a-f]{64}", capsys.readouterr().err)) == 2
    assert not (tmp_path / "out.onnx").exists()


def test_verify_refuses_a_model_that_is_not_what_the_plan_says(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan, out = tmp_path / "plan.json", tmp_path / "out.onnx"
    assert ask("prune", model, out, "--ratio", 0.5, "--align", "none", "--plan", plan, "--seed", 1) == 0
    wrong = onnx.load(out)
    weight = next(t for t in wrong.graph.initializer if t.name == "conv2.weight")
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight)[::-1].copy(), "conv2.weight"))
    onnx.save(wrong, out)
    assert ask("verify", model, out, "--plan", plan) == 5
    assert "law 1 doesn't hold" in capsys.readouterr().err


@pytest.mark.parametrize("name", MODELS)
def test_ratio_zero_copies_the_file(name: str, tmp_path: Path) -> None:
    path, out, report = tmp_path / "in.onnx", tmp_path / "out.onnx", tmp_path / "report.json"
    onnx.save(MODELS[name](), path)
    assert ask("prune", path, out, "--ratio", 0, "--report", report) == 0
    assert out.read_bytes() == path.read_bytes()
    found = json.loads(report.read_text())
    assert found["cuts"] == []
    assert found["sha256"]["input"] == found["sha256"]["output"]


@pytest.mark.parametrize("name", MODELS)
def test_same_bytes_twice(name: str, tmp_path: Path) -> None:
    path = tmp_path / "in.onnx"
    onnx.save(MODELS[name](), path)
    for out in ("a.onnx", "b.onnx"):
        assert (
            ask(
                "prune",
                path,
                tmp_path / out,
                "--ratio",
                0.5,
                "--align",
                "none",
                "--plan",
                tmp_path / f"{out}.json",
            )
            == 0
        )
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes() != path.read_bytes()
    assert (tmp_path / "a.onnx.json").read_bytes() == (tmp_path / "b.onnx.json").read_bytes()


def test_inspect_prints_tables_and_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "in.onnx"
    onnx.save(attention(), path)
    assert ask("inspect", path) == 0
    text = capsys.readouterr().out
    assert "heads" in text
    assert "Ceiling" in text
    assert ask("inspect", path, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    kinds = {g["kind"]: g for g in found["groups"] if not g["alternative"]}
    assert kinds["heads"]["units"] == 4
    assert 0 < found["left"]["floor"]["parameters"] < found["left"]["half"]["parameters"] < 1
    assert ask("inspect") == 2
    assert "--ops" in capsys.readouterr().err


def test_inspect_ops_needs_no_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert ask("inspect", "--ops", "--json") == 0
    found = {line["op"]: line for line in json.loads(capsys.readouterr().out)}
    assert found["Conv"]["kind"] == "dynamic"
    assert found["NonZero"]["kind"] != "row"


def test_unknown_op_is_frozen_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    b = Builder()
    x = b.op("Relu", [b.conv("x", "conv1", 3, 8)], "relu")
    b.nodes.append(helper.make_node("Mystery", [x], ["z"], name="mystery", domain="my.domain"))
    model = b.model({"x": [1, 3, 8, 8]}, "z", domain="my.domain")
    model.graph.value_info.append(helper.make_tensor_value_info("z", FLOAT, [1, 8, 8, 8]))
    onnx.save(model, tmp_path / "in.onnx")
    assert ask("inspect", tmp_path / "in.onnx", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["without_row"][0]["op"] == "my.domain::Mystery"
    assert found["groups"] == []


def process(*args: object, **more: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "onnxprune", *(str(a) for a in args)]
    return subprocess.run(command, capture_output=True, text=True, check=False, **more)  # type: ignore[call-overload]


def test_help_and_version_load_nothing_heavy() -> None:
    code = (
        "import sys; from onnxprune.cli import main\n"
        "try: main(['prune', '--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'onnx', 'numpy', 'onnxruntime', 'networkx', 'rich', 'scipy'} & set(sys.modules)\n"
        "sys.exit(f'loaded {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "exit codes:" in done.stdout
    assert process("--version").stdout == "onnxprune 0.1.0\n"


@pytest.mark.parametrize(
    ("command", "package"),
    [
        ("prune", "onnxprune.criteria"),
        ("prune", "onnxprune.budgets"),
        ("sparsify", "onnxprune.sparsity.methods"),
        ("run", "onnxprune.passes"),
    ],
)
def test_help_names_every_file_that_can_be_asked_for(
    command: str, package: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    words = re.findall(r"\w+", capsys.readouterr().out)
    assert set(registry.names(package)) - set(words) == set()


@pytest.mark.parametrize("given", [None, "9"])
def test_threads_of_numpy_do_not_wait_busily(given: str | None) -> None:
    code = (
        "import os, sys; from onnxprune.cli import main\n"
        "main(['inspect', 'missing.onnx'])\n"  # numpy is first imported in there
        "print(os.environ['OPENBLAS_THREAD_TIMEOUT'], 'numpy' in sys.modules)"
    )
    env = {n: v for n, v in os.environ.items() if n != "OPENBLAS_THREAD_TIMEOUT"}
    env |= {"OPENBLAS_THREAD_TIMEOUT": given} if given else {}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=env)
    assert done.stdout == f"{given or 4} True\n", done.stderr


def test_pruning_does_not_load_what_it_does_not_need(model: Path, tmp_path: Path) -> None:
    args = ["prune", str(model), str(tmp_path / "out.onnx"), "--ratio", "0.5", "--align", "none"]
    code = (
        f"import sys; from onnxprune.cli import main; code = main({args!r})\n"
        "heavy = {'rich', 'scipy', 'onnx.reference', 'onnx_graphsurgeon', 'pandas', 'networkx'} & set(sys.modules)\n"
        "heavy |= {'onnxprune.sparsity.journey'} & set(sys.modules)\n"
        "sys.exit(f'loaded {heavy}' if heavy else code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_closed_pipe_is_no_traceback(tmp_path: Path) -> None:
    onnx.save(attention(), tmp_path / "in.onnx")
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "onnxprune", "inspect", str(tmp_path / "in.onnx"), "--json"]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert done.returncode == 141
    assert done.stderr == ""


def test_unexpected_errors_ask_for_a_report(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("of all things")

    monkeypatch.setattr("onnxprune.pruning.journey.prune", fail)
    assert ask("prune", model, tmp_path / "out.onnx", "--ratio", 0.5) == 1
    text = capsys.readouterr().err
    assert "please report it" in text
    assert "Traceback" not in text
    assert ask("prune", model, tmp_path / "out.onnx", "--ratio", 0.5, "-v") == 1
    assert "Traceback" in capsys.readouterr().err


def test_interrupt(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("onnxprune.pruning.journey.prune", stop)
    assert ask("prune", model, tmp_path / "out.onnx", "--ratio", 0.5) == 130
    assert "interrupted; nothing was written." in capsys.readouterr().err


def test_what_was_written_over_and_over_is_named_once(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    (tmp_path / "best.onnx").touch()
    told = iter([[], [*[tmp_path / "best.onnx"] * 3, tmp_path / "copy-that-has-gone.onnx"]])
    monkeypatch.setattr(sys.modules["onnxprune.cli.main"], "written", lambda: next(told))
    monkeypatch.setattr("onnxprune.pruning.journey.prune", stop)
    assert ask("prune", model, tmp_path / "out.onnx", "--ratio", 0.5) == 130
    assert "interrupted; 'best.onnx' had been written, whole." in capsys.readouterr().err


def test_run_passes(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = tmp_path / "one.onnx", tmp_path / "two.onnx"
    assert ask("run", model, one, "--passes", "prune{ratio=0.5 align=none}") == 0
    assert ask("prune", model, two, "--ratio", 0.5, "--align", "none") == 0
    assert one.read_bytes() == two.read_bytes()
    assert ask("run", model, model, "--passes", "prune{ratio=0.5}") == 7
    assert ask("run", model, one, "--passes", "prune{ratio=0.5") == 2
    assert "at character" in capsys.readouterr().err


def test_warnings_are_sentences_on_standard_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = chain()
    weight = next(t for t in model.graph.initializer if t.name == "conv1.weight")
    array = numpy_helper.to_array(weight).copy()
    array[2, 0, 0, 0] = np.nan
    weight.CopyFrom(numpy_helper.from_array(array, weight.name))
    onnx.save(model, tmp_path / "in.onnx")
    assert (
        ask("plan", tmp_path / "in.onnx", "-o", tmp_path / "p.json", "--ratio", 0.5, "--align", "none") == 0
    )
    text = capsys.readouterr().err
    assert text.startswith("onnxprune: warning: ")
    assert "NaN" in text
    out = tmp_path / "out.onnx"
    assert ask("prune", tmp_path / "in.onnx", out, "--ratio", 0.5, "--align", "none", "--no-verify") == 0
    assert "note: 1 of 8 units of 'conv1.weight:0'" in capsys.readouterr().out


def test_what_was_written_before_it_failed_is_named(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise OutputError("It can't be printed; make room.")

    monkeypatch.setattr("onnxprune.cli.commands._finish", fails)
    monkeypatch.chdir(tmp_path)
    assert ask("prune", model, tmp_path / "out.onnx", "--ratio", 0.5, "--plan", tmp_path / "p.json") == 7
    assert (
        "make room. What had been written before is whole: 'p.json', 'out.onnx'." in capsys.readouterr().err
    )


def test_tune_that_is_interrupted_before_it_began_promises_nothing(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("onnxprune.cli.commands.tune", stop)
    line = ("tune", model, tmp_path / "out.onnx", "--max-drop", 1, "--calib", "s.npz", "--labels", "y")
    assert ask(*line) == 130
    assert "interrupted; nothing was written." in capsys.readouterr().err


def test_a_package_that_is_missing_is_no_bug(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def lacks(*_: object, **__: object) -> None:
        raise ModuleNotFoundError("No module named 'zstandard'", name="zstandard")

    monkeypatch.setattr("onnxprune.pruning.journey.prune", lacks)
    assert ask("prune", model, tmp_path / "out.onnx", "--ratio", 0.5) == 1
    said = capsys.readouterr().err
    assert "'pip install zstandard'" in said
    assert "bug" not in said
