"""The JSON Schemas in docs are those of the code, and what the tool writes holds them."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import jsonschema
import numpy as np
import pytest
from small_models import attention, chain

import onnxprune

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.fixture(scope="module")
def schemas() -> ModuleType:
    spec = importlib.util.spec_from_file_location("schemas", DOCS / "schemas.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def schema(name: str) -> dict[str, Any]:
    return dict(json.loads((DOCS / "schema" / f"{name}.json").read_text()))


def test_the_committed_schemas_are_up_to_date(schemas: ModuleType) -> None:
    assert {p.name: p.read_text() for p in (DOCS / "schema").glob("*.json")} == schemas.all_of()
    for name in schemas.all_of():
        jsonschema.Draft202012Validator.check_schema(json.loads((DOCS / "schema" / name).read_text()))


def test_plans_and_reports_hold_them() -> None:
    samples = {"x": np.random.default_rng(0).standard_normal((40, 3, 8, 8)).astype(np.float32)}
    free = chain()
    free.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "N"
    runs = [
        onnxprune.prune(chain(), ratio=0.5, align=None),
        onnxprune.prune(attention(), ratio=0.5, align=None, allow_inexact=True),
        onnxprune.prune(free, target="macs=0.5", calib=samples, align=None),
    ]
    for result in runs:
        jsonschema.validate(json.loads(result.plan.dumps()), schema("plan"))
        jsonschema.validate(json.loads(result.report.dumps()), schema("report"))
        jsonschema.validate(json.loads(json.dumps(result.report.options)), schema("options"))


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("plan", {"groups": [{"name": "a"}]}),
        ("plan", {"more": 1}),
        ("plan", {"model_sha256": "abc"}),
        ("report", {"macs": 3}),
        ("report", {"cuts": [{"tensor": "w"}]}),
        ("options", {"ratio": "half"}),
        ("options", {"rato": 0.5}),
    ],
)
def test_what_is_wrong_is_refused(name: str, change: dict[str, Any]) -> None:
    result = onnxprune.prune(chain(), ratio=0.5, align=None)
    values = {
        "plan": result.plan.dumps(),
        "report": result.report.dumps(),
        "options": json.dumps(result.report.options),
    }
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(json.loads(values[name]) | change, schema(name))
