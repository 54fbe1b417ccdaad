"""What the page says beside the cut: other sizes, next commands, times of layers, why groups stayed whole, families."""

import re
import shlex
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from small_models import chain, residual

import onnxprune
from onnxprune.cli import main
from onnxprune.cli.arguments import build
from onnxprune.pruning.family import member_path
from onnxprune.pruning.outlook import whole_reasons
from onnxprune.report import page
from onnxprune.report.page.beyond import commands, outlook
from report.test_page import ATTACK, Page, report, sound


def with_samples(**more: Any) -> dict[str, Any]:
    samples = {"x": np.random.default_rng(21).normal(size=(48, 3, 8, 8)).astype(np.float32)}
    model = chain()
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "n"
    return onnxprune.prune(model, target="macs=0.6", align=None, calib=samples, **more).report.to_json()


def test_other_sizes_are_what_a_cut_leaves() -> None:
    values = report(residual())
    assert [line["asked"] for line in values["outlook"]] == [0.7, 0.5, 0.3]
    for line in values["outlook"]:
        made = onnxprune.prune(residual(), ratio=line["ratio"], align=None).report.to_json()
        for what in ("macs", "parameters"):
            left = made[what]["after"] / made[what]["before"]
            assert left == pytest.approx(line[what], abs=1e-3)
        assert line["macs"] <= line["asked"]
    assert onnxprune.inspect(residual()).to_json()["outlook"] == values["outlook"]
    text = page.render(values)
    for line in values["outlook"]:
        assert f">{100 * line['macs']:.0f} %<" in text
    assert "median error" not in text


def test_errors_of_other_sizes_are_read_off_the_curves() -> None:
    values = {
        "outlook": [{"asked": 0.5, "ratio": 0.5, "macs": 0.49, "parameters": 0.52}],
        "calibration": {
            "curves": {"a": [[0, 0.0], [8, 0.4]], "b": [[0, 0.0], [2, 0.1], [4, 0.3]], "c": [[0, 0.2]]}
        },
        "groups": [{"name": "a", "units": 8}, {"name": "b", "units": 4}, {"name": "c", "units": 9}],
    }
    text = outlook(values)
    assert re.findall(r'class="n">([^<]*)</td>', text) == ["49 %", "52 %", "0.50", "0.2", "0.2"]
    assert "outlook" in with_samples()


def test_next_commands_can_be_run(tmp_path: Path) -> None:
    inspection = onnxprune.inspect(chain()).to_json()
    for values in (inspection, report(chain()), with_samples()):
        values["files"] = {"input": "a model's.onnx"}
        found = list(commands(values))
        assert found
        for command, why in found:
            words = shlex.split(command)
            assert words[0] == "onnxprune"
            args = build().parse_args(words[1:])
            assert "a model's.onnx" in words
            assert args.command in ("prune", "profile")
            assert why
        text = page.render(values)
        sound(Page(text))
        assert text.count('class="copied"') == len(found) + bool(values.get("command"))
    nothing = onnxprune.inspect(onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[2] x) => (float[2] y) {y = Relu(x)}'
    )).to_json()  # fmt: skip
    assert list(commands(nothing)) == []
    assert 'id="next"' not in page.render(nothing)


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"ratio": 0.5, "align": None, "ignore": ("conv1",)}, "--ignore or --only leaves it alone"),
        ({"target": "macs=0.9", "align": None}, "units of other groups cost less for what they save"),
    ],
)
def test_why_a_group_was_left_whole(how: dict[str, Any], says: str) -> None:
    values = onnxprune.prune(chain(), **how).report.to_json()
    whole = values["whole"]
    uncut = {g["name"] for g in values["groups"] if not g["removed"]}
    assert set(whole) == uncut
    assert says in whole.values()
    assert all(reason in page.render(values) for reason in whole.values())


def test_why_a_ratio_leaves_a_group_whole() -> None:
    group: Any = SimpleNamespace(name="g", units=8)
    one: Any = SimpleNamespace(name="one", units=8)
    for align, says in (
        (1, "0.05 of its 8 units is less than one"),
        (4, "the width nearest to what the ratio asks is all of its 8 units, on multiples of 4"),
    ):
        decision: Any = SimpleNamespace(removed={"g": np.array([], int), "one": np.array([3])}, align=align)
        found = whole_reasons(onnxprune.Options(ratio=0.05), [group, one], {"g", "one"}, decision)
        assert found == {"g": says}


def test_times_of_layers_are_measured_where_time_is() -> None:
    values = onnxprune.prune(residual(), ratio=0.5, align=None).report.to_json()
    assert 'id="times"' not in page.render(values)
    values["latency"] = {
        "before": {"p50_ms": 4.0, "p95_ms": 5.0}, "after": {"p50_ms": 2.0, "p95_ms": 2.5},
        "ratio": 2.5, "interval": [2.4, 2.6], "seconds": 0.001,
        "layers": [{"name": ATTACK, "op": "Conv", "before": 2e-3, "after": 5e-4},
                   {"name": "fc", "op": "Gemm", "before": 0.0, "after": 2e-5}],
    }  # fmt: skip
    values["targets"] = [
        {"target": "latency=0.5", "unit": "s", "asked": 0.00125, "got": 0.001, "holds": True},
        {"target": "latency=2ms", "unit": "s", "asked": 0.002, "got": 0.001, "holds": True},
    ]
    text = page.render(values)
    sound(Page(text))
    assert "<img" not in text
    for part in (">2 ms<", ">0.5 ms<", ">0.020 ms<", ">–<", "2.50× faster", "40.0 %"):
        assert part in text, part
    # one clock: what was got is what the card says
    assert "Target latency=0.5: asked 50.0 % of the time, got 40.0 %." in text
    assert "Target latency=2ms: asked 2 ms, got 1 ms." in text


def test_a_family_is_one_page(tmp_path: Path) -> None:
    model = chain()
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "n"
    onnx.save(model, tmp_path / "in.onnx")
    np.savez(tmp_path / "s.npz", x=np.random.default_rng(22).normal(size=(48, 3, 8, 8)).astype(np.float32))
    line = [
        "prune",
        tmp_path / "in.onnx",
        tmp_path / "out.onnx",
        "--target",
        "macs=0.7,0.5",
        "--align",
        "none",
        "-q",
    ]
    line += ["--calib", tmp_path / "s.npz", "--report", tmp_path / "r.html", "--recover", "lstsq"]
    assert main([str(word) for word in line]) == 0
    text = (tmp_path / "r.html").read_text()
    found = Page(text)
    links = [
        attrs["href"]
        for tag, attrs in found.tags
        if tag == "a" and not (attrs["href"] or "#").startswith("#")
    ]
    assert links == [member_path("r.html", f"macs={share}").name for share in ("0.7", "0.5")]
    assert all((tmp_path / str(link)).is_file() for link in links)
    assert text.count("<circle") == 2
    assert "macs=0.7" in text
    (tmp_path / "r.html").unlink()
    line[line.index("--report") + 1] = tmp_path / "r.json"
    assert main([str(word) for word in line]) == 0
    assert not (tmp_path / "r.json").exists()


def test_headings_are_in_order() -> None:
    zeros = onnxprune.sparsify(chain(), pattern="2:4").report.to_json()
    for text in (
        page.render(report(residual())),
        page.render(with_samples()),
        page.render(onnxprune.inspect(residual()).to_json()),
        page.render_zeros(zeros),
    ):
        levels = [int(tag[1]) for tag, _ in Page(text).tags if re.fullmatch(r"h\d", tag)]
        assert levels[0] == 1
        assert all(after <= before + 1 for before, after in pairwise(levels))
