"""Targets hold in the file that is written, or nothing is: what a cut and a fit add counts."""

import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from nets import build, node, normal

import onnxprune
from budgets.test_budgets import wide
from onnxprune import cli, granularity
from onnxprune.errors import NothingToPrune
from onnxprune.graph.analysis import analyse
from onnxprune.graph.size import count_parameters
from onnxprune.model import Model
from onnxprune.options.target import Target
from onnxprune.pruning.budgets import Budgets
from onnxprune.pruning.report import judged
from onnxprune.pruning.saliency import ranked_by_scores


def normed(layers: int = 6, width: int = 32) -> onnx.ModelProto:
    """Layers with RMS norms between them: where their width is cut, a mean over what is left needs new nodes."""
    weights: dict[str, np.ndarray] = {"two": np.float32(2), "eps": np.float32(1e-5)}
    nodes, x = [], "x"
    for n in range(layers):
        weights[f"w{n}"] = normal(8 if n == 0 else width, width, seed=n)
        nodes += [
            node("MatMul", f"{x} w{n}", f"h{n}"),
            node("Pow", f"h{n} two", f"p{n}"),
            node("ReduceMean", f"p{n}", f"m{n}", axes=[-1]),
            node("Add", f"m{n} eps", f"e{n}"),
            node("Sqrt", f"e{n}", f"r{n}"),
            node("Div", f"h{n} r{n}", f"n{n}"),
        ]
        x = f"n{n}"
    weights["last"] = normal(width, 10)
    nodes.append(node("MatMul", f"{x} last", "y"))
    return build(nodes, weights, ("N", 8))


@pytest.mark.parametrize("share", [0.5, 0.7])
def test_what_a_cut_adds_beside_the_weights_counts(share: float, tmp_path: Path) -> None:
    onnx.save(normed(), tmp_path / "m.onnx")
    asked = share * (tmp_path / "m.onnx").stat().st_size
    new = onnxprune.prune(tmp_path / "m.onnx", tmp_path / "o.onnx", target=(f"bytes={share}",), align=1)
    assert len(new.model.graph.node) > len(normed().graph.node), "nothing was added, so nothing is tested"
    assert 0.95 * asked <= (tmp_path / "o.onnx").stat().st_size <= asked


def test_the_least_that_is_named_can_be_had() -> None:
    model = normed()
    with pytest.raises(NothingToPrune) as caught:
        onnxprune.prune(model, target=("bytes=0.05",), align=1)
    (named,) = re.findall(r"([0-9.]+)% of the bytes would be left", str(caught.value))
    assert onnxprune.prune(model, target=(f"bytes={float(named) / 100:.4f}",), align=1).report.targets[0][
        "holds"
    ]


def test_a_fit_that_adds_too_much_goes_further() -> None:
    """What it adds is counted in the next choice, and is no news after it."""
    analysis = analyse(Model.load(wide()))
    groups = analysis.grouping.groups
    rankings = ranked_by_scores(groups, {g.name: np.arange(1.0, g.units + 1) for g in groups})
    whole, target = Budgets(analysis, groups, 1, 10_000), (Target("params", 0.6, True, "params=0.6"),)
    more = normal(900)

    def fitted(removed: dict[str, np.ndarray]) -> Model:
        model = granularity.load().cut(analysis, removed).model
        model.add("bias", more)
        return model

    first = whole.choose(rankings, target)
    assert whole.fitted_over(target, first, lambda: fitted(first))
    second = whole.choose(rankings, target)
    assert not whole.fitted_over(target, second, lambda: fitted(second))
    assert count_parameters(fitted(second)) <= whole.amount(target[0]) < count_parameters(fitted(first))


def test_what_misses_its_target_in_the_end_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    onnx.save(wide(), tmp_path / "m.onnx")
    words = ["prune", str(tmp_path / "m.onnx"), str(tmp_path / "o.onnx"), "--align", "none"]
    words += ["--target", "macs=0.5", "--report", str(tmp_path / "r.json"), "-q"]
    monkeypatch.setattr("onnxprune.budgets.macs.measured", lambda report: (100, 60))
    assert cli.main(words) == 4
    said = capsys.readouterr().err
    assert (
        "target macs=0.5: asked 50, got 60, which does not hold, so nothing was written; ask for less" in said
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.onnx"]


def test_what_the_clock_leaves_open_is_no_miss() -> None:
    """Half was asked, and 1.8 times as fast is 0.556: a miss by 11 %, unless the interval reaches what was asked."""
    report = onnxprune.prune(wide(), ratio=0.5, align=1).report
    options, analysis = onnxprune.Options(target=("latency=0.5",)), analyse(Model.load(wide()))
    whole = Budgets(analysis, analysis.grouping.groups, 1, 10_000)
    for high, holds in ((2.01, True), (1.95, False)):
        report.latency = {"ratio": 1.8, "seconds": 1.0, "interval": [1.7, high]}
        (line,) = judged(options, report, whole, {})
        assert line["holds"] == holds
