"""The page in a real browser without a screen: what the script draws, and that it complains of nothing."""

import html
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from small_models import residual

import onnxprune
from onnxprune.report import page
from report.test_page import attacked, report, with_samples
from report.test_page_zeros import report as zeros_report

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
#: No first run, no requests of the browser's own.
_FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --enable-logging=stderr --dump-dom --virtual-time-budget=3000"
)
FLAGS = _FLAGS.split()

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(BROWSER is None, reason="needs Chromium"),
]


def drawn(text: str, tmp_path: Path, width: int = 1280) -> tuple[str, list[str]]:
    """Return the document after the script has run, and what was said on the console."""
    file = tmp_path / "page.html"
    file.write_text(text, encoding="utf-8")
    place = f"--user-data-dir={tmp_path / 'profile'}"
    done = subprocess.run(
        [str(BROWSER), *FLAGS, f"--window-size={width},900", place, file.as_uri()],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    said = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return done.stdout, said


def many(values: dict[str, Any], count: int) -> dict[str, Any]:
    """Repeat the groups and layers of a report under other names."""
    groups, layers = values["groups"], values["layers"]
    values["groups"] = [{**g, "name": f"{g['name']}/{n}"} for n in range(count) for g in groups]
    values["layers"] = [
        {
            **layer,
            "name": f"{layer['name']}/{n}",
            "writes": [f"{name}/{n}" for name in layer["writes"]],
            "reads": [f"{name}/{n}" for name in layer["reads"]],
        }
        for n in range(count)
        for layer in layers
    ]
    return values


def test_all_parts_are_drawn(tmp_path: Path) -> None:
    values = with_samples()
    text, said = drawn(page.render(values), tmp_path)
    assert said == []
    assert text.count('<tr class="line"') == len(values["groups"])
    assert text.count('class="rail"') == len(values["groups"])
    assert text.count('class="row"') == len(values["layers"])
    assert text.count('class="curve"') == len(values["calibration"]["curves"])
    assert text.count('class="fit"') == len(values["calibration"]["layers"])


def test_a_script_that_fails_is_seen(tmp_path: Path) -> None:
    """The control."""
    _, said = drawn("<script>null.x</script>", tmp_path)
    assert said


def test_hostile_names_are_text(tmp_path: Path) -> None:
    values = report(attacked())
    text, said = drawn(page.render(values), tmp_path)
    assert said == []
    assert "<img" not in text.replace("&lt;img", "").partition("<script")[0]
    assert text.count('<tr class="line"') == len(values["groups"])


def test_thousands_of_groups(tmp_path: Path) -> None:
    text, said = drawn(page.render(many(report(residual()), 1000)), tmp_path)
    assert said == []
    assert text.count('<tr class="line"') == 100
    assert "Show 300 more of" in text
    assert 1 <= text.count('class="row"') <= 600


def test_an_inspection(tmp_path: Path) -> None:
    found = onnxprune.inspect(residual())
    text, said = drawn(found.page("residual.onnx"), tmp_path, width=500)
    assert said == []
    assert text.count('<tr class="line"') == len([g for g in found.groups if not g.alternative])


def overflow(text: str, tmp_path: Path, width: int) -> int:
    """Return by how many pixels a page is wider than a window of a width, which is a frame in another page."""
    frame = (
        f'<iframe id="frame" width="{width}" height="800" style="border:0" srcdoc="{html.escape(text)}"></iframe>'
        "<script>addEventListener('load', () => { const root = document.getElementById('frame').contentDocument"
        ".documentElement; document.body.dataset.over = root.scrollWidth - root.clientWidth; });</script>"
    )
    found, _ = drawn(f"<!doctype html><body>{frame}</body>", tmp_path)
    over = re.search(r'data-over="(-?\d+)"', found)
    assert over
    return int(over[1])


@pytest.mark.parametrize("width", [360, 390, 1280])
@pytest.mark.parametrize("kind", ["cut", "zeros"])
def test_no_page_is_wider_than_its_window(kind: str, width: int, tmp_path: Path) -> None:
    text = page.render(with_samples()) if kind == "cut" else page.render_zeros(zeros_report("samples"))
    assert overflow(text, tmp_path, width) == 0


def test_a_page_that_is_too_wide_is_seen(tmp_path: Path) -> None:
    """The control: the same page, whose table has no box of its own."""
    text = page.render_zeros(zeros_report("samples")).replace('class="wide"', "")
    assert overflow(text, tmp_path, 360) > 0


@pytest.mark.parametrize("kind", ["plain", "samples"])
def test_a_page_on_zeros(kind: str, tmp_path: Path) -> None:
    values = zeros_report(kind)
    text, said = drawn(page.render_zeros(values), tmp_path)
    assert said == []
    assert text.count('<tr class="weight"') == len(values["tensors"])
    assert ">Theme: system</button>" in text
    assert 'id="theme" hidden' not in text  # the script has run
