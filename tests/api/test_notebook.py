"""What a notebook and an interpreter show: short, sound as HTML, and tables as frames of pandas."""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from report.test_page import ATTACK, Page, attacked
from small_models import MODELS, chain, residual

import onnxprune
from onnxprune import api
from onnxprune.errors import UsageError
from onnxprune.report import live
from onnxprune.report.page import notebook


def shown(name: str = "residual") -> dict[str, Any]:
    model = MODELS[name]()
    result = onnxprune.prune(model, ratio=0.5, align=None)
    return {
        "Result": result,
        "Report": result.report,
        "Plan": result.plan,
        "Inspection": onnxprune.inspect(model),
        "Explanation": onnxprune.explain(model, result.plan.groups[0].name.rpartition(":")[0]),
    }


@pytest.mark.parametrize("name", MODELS)
def test_reprs_are_short_and_cells_are_small(name: str) -> None:
    for kind, value in shown(name).items():
        assert repr(value).startswith(f"<{kind}: ")
        assert len(repr(value)) < 300
        text = value._repr_html_()
        assert 1000 < len(text.encode()) < notebook.MOST
        found = Page(text)
        assert {tag for tag, _ in found.tags}.isdisjoint({"script", "link", "iframe", "a", "img"})
        assert found.ids() == []  # several cells share a page


def test_a_cell_says_what_the_report_says() -> None:
    values = shown()
    text = values["Report"]._repr_html_()
    group = max(values["Report"].groups, key=lambda g: g["macs"])
    assert group["name"] in text
    assert f"{group['units'] - group['removed']:,} of {group['units']:,}" in text
    assert "Accuracy unknown" in text
    assert "Proved" in text
    assert "What would be left" in values["Inspection"]._repr_html_()
    assert values["Plan"].brief() in values["Plan"]._repr_html_()
    assert "frozen" in values["Explanation"]._repr_html_() + str(values["Explanation"].to_json())


def test_names_are_shown_and_never_markup() -> None:
    for made in (onnxprune.prune(attacked(), ratio=0.5), onnxprune.inspect(attacked())):
        text = made._repr_html_()
        assert "<img" not in text
        assert "&lt;/script&gt;" in text


def test_what_is_too_long_for_a_cell_is_left_out() -> None:
    assert len(notebook.as_text("x" * 10**6).encode()) < notebook.MOST
    many = notebook.of_lines("text", [("name", ["é" * 1000] * 40), ("other", ["é" * 1000] * 40)])
    assert len(many.encode()) < notebook.MOST
    assert "too long for a cell" in many
    Page(many)


def test_other_facts_show_what_they_print() -> None:
    x = np.random.default_rng(13).normal(size=(24, 3, 8, 8)).astype(np.float32)
    model = chain()
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "n"
    curves = onnxprune.sensitivity(model, calib=x)
    assert "1/2 gone" in curves._repr_html_()
    assert repr(curves).startswith("<Sensitivity: curves of 2 groups")
    zeros = onnxprune.sparsify(model, pattern="2:4")
    assert "2:4" in repr(zeros)
    assert "weights are zero" in repr(zeros.report)


def test_a_steering_name_stays_out_of_a_terminal() -> None:
    model = chain()
    report = onnxprune.prune(model, ratio=0.5).report
    report.files["input"] = "a\x1b[2Jb.onnx"
    assert "\x1b" not in repr(report)


def test_tables_as_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    frames = ModuleType("pandas")
    frames.DataFrame = lambda lines: ("frame", lines)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pandas", frames)
    report = shown()["Report"]
    assert report.to_frame() == ("frame", report.to_json()["groups"])
    assert report.to_frame("frozen") == ("frame", report.to_json()["frozen"])
    assert report.to_frame("put_back") == ("frame", [])
    with pytest.raises(UsageError, match="no table 'group'; tables are cuts"):
        report.to_frame("group")
    with pytest.raises(UsageError, match="no table 'macs'"):
        report.to_frame("macs")
    monkeypatch.setitem(sys.modules, "pandas", None)  # type: ignore[arg-type]
    with pytest.raises(
        UsageError, match="to_frame needs pandas, which isn't installed; 'pip install pandas'"
    ):
        report.to_frame()


def test_help_explains_each_option() -> None:
    text = onnxprune.Options.__doc__ or ""
    for name in onnxprune.Options.__dataclass_fields__:
        assert f"\n{name} : " in text
    assert "``--align``: keep widths on multiples" in text
    assert "l1, l2" in text  # names of files, not a place for them
    assert "{" not in text.replace("{}", "")


class Kernel:
    """Stands for a notebook's kernel: keeps what is displayed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.drawn: list[str] = []
        ipython: Any = ModuleType("IPython")
        ipython.get_ipython = lambda: SimpleNamespace(kernel=object())
        ipython.display = SimpleNamespace(HTML=str, display=self.display)
        monkeypatch.setitem(sys.modules, "IPython", ipython)
        monkeypatch.setattr(live, "SOON", 0.0)
        monkeypatch.setattr(live, "OFTEN", 0.0)

    def display(self, text: str, display_id: bool) -> Any:
        assert display_id
        self.drawn.append(text)
        return SimpleNamespace(update=self.drawn.append)


def test_progress_in_a_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel(monkeypatch)
    onnxprune.prune(residual(), ratio=0.5)
    assert any("<progress" in text and "verify" in text for text in kernel.drawn)
    assert kernel.drawn[-1] == "<small>1 s</small>"
    drawn = len(kernel.drawn)
    onnxprune.prune(residual(), ratio=0.5, progress=False)
    monkeypatch.setenv("ONNXPRUNE_PROGRESS", "0")
    onnxprune.prune(residual(), ratio=0.5)
    assert len(kernel.drawn) == drawn


def test_one_line_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel(monkeypatch)
    with live.shown() as tell:
        assert tell is not None
        with live.shown() as within:
            assert within is None
        api.run(residual(), "prune{ratio=0.5}")  # whose pass goes through the front door
        assert kernel.drawn == []
        tell(ATTACK)
    assert "&lt;/script&gt;" in kernel.drawn[0]


def test_nothing_is_drawn_in_a_pipe(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "SOON", 0.0)
    onnxprune.prune(residual(), ratio=0.5)
    assert capfd.readouterr() == ("", "")


def test_a_line_on_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "SOON", 0.0)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    onnxprune.prune(residual(), ratio=0.5)
    assert "verify" in capsys.readouterr().err
    onnxprune.prune(residual(), ratio=0.5, progress=False)
    assert capsys.readouterr() == ("", "")


NOTEBOOK = Path(__file__).resolve().parents[2] / "samples" / "08_notebook" / "prune.ipynb"


@pytest.mark.long
def test_the_notebook_runs() -> None:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    book = nbformat.read(NOTEBOOK, as_version=4)
    place = {"metadata": {"path": str(NOTEBOOK.parent)}}
    nbclient.NotebookClient(book, timeout=600, kernel_name="python3", resources=place).execute()
    outputs = [output for cell in book.cells for output in cell.get("outputs", ())]
    pages = [o["data"]["text/html"] for o in outputs if "text/html" in o.get("data", {})]
    assert sum("onnxprune" in page for page in pages) >= 4
    assert not [o for o in outputs if o["output_type"] == "error"]
