"""Write docs/schema/*.json, the JSON Schemas of plans, reports and options, from the code: ``python docs/schemas.py``.

A test compares them with it, and holds real plans and reports against them.
"""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
DIALECT = "https://json-schema.org/draft/2020-12/schema"
_PLAIN = {str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null"}

Schema = dict[str, Any]


def schema_of(kind: Any) -> Schema:
    """Return the schema of a type: plain ones, unions, tuples and lists of one type, mappings, dataclasses."""
    if kind in _PLAIN:
        return {"type": _PLAIN[kind]}
    origin, given = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        parts = [schema_of(each) for each in given]
        return {} if {} in parts else {"anyOf": parts}
    if origin in (tuple, list):
        return {"type": "array", "items": schema_of(given[0])}
    if origin in (dict, Mapping):
        return {"type": "object", "additionalProperties": schema_of(given[1])}
    if dataclasses.is_dataclass(kind):
        return fields_of(kind)
    return {}  # anything


def fields_of(kind: Any) -> Schema:
    """Return the schema of a dataclass, all of whose fields must be there and no others."""
    hints = typing.get_type_hints(kind)
    names = [spec.name for spec in dataclasses.fields(kind)]
    return {
        "type": "object",
        "properties": {name: schema_of(hints[name]) for name in names},
        "required": names,
        "additionalProperties": False,
    }


def plan() -> Schema:
    """Return the schema of a plan."""
    from onnxprune.pruning.plan import FORMAT, Plan

    schema = fields_of(Plan)
    schema["properties"] |= {
        "format": {"const": FORMAT},
        "model_sha256": {"type": "string", "pattern": "^[0-9a-f]{64}$"},
        "scope": {"enum": ["local", "global"]},
    }
    schema["required"] = [
        "format",
        *(
            n
            for n in schema["required"]
            if n not in ("cuts", "frozen", "open_io", "granularity", "vocabulary", "depth")
        ),
    ]
    return schema


def report(kind: Any, result: Any) -> Schema:
    """Return the schema of a report: the keys that it has and the types of those that have one."""
    hints = typing.get_type_hints(kind)
    values = result.to_json()
    properties = {name: schema_of(hints[name]) if name in hints else {} for name in values}
    optional = {"calibration", "latency", "interface", "vocabulary", "depth"} & {
        spec.name for spec in dataclasses.fields(kind)
    }
    properties |= {name: schema_of(hints[name]) for name in sorted(optional)}
    pair = {"type": "object", "required": ["before", "after"]}
    properties |= {name: pair for name in ("parameters", "macs", "bytes", "memory") if name in properties}
    properties["format"] = {"const": values["format"]}
    return {"type": "object", "properties": properties, "required": sorted(set(values) - optional)}


def options(kind: Any) -> Schema:
    """Return the schema of options, with what each is for."""
    from onnxprune.options.declare import default_of, help_of, specs

    hints = typing.get_type_hints(kind)
    properties = {}
    for spec in specs(kind):
        entry = schema_of(hints[spec.name]) | {"description": help_of(spec)}
        default = default_of(spec)
        if default is not dataclasses.MISSING:
            entry["default"] = default
        properties[spec.name] = entry
    needed = [spec.name for spec in specs(kind) if default_of(spec) is dataclasses.MISSING]
    return {"type": "object", "properties": properties, "required": needed, "additionalProperties": False}


def all_of() -> dict[str, str]:
    """Return file name -> text."""
    from onnxprune.graph.size import Size
    from onnxprune.options.pruning import Options
    from onnxprune.options.sparsity import SparseOptions
    from onnxprune.pruning.report import Report

    size = Size(0, 0, 0, 0)
    schemas = {
        "plan": ("A plan of onnxprune", plan()),
        "report": ("A report of onnxprune prune", report(Report, Report(before=size, after=size))),
        "options": ("Options of onnxprune prune", options(Options)),
        "sparse_options": ("Options of onnxprune sparsify", options(SparseOptions)),
    }
    return {
        f"{name}.json": json.dumps({"$schema": DIALECT, "title": title, **schema}, indent=1) + "\n"
        for name, (title, schema) in schemas.items()
    }


if __name__ == "__main__":
    (HERE / "schema").mkdir(exist_ok=True)
    for name, text in all_of().items():
        (HERE / "schema" / name).write_text(text)
        print("wrote", f"docs/schema/{name}")
