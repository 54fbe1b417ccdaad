"""The report as a page: one file, nothing from outside, nothing from a model gets in as markup."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from small_models import MODELS, chain, residual

import onnxprune
from onnxprune.cli import main
from onnxprune.pruning.outline import thinned
from onnxprune.report import page
from onnxprune.report.page.data import embedded, facts

#: Elements that have no end tag.
VOID = {"meta", "br", "input", "link", "img"}
#: Names that try to get out of wherever they are written.
ATTACK = "</script><img src=x onerror=alert(1)>\"'&<!--"


class Page(HTMLParser):
    """Tags, attributes, ids and texts; a tag that isn't closed in order is an error."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, str] = {}
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        at = self.open[-1] if self.open else ""
        self.texts[at] = self.texts.get(at, "") + data

    def ids(self) -> list[str]:
        return [attrs["id"] or "" for _, attrs in self.tags if "id" in attrs]


def sound(found: Page) -> list[str]:
    """Return the ids of a page, which are unique, and which whatever points somewhere finds."""
    ids = found.ids()
    assert len(ids) == len(set(ids))
    for tag, attrs in found.tags:
        if tag == "a":
            assert (attrs["href"] or "").removeprefix("#") in ids
        if "aria-labelledby" in attrs:
            assert attrs["aria-labelledby"] in ids
        assert not any(key.startswith("on") for key in attrs)
    assert [tag for tag, _ in found.tags].count("h1") == 1
    return ids


def report(model: onnx.ModelProto, **more: Any) -> dict[str, Any]:
    return onnxprune.prune(model, ratio=0.5, align=None, **more).report.to_json()


def with_samples() -> dict[str, Any]:
    samples = {"x": np.random.default_rng(0).normal(size=(48, 3, 8, 8)).astype(np.float32)}
    model = chain()
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "n"
    return onnxprune.prune(model, target="macs=0.6", align=None, calib=samples).report.to_json()


@pytest.mark.parametrize("name", MODELS)
def test_structure(name: str) -> None:
    found = Page(page.render(report(MODELS[name]())))
    ids = sound(found)
    assert {"summary", "groups", "map", "frozen", "run", "data", "theme", "main"} <= set(ids)
    assert "sensitivity" not in ids
    assert "agreement" not in ids


def test_what_the_page_says_is_what_the_report_says() -> None:
    values = report(chain())
    values["latency"] = {
        "before": {"p50_ms": 4.0, "p95_ms": 5.0},
        "after": {"p50_ms": 2.0, "p95_ms": 2.5},
        "ratio": 2.1,  # how many times as fast, run in turns
        "interval": [1.8, 2.2],
    }
    text = page.render(values)
    drawn = facts(values)
    assert [g["name"] for g in drawn["groups"]] == [g["name"] for g in values["groups"]]
    assert [g["removed"] for g in drawn["groups"]] == [g["removed"] for g in values["groups"]] == [4, 4]
    assert [(layer["shape"], layer["left"]) for layer in drawn["layers"]] == [
        ([8, 3, 3, 3], [4, 3, 3, 3]),
        ([8, 8, 3, 3], [4, 4, 3, 3]),
        ([10, 8], [10, 4]),
    ]
    assert [(layer["reads"], layer["writes"]) for layer in drawn["layers"]] == [
        ([], [0]),
        ([0], [1]),
        ([1], []),
    ]
    assert drawn["layers"][0]["macs"] == [64 * 9 * 3 * 8, 64 * 9 * 3 * 4]
    for part in ("2.10× faster", "95 % interval 1.80× to 2.20×", "p95 2.5 ms of 5 ms", ">342<", "of 962"):
        assert part in text, part
    assert json.loads(Page(text).texts["script"].partition("(() =>")[0]) == drawn
    del values["latency"]
    assert "Latency" not in page.render(values)


def test_with_samples() -> None:
    values = with_samples()
    curves = values["calibration"]["curves"]
    assert set(curves) <= {g["name"] for g in values["groups"]}
    for points in curves.values():
        assert 1 < len(points) <= 40
        assert points[0] == [0, 0.0]
        assert points == sorted(points)
    ids = Page(page.render(values)).ids()
    assert {"sensitivity", "layers"} <= set(ids)
    drawn = facts(values)
    assert len(drawn["fits"]) == len(values["calibration"]["layers"]) > 0


def test_the_same_report_gives_the_same_bytes() -> None:
    values = report(chain())
    assert page.render(values) == page.render(json.loads(json.dumps(values)))


def test_nothing_comes_from_outside() -> None:
    text = page.render(with_samples())
    without_names = text.replace(
        "http://www.w3.org/2000/svg", ""
    )  # the name of a namespace; it is not asked for
    assert not re.search(r"https?:|//[a-z]|@import|url\(|\bfetch\(|XMLHttp|WebSocket|import\(", without_names)
    assert not {tag for tag, _ in Page(text).tags} & {
        "link",
        "img",
        "iframe",
        "object",
        "embed",
        "base",
        "form",
    }
    assert "default-src 'none'; script-src 'sha256-" in text


def attacked() -> onnx.ModelProto:
    """A model in which everything that has a name has a hostile one."""
    model = residual()
    for number, node in enumerate(model.graph.node):
        node.name = f"{ATTACK}{number}"
        for names in (node.input, node.output):
            names[:] = [name + ATTACK if name not in ("x", "") else name for name in names]
    for tensor in model.graph.initializer:
        tensor.name += ATTACK
    for value in model.graph.output:
        value.name += ATTACK
    del model.graph.value_info[:]
    return model


def test_names_stay_text() -> None:
    hostile = report(attacked())
    hostile["command"] = hostile["files"]["input"] = hostile["created"] = ATTACK
    hostile["notes"] = [ATTACK]
    hostile["put_back"] = [{"group": hostile["groups"][0]["name"], "reason": ATTACK}]
    hostile["input_shapes"] = {ATTACK: [1]}
    assert any(ATTACK in g["name"] for g in hostile["groups"])
    text = page.render(hostile)
    found = Page(text)
    assert "img" not in [tag for tag, _ in found.tags]
    assert text.count("<script") == text.count("</script") == 2
    assert "<!--" not in text.partition("<!doctype")[2].replace("\\u003c!--", "")
    assert ATTACK in json.loads(found.texts["script"].partition("(() =>")[0])["layers"][0]["name"]


@pytest.mark.parametrize("text", [ATTACK, "\u2028", "\ud800", "]]>", "é"])
def test_embedded_data_is_inert_and_comes_back(text: str) -> None:
    found = embedded([text])
    assert not set("<>&\u2028\u2029") & set(found)
    assert json.loads(found) == [text.encode("utf-8", "replace").decode()]


def test_a_thinned_curve_keeps_its_ends() -> None:
    error = np.concatenate([np.linspace(0, 5, 500), [np.inf] * 12])
    points = thinned(error)
    assert len(points) == 40
    assert (points[0], points[-1]) == ([0, 0.0], [499, 5.0])
    assert thinned([np.inf]) == []


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, out, found = tmp_path / "a & b.onnx", tmp_path / "out.onnx", tmp_path / "r.html"
    onnx.save(chain(), model)
    line = ["prune", str(model), str(out), "--ratio", "0.5", "--align", "none", "--report", str(found)]
    assert main([*line, "--plan", str(tmp_path / "plan.json")]) == 0
    text = found.read_text(encoding="utf-8")
    assert "<h1>a &amp; b.onnx" in text
    assert "onnxprune prune &#x27;" in text  # quoted as a shell needs it, and escaped
    assert main(["apply", str(model), str(tmp_path / "plan.json"), str(out), "--report", str(found)]) == 0
    assert "onnxprune apply" in found.read_text(encoding="utf-8")
    assert main(["inspect", str(model), "--html", str(found)]) == 0
    text = found.read_text(encoding="utf-8")
    Page(text)
    assert "What would be left" in text
    assert capsys.readouterr().err == ""
    assert main(["inspect", str(model), "--html", str(model)]) == 7


def test_inspection_of_everything() -> None:
    for name, make in MODELS.items():
        found = Page(onnxprune.inspect(make()).page(name))
        assert {"summary", "groups", "map", "frozen", "run"} <= set(found.ids())


def test_inputs_and_outputs_that_shrank_are_shown_where_there_are_any() -> None:
    values = report(chain())
    assert "interface" not in Page(page.render(values)).ids()
    change = {"name": ATTACK, "kind": "input", "before": ["N", 4, 8], "after": ["N", 2, 8]}
    text = page.render({**values, "interface": [change]})
    found = Page(text)
    assert "interface" in sound(found)
    assert "N x 4 x 8 is now N x 2 x 8" in text
    assert ATTACK not in text
    assert not any(tag == "img" for tag, _ in found.tags)
