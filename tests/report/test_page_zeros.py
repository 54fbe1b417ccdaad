"""The page of `onnxprune sparsify`: it says what the JSON says, and names stay text."""

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from small_models import chain

import onnxprune
from onnxprune.cli import main
from onnxprune.report import page
from onnxprune.report.page import zeros
from report.test_page import ATTACK, Page, attacked, sound


@cache
def _text(kind: str) -> str:
    model = chain()
    if kind == "plain":
        found = onnxprune.sparsify(model, pattern="2:4")
    else:
        model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "n"
        x = np.random.default_rng(0).normal(size=(48, 3, 8, 8)).astype(np.float32)
        samples = {"x": x, "y": np.arange(48) % 10}
        found = onnxprune.sparsify(model, pattern="2:4", permute=True, calib=samples, labels="y")
    return found.report.dumps()


def report(kind: str = "plain") -> dict[str, Any]:
    """Return a report; in ``samples`` something was fitted and reordered."""
    values: dict[str, Any] = json.loads(_text(kind))
    return values


@pytest.mark.parametrize("kind", ["plain", "samples"])
def test_structure(kind: str) -> None:
    values = report(kind)
    found = Page(page.render_zeros(values))
    ids = sound(found)
    assert {"summary", "weights", "left", "run", "theme", "main"} <= set(ids)
    assert ("agreement" in ids) == (kind == "samples")
    assert sum(attrs.get("class") == "weight" for _, attrs in found.tags) == len(values["tensors"])
    boxes = [attrs for _, attrs in found.tags if attrs.get("class") == "wide"]
    assert (
        len(boxes) == [tag for tag, _ in found.tags].count("table") == 1
    )  # a table scrolls in a box of its own


def test_what_the_page_says_is_what_the_report_says() -> None:
    values = report("samples")
    text = page.render_zeros(values)
    share = f"{100 * values['zeros'] / values['weights']:.1f} %"
    cores = values["speed"]["sparse_tensor_cores"]
    for part in (
        f'<p class="big">{share}</p>',
        cores,
        values["speed"]["onnxruntime_cpu"],
        "Packed 2:4",
        "on 43 samples",
    ):
        assert part in text, part
    for line in values["tensors"]:
        row = text.partition(f"<code>{line['tensor']}</code>")[2].partition("</tr>")[0]
        assert f"{100 * line['zeros'] / line['weights']:.1f} %" in row
        assert " × ".join(map(str, line["dims"])) in row
        why = line["tensor_cores"]["why_not"] or "too small to gain"
        assert why in row
        for key in ("before", "after"):
            assert f">{line['fit'][key]:.3g}<" in row
    for one in values["left"]:
        assert f"<code>{one['tensor']}</code>" in text
    values["tensors"][0]["two_four"] = False
    assert "2:4 doesn't hold" in page.render_zeros(values)
    for line in values["tensors"]:
        line["two_four"], line["fit"] = False, {}
    less = page.render_zeros(values)
    assert "Packed 2:4" not in less
    assert "error after" not in less


def test_only_what_is_useful_is_praised() -> None:
    values = report()
    assert '<li class="warn"><b>GPU</b>' in page.render_zeros(values)
    values["tensors"][0] |= {"useful": True, "two_four": True}
    values["tensors"][0]["tensor_cores"] = {"eligible": True, "why_not": ""}
    assert '<li class="good"><b>GPU</b>' in page.render_zeros(values)


def test_long_tables_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zeros, "MOST_LINES", 1)
    values = report()
    text = page.render_zeros(values)
    assert text.count('<tr class="weight">') == 1
    assert f"and {len(values['tensors']) - 1} more; the JSON report has them all" in text


def test_nothing_comes_from_outside() -> None:
    text = page.render_zeros(report("samples"))
    assert not re.search(r"https?:|//[a-z]|@import|url\(|\bfetch\(|XMLHttp|WebSocket|import\(", text)
    assert "default-src 'none'; script-src 'sha256-" in text


def test_names_stay_text() -> None:
    model = attacked()
    values = onnxprune.sparsify(model, pattern="2:4").report.to_json()
    values["command"] = values["files"]["input"] = values["created"] = values["pattern"] = ATTACK
    values["notes"] = [ATTACK]
    values["left"] = [{"tensor": ATTACK, "reason": ATTACK}]
    values["tensors"][0] |= {"tail": ATTACK, "method": ATTACK}
    values["tensors"][0]["tensor_cores"] = {"eligible": False, "why_not": ATTACK}
    values["speed"] = dict.fromkeys(values["speed"], ATTACK)
    assert any(ATTACK in line["tensor"] for line in values["tensors"])
    text = page.render_zeros(values)
    assert "img" not in [tag for tag, _ in Page(text).tags]
    assert text.count("<script") == text.count("</script") == 1
    assert "<!--" not in text.partition("<!doctype")[2]


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, out, found = tmp_path / "a & b.onnx", tmp_path / "out.onnx", tmp_path / "r.html"
    onnx.save(chain(), model)
    line = ["sparsify", str(model), str(out), "--pattern", "2:4", "-q", "--report"]
    assert main([*line, str(found)]) == 0
    text = found.read_text(encoding="utf-8")
    Page(text)
    assert "<h1>a &amp; b.onnx" in text
    assert "onnxprune sparsify &#x27;" in text
    assert main([*line, str(tmp_path / "r.json")]) == 0
    values = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))
    assert values["files"] == {"input": "a & b.onnx", "output": "out.onnx"}
    assert values["command"].startswith("onnxprune sparsify")
    assert capsys.readouterr().err == ""
