"""The 1,884 node models that come with the onnx package, and law 2 over them."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from onnx import ModelProto

from .engine import CannotRunError, Outcome, law


@dataclass(frozen=True)
class Case:
    """One node model with its first set of inputs, by name."""

    name: str
    model: ModelProto
    inputs: dict[str, Any]

    @property
    def tensors_only(self) -> bool:
        graph = self.model.graph
        return all(v.type.HasField("tensor_type") for v in (*graph.input, *graph.output))


@dataclass
class Survey:
    """Law 2 over many models."""

    total: Outcome = field(default_factory=Outcome)
    models: int = 0
    cut: int = 0
    without_row: int = 0
    locked: int = 0
    skipped: dict[str, str] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)


def node_models() -> list[Case]:
    """Collect them; takes about ten seconds."""
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = collect_testcases(None)
    return [
        Case(
            c.name, c.model, dict(zip([v.name for v in c.model.graph.input], c.data_sets[0][0], strict=False))
        )
        for c in found
    ]


def survey(cases: Iterable[Case], cuts: int, seed: int = 0) -> Survey:
    """Check the law on models; ``cuts`` is the most to try on each, with each choice of known inputs."""
    found = Survey()
    for case in cases:
        found.models += 1
        if not case.tensors_only:
            found.skipped[case.name] = "sequences or optional values"
            continue
        try:
            outcome = law(case.model, case.inputs, cuts=cuts, seed=seed)
        except CannotRunError as error:
            found.skipped[case.name] = str(error)
            continue
        found.total.add(outcome)
        found.violations += [f"{case.name}: {violation}" for violation in outcome.violations]
        if outcome.cuts:
            found.cut += 1
        elif outcome.rows:
            found.locked += 1
        else:
            found.without_row += 1
    return found
