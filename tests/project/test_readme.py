"""What the README and the pages of reference say is so."""

import json
import re
import shutil
from pathlib import Path

import pytest

import onnxprune
from onnxprune import cli, errors, registry
from onnxprune.journey import passes as passlist

ROOT = Path(__file__).resolve().parents[2]
COMMANDS, PASSES, PYTHON, REPORT = (
    (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")
    for name in ("commands", "passes", "python", "report")
)
CNN = ROOT / "samples" / "01_digits_cnn" / "digits_cnn.onnx"


def block(text: str, language: str) -> str:
    (found,) = re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)
    return str(found)


def table(text: str, header: str) -> list[list[str]]:
    """Return the cells of the table with this header line."""
    lines = text[text.index(header) :].splitlines()[2:]
    rows = []
    for line in lines:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip().strip("|"))])
    return rows


def test_the_python_block_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(CNN, tmp_path / "model.onnx")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(block(PYTHON, "python"), names)
    assert (tmp_path / "small.onnx").stat().st_size < CNN.stat().st_size
    assert isinstance(names["result"], onnxprune.Result)


def test_the_report_has_the_keys_of_the_table() -> None:
    report = json.loads(onnxprune.prune(CNN, ratio=0.5).report.dumps())
    named = {key for row in table(REPORT, "| key | |") for key in re.findall(r"`(\w+)`", row[0])}
    assert named == set(report) - {"format"} | {"calibration", "interface", "latency", "vocabulary", "depth"}


def test_the_exit_codes_are_those_of_the_errors() -> None:
    cells = [cell for row in table(COMMANDS, "| | | | |") for cell in row]
    codes = {int(cell) for cell in cells if cell.isdigit()}
    known = {
        kind.exit_code
        for kind in vars(errors).values()
        if isinstance(kind, type) and hasattr(kind, "exit_code")
    }
    assert codes == known | {0, 129, 130, 143}


@pytest.mark.parametrize("line", [line for line in COMMANDS.splitlines() if line.startswith("onnxprune ")])
def test_the_commands_are_known(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = line.split()
    with pytest.raises(SystemExit) as stopped:
        raise SystemExit(cli.main([words[1], "--help"]))
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    assert [word for word in words if word.startswith("--") and word not in shown] == []


def test_the_options_of_the_table_exist(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        raise SystemExit(cli.main(["prune", "--help"]))
    shown = capsys.readouterr().out
    named = {flag for row in table(COMMANDS, "| option | |") for flag in re.findall(r"--[\w-]+", row[0])}
    assert len(named) > 10
    assert [flag for flag in sorted(named) if flag not in shown] == []


def test_the_passes_of_the_table_are_those_of_the_folder() -> None:
    named = [re.findall(r"`([^`]+)`", row[0])[0] for row in table(PASSES, "| pass | what it does |")]
    assert sorted(passlist.parse(",".join(named))[i].name for i in range(len(named))) == registry.names(
        "onnxprune.passes"
    )


def test_the_criteria_are_those_of_the_folder() -> None:
    (row,) = [row for row in table(COMMANDS, "| option | |") if "--criterion" in row[0]]
    named = set(re.findall(r"`(\w+)`", row[1]))
    assert named <= set(registry.names("onnxprune.criteria"))
