"""Options that need something: refused without, at work with it, and declared as what they are."""

import re
from pathlib import Path
from typing import Any

import onnx
import pytest
from small_models import chain

import onnxprune
from onnxprune.cli import main
from onnxprune.cli.arguments import build, options_from
from onnxprune.errors import UsageError
from onnxprune.options.compression import CompressFields, CompressOptions
from onnxprune.options.declare import flag, help_of, specs
from onnxprune.options.pruning import Options
from onnxprune.options.sparsity import SparseOptions
from onnxprune.options.tuning import TuneFields, TuneOptions

#: How much shall go, and for each option that needs samples what else it needs and a value that isn't its default.
PRUNE: dict[str, tuple[str, list[str]]] = {
    "samples": ("--ratio 0.5", ["--samples", "9"]),
    "calib_provider": ("--ratio 0.5", ["--calib-provider", "CPUExecutionProvider"]),
    "labels": ("--ratio 0.5", ["--labels", "y"]),
    "recover": ("--ratio 0.5", ["--recover", "bias"]),
    "steps": ("--ratio 0.5", ["--steps", "3"]),
    "rotate": ("--ratio 0.5", ["--no-rotate"]),
    "trials": ("--target macs=0.5", ["--trials", "0"]),
    "min_agreement": ("", ["--min-agreement", "0.9"]),
    "max_drop": ("", ["--max-drop", "1", "--labels", "y"]),
}
SPARSIFY: dict[str, tuple[str, list[str]]] = {
    "samples": ("--pattern 2:4", ["--samples", "9"]),
    "calib_provider": ("--pattern 2:4", ["--calib-provider", "CPUExecutionProvider"]),
    "labels": ("--pattern 2:4", ["--labels", "y"]),
    "refit": ("--pattern 2:4", ["--no-refit"]),
    "schedule": ("--pattern 2:4", ["--schedule", "cubic", "--steps", "2"]),
    "steps": ("--pattern 2:4", ["--steps", "2", "--schedule", "cubic"]),
}
CASES = [("prune", Options, n) for n in PRUNE] + [("sparsify", SparseOptions, n) for n in SPARSIFY]
#: Options of which only some values speak of samples, or which serve --permute, too.
PARTLY = {"criterion", "method", "scope", "input_shapes", "seed"}


def line(command: str, name: str) -> list[str]:
    base, more = (PRUNE if command == "prune" else SPARSIFY)[name]
    return [*base.split(), *more]


@pytest.mark.parametrize("kind", [Options, SparseOptions])
def test_every_option_that_speaks_of_samples_is_declared_to_need_some(kind: Any) -> None:
    needing = {spec.name for spec in specs(kind) if {"calibrated", "fitted"} & set(spec.metadata["needs"])}
    assert needing == set(PRUNE if kind is Options else SPARSIFY)
    speaking = {spec.name for spec in specs(kind) if "with --calib" in help_of(spec)}
    assert speaking - needing - PARTLY == set()


@pytest.mark.parametrize(("command", "kind", "name"), CASES)
def test_refused_without_samples_and_read_with_them(
    command: str, kind: Any, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, out = tmp_path / "in.onnx", tmp_path / "out.onnx"
    onnx.save(chain(), model)
    given = line(command, name)
    assert main([command, str(model), str(out), *given]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "needs samples; give them with --calib, or" in said.err
    assert said.err.startswith("onnxprune: error: --")
    assert said.err.split()[2] in given
    assert not out.exists()
    args = build().parse_args([command, str(model), str(out), *given, "--calib", "some.npz"])
    found = options_from(args, kind)
    spec = next(spec for spec in specs(kind) if spec.name == name)
    assert getattr(found, name) != spec.default
    assert getattr(found.without_samples(ratio=0.5, target=()) if kind is Options else found.without_samples(),
                   name) == spec.default  # fmt: skip


@pytest.mark.parametrize(("kind", "how"), [(Options, {"ratio": 0.5}), (SparseOptions, {"pattern": "2:4"})])
def test_at_their_defaults_they_are_no_offence(kind: Any, how: dict[str, Any]) -> None:
    for spec in specs(kind):
        if "calibrated" in spec.metadata["needs"]:
            assert kind(**how, **{spec.name: spec.default}).calib is None


def test_the_one_that_was_given_is_named() -> None:
    for spec in specs(Options):
        if "calibrated" in spec.metadata["needs"]:
            with pytest.raises(UsageError, match=f"^{flag(spec)} needs samples"):
                Options(ratio=0.5, **{spec.name: 7})


@pytest.mark.parametrize("method", ["wanda", "obs", "sparsegpt"])
def test_methods_that_need_samples(method: str) -> None:
    with pytest.raises(UsageError, match=f"--method {method} needs samples"):
        onnxprune.sparsify(chain(), pattern="2:4", method=method)
    onnxprune.sparsify(chain(), pattern="2:4", method="magnitude")


def test_a_plan_takes_no_samples() -> None:
    with pytest.raises(UsageError, match="'plan' decides by the weights alone"):
        onnxprune.plan(chain(), ratio=0.5, calib={"x": []})
    with pytest.raises(UsageError, match="--criterion obs needs samples; give them to 'prune'"):
        onnxprune.plan(chain(), ratio=0.5, criterion="obs")


@pytest.mark.parametrize("how", [{"min_agreement": 0.9}, {"max_drop": 1.0, "labels": "y"}])
def test_a_search_takes_no_ratio(how: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="leave --ratio out"):
        onnxprune.prune(chain(), ratio=0.5, calib={"x": []}, **how)


def test_a_cap_without_a_global_scope_is_no_use() -> None:
    with pytest.raises(UsageError, match="--cap holds for --scope global only"):
        Options(ratio=0.5, cap=0.5)
    assert Options(ratio=0.5, cap=0.5, scope="global").cap == 0.5


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"ratio": 0.5, "threads": 2}, "--threads is for timing, which nothing asks for; add --check-speed"),
        ({"ratio": 0.5, "batch": 2}, "--batch is for timing"),
        (
            {"ratio": 0.5, "verify": False, "rtol": 0.1},
            "--rtol is for the proof, which --no-verify leaves out",
        ),
        ({"target": ("macs=0.5",), "scope": "global"}, "--scope is for --ratio; a budget is shared"),
        ({"ratio": 0.5, "calib": "x.npz", "trials": 2}, "--trials is for --target; a --ratio takes the same"),
    ],
)
def test_an_option_without_effect_is_refused(how: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=re.escape(says)):
        Options(**how)


@pytest.mark.parametrize(("fields", "kind"), [(TuneFields, TuneOptions), (CompressFields, CompressOptions)])
def test_the_fields_are_the_options(fields: Any, kind: Any) -> None:
    assert set(fields.__annotations__) == {spec.name for spec in specs(kind)}


@pytest.mark.parametrize(("command", "kind"), [("prune", Options), ("sparsify", SparseOptions)])
def test_every_share_may_be_in_percent(command: str, kind: Any) -> None:
    shares = [spec for spec in specs(kind) if "Share" in str(spec.type)]
    assert {spec.name for spec in shares} in ({"ratio", "cap", "min_agreement"}, {"sparsity"})
    for spec in shares:
        words = [command, "a", "b", *(["--pattern", "unstructured"] if command == "sparsify" else [])]
        assert getattr(build().parse_args([*words, flag(spec), "12.5%"]), spec.name) == 0.125
    given: dict[str, Any] = {"pattern": "unstructured"} if command == "sparsify" else {}
    name = "sparsity" if command == "sparsify" else "ratio"
    assert getattr(kind(**given, **{name: "35 %"}), name) == 0.35
    for wrong in ("35 %%", "% 35", "a third%", "0.35"):
        with pytest.raises(UsageError, match=f"--{name} must be a number"):
            kind(**given, **{name: wrong})


def test_shares_of_passes_and_targets_may_be_in_percent() -> None:
    model = chain()
    steps = ["prune{ratio=50%, align=none}", "prune{target=macs=50%, align=none}"]
    for step, plain in zip(steps, [{"ratio": 0.5}, {"target": "macs=0.5"}], strict=True):
        made = onnxprune.run(model, passes=step).to_proto()
        assert made == onnxprune.prune(model, align=None, **plain).model  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="growth"):
        onnxprune.run(model, passes="fold_constants{growth=50%}")


def test_what_is_no_share_is_not_in_percent(capsys: pytest.CaptureFixture[str]) -> None:
    """A drop counts points: one percent of what?"""
    assert main(["prune", "a", "b", "--max-drop", "1%"]) == 2
    assert "must be a number, got '1%'" in capsys.readouterr().err
