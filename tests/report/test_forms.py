"""The forms of a report: by the suffix, each with what it is for, and others refused."""

import csv
from pathlib import Path

import onnx
import pytest
from small_models import chain

import onnxprune
from onnxprune import cli
from onnxprune.errors import UsageError
from onnxprune.report.forms import form_of, markdown, table_csv


@pytest.mark.parametrize(
    ("name", "form"),
    [("r.json", "json"), ("r.HTM", "html"), ("r.md", "md"), ("r.csv", "csv"), ("/dev/stdout", "json")],
)
def test_the_suffix_says_the_form(name: str, form: str) -> None:
    assert form_of(name) == form


def test_an_unknown_suffix_is_refused_before_any_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    onnx.save(chain(), tmp_path / "m.onnx")
    command = ["prune", str(tmp_path / "m.onnx"), str(tmp_path / "o.onnx"), "--ratio", "0.5", "--report"]
    assert cli.main([*command, str(tmp_path / "r.pdf")]) == 2
    assert "ends in '.pdf'" in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.onnx"]
    with pytest.raises(UsageError):
        onnxprune.prune(chain(), ratio=0.5).report.save(tmp_path / "r.xlsx")


def test_tables_and_pages_say_what_the_report_says(tmp_path: Path) -> None:
    reports = [
        onnxprune.prune(chain(), ratio=0.5, align=None).report,
        onnxprune.sparsify(chain(), pattern="unstructured", sparsity=0.5).report,
    ]
    for report in reports:
        report.save(tmp_path / "r.md")
        report.save(tmp_path / "r.csv")
        page = (tmp_path / "r.md").read_text()
        assert "accuracy unknown" in page
        assert page.count("```") == 2
        values = report.to_json()
        rows = list(csv.DictReader((tmp_path / "r.csv").open()))
        names = (
            [g["name"] for g in values["groups"]]
            if "groups" in values
            else [t["tensor"] for t in values["tensors"]]
        )
        assert [row.get("name", row.get("tensor")) for row in rows] == names


def test_fences_and_commas_in_names_break_nothing() -> None:
    assert markdown("m", "a ```` b").startswith("# m\n\n`````text\n")
    text = table_csv({"groups": [{"name": 'a,"b"\n', "removed": 1, "tensors": ["x"]}]})
    assert next(csv.DictReader(text.splitlines(keepends=True)))["name"] == 'a,"b"\n'
    assert table_csv({}) == "\n"


def test_no_name_is_a_formula_or_steers_what_shows_it() -> None:
    names = ["=1+1", "+1", "-1", "@a", "a=1"]
    read = csv.DictReader(table_csv({"groups": [{"name": n, "loss": -0.5} for n in names]}).splitlines())
    assert [(row["name"], row["loss"]) for row in read] == [
        *((f"'{name}", "-0.5") for name in names[:-1]), ("a=1", "-0.5")
    ]  # fmt: skip
    assert "\x1b" not in markdown("\x1b[31m", "\x1b]0;title\x07")
