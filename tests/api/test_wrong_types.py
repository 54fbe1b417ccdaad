"""Whatever is given to the front door, what it raises is an OnnxPruneError, in a sentence."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_models import chain

import onnxprune
from onnxprune import api
from onnxprune.errors import CalibrationError, OnnxPruneError, UsageError

#: What nobody should give for anything.
WRONG: list[Any] = [
    7, -1.5, True, b"bytes", "", "\0", "nowhere/at all", [], [1], (), {}, {"x": 1}, {1: 2}, object(), np.zeros(3),
    np.float64("nan"), lambda: 1, iter([1]), Path("nowhere"), float("inf"), 10**30, [[None]], {"x": ["y"]}, set("ab"),
]  # fmt: skip
FUNCTIONS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "prune": (onnxprune.prune, {"ratio": 0.5}),
    "plan": (onnxprune.plan, {"ratio": 0.5}),
    "inspect": (onnxprune.inspect, {}),
    "explain": (onnxprune.explain, {"tensor": "conv1.weight"}),
    "run": (onnxprune.run, {"passes": "shrink"}),
    "sparsify": (onnxprune.sparsify, {"pattern": "2:4"}),
    "sensitivity": (onnxprune.sensitivity, {"calib": "synthetic"}),
    "family": (onnxprune.family, {"target": "macs=0.7,0.5"}),
    "tune": (onnxprune.tune, {"max_drop": 1, "calib": "synthetic", "labels": "y", "output": "out.onnx"}),
    "apply": (onnxprune.apply, {"plan": "nowhere.json"}),
    "verify": (onnxprune.verify, {"pruned": "nowhere.onnx", "plan": "nowhere.json"}),
    "calibrate": (api.calibrate, {"output": "m.npz", "calib": "synthetic"}),
    "fleet": (api.fleet, {"output": "fleet"}),
}


def sentence(error: OnnxPruneError) -> None:
    assert str(error)
    assert "Traceback" not in str(error)


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_sources(name: str) -> None:
    function, more = FUNCTIONS[name]
    for wrong in WRONG:
        with pytest.raises(OnnxPruneError) as caught:
            function(wrong, **more)
        sentence(caught.value)


@pytest.mark.parametrize("name", ["output", "options", "progress", "nonsense"])
def test_what_else_prune_takes(name: str) -> None:
    for wrong in WRONG:
        if name == "output" and isinstance(wrong, (str, Path)):
            continue  # a path may be any text
        if name == "progress" and callable(wrong):
            continue
        with pytest.raises(OnnxPruneError) as caught:
            onnxprune.prune(chain(), **{"ratio": 0.5, name: wrong})
        sentence(caught.value)


FIELDS = [field for field in onnxprune.Options.__dataclass_fields__ if field not in ("calib", "inputs")]


@pytest.mark.parametrize("field", FIELDS)
def test_options(field: str) -> None:
    refused = 0
    for wrong in WRONG:
        try:
            onnxprune.Options(**{"ratio": 0.5, field: wrong})
        except OnnxPruneError as error:
            sentence(error)
            refused += 1
    assert refused >= (0 if field in ("keep_tokens",) else 5)


@pytest.mark.parametrize("field", ["calib", "inputs"])
def test_samples(field: str) -> None:
    for wrong in WRONG:
        with pytest.raises(OnnxPruneError) as caught:
            onnxprune.prune(chain(), ratio=0.5, **{field: wrong})
        sentence(caught.value)


def test_arguments_of_functions_without_options() -> None:
    for wrong, name in itertools.product(
        WRONG, ["input_shapes", "allow_inexact", "open_io", "tensor", "axis"]
    ):
        given: dict[str, Any] = {"tensor": "conv1.weight", name: wrong}
        try:
            onnxprune.explain(chain(), **given)
        except OnnxPruneError as error:
            sentence(error)


def test_what_a_function_does_not_take_is_named() -> None:
    with pytest.raises(UsageError, match=r"inspect\(\): .*'ration'.*it takes source, input_shapes"):
        onnxprune.inspect(chain(), ration=0.5)  # type: ignore[call-arg]
    with pytest.raises(UsageError, match=r"'ration'.*Did you mean 'ratio'\?"):
        onnxprune.prune(chain(), ration=0.5)  # type: ignore[call-arg]
    with pytest.raises(UsageError, match=r"'Align'.*Did you mean 'align'\?"):
        onnxprune.prune(chain(), ratio=0.5, Align=4)  # type: ignore[call-arg]
    with pytest.raises(UsageError, match=r"prune\(\): output must be a path; got int 3"):
        onnxprune.prune(chain(), 3, ratio=0.5)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"options must be onnxprune.s Options; got float 0\.5"):
        onnxprune.prune(chain(), None, 0.5)  # type: ignore[arg-type]


def test_kinds_of_values_are_said() -> None:
    with pytest.raises(UsageError, match="--threads must be a whole number; got str '2'"):
        onnxprune.Options(ratio=0.5, check_speed=True, threads="2")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="--ignore must be a text or several; got list"):
        onnxprune.Options(ratio=0.5, ignore=[1])  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="--input-shape must be a mapping of inputs to shapes"):
        onnxprune.Options(ratio=0.5, input_shapes={"x": "1,3"})  # type: ignore[dict-item]
    settings = onnxprune.Options(ratio=np.float32(0.5), seed=np.int64(3), target=())  # type: ignore[arg-type]
    assert (settings.ratio, settings.seed) == (0.5, 3)
    assert type(settings.seed) is int
    assert onnxprune.Options(target="macs=0.5") == onnxprune.Options(target=("macs=0.5",))


def test_a_name_that_is_no_input_is_compared_with_the_inputs() -> None:
    x = np.zeros((8, 3, 8, 8), np.float32)
    with pytest.raises(CalibrationError, match=r"have 'X', which is no input.*Did you mean 'x'\?"):
        onnxprune.prune(chain(), ratio=0.5, inputs={"X": x, "x": x})
