"""Prove a cut: the pruned model is sound, and computes what the masked original does (law 1).

Tolerances are relative to the greatest magnitude of an output: 1e-4, or 1e-9 where all floats are double.
Half floats are compared in fp32 (both models widened alike), or at 1e-2 where the model is too large for
that. Two things may lift an error above rounding without a fault, and both are measured instead of tolerated:

- Ops that jump (Round, QuantizeLinear, TopK, comparisons, ...) turn a difference of 1e-7 into a whole step.
  Such a model is compared piece by piece: the pruned model gets the twin's values behind each jump
  (`onnxprune.proof.interior`).
- A graph may amplify rounding. Then the twin is run once more on inputs that are moved in the last place, and
  once with onnxruntime's optimisations, and the tolerance is four times what these change, at most 1e-2.

Where the outputs say nothing (empty, constant, NaN), tensors inside of the graph are compared; where these
don't either, the verification does not pass.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto

from onnxprune.errors import many
from onnxprune.graph.analysis import Analysis
from onnxprune.graph.kept import Kept
from onnxprune.graph.widen import DOUBLE, has_halves, too_large, widen
from onnxprune.model import Model
from onnxprune.proof import interior, soundness
from onnxprune.proof.branches import decided
from onnxprune.proof.compare import NEAR, Difference, worst
from onnxprune.proof.interior import Case
from onnxprune.proof.references import OriginalUnloadable, References
from onnxprune.proof.repeat import Places, left_out, unrepeatable
from onnxprune.proof.twin import twin
from onnxprune.runtime.session import Feeds, RunError, Session, open_session

__all__ = ["TOLERANCE", "Verification", "verify"]

_log = logging.getLogger("onnxprune.proof")

Masks = Mapping[int, NDArray[np.bool_]]

TOLERANCE = {"float": 1e-4, "double": 1e-9, "half": 1e-2}
#: The greatest tolerance that a graph's own amplification of rounding may ask for.
MOST_TOLERANCE = 1e-2


@dataclass
class Verification:
    """What was proved.

    Attributes
    ----------
    status : str
        ``passed``, ``failed``, ``not comparable`` or ``not run`` (onnxruntime can't run the original).
    failures : list of str
        What is wrong, a sentence each; empty unless the status is ``failed``.
    max_relative_error : float
        Of law 1, over all outputs and inputs; NaN where it wasn't measured.
    tolerance : float
    per_output : dict
        Output -> its error.
    n_inputs, n_random : int
        Given and random inputs.
    sizes : list of dict
        Dynamic axis -> size, for each random input, where the model has such axes.
    refused : list of (dict, str)
        Sizes that the original can't be run at, and why; law 1 says nothing there.
    branches : list of dict
        First output of an If -> whether its then branch was run, for each way of deciding them that was compared.
    checks : list of str
        The checks that were done.
    notes : list of str
    silent : dict
        Output -> why it says nothing.
    unloadable : str
        Why onnxruntime can't load the original, or run it on any inputs; empty where it can.
    seconds : float
    """

    status: str = "not run"
    failures: list[str] = field(default_factory=list)
    max_relative_error: float = float("nan")
    tolerance: float = float("nan")
    per_output: dict[str, float] = field(default_factory=dict)
    n_inputs: int = 0
    n_random: int = 0
    sizes: list[dict[str, int]] = field(default_factory=list)
    refused: list[tuple[dict[str, int], str]] = field(default_factory=list)
    branches: list[dict[str, bool]] = field(default_factory=list)
    checks: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    silent: dict[str, str] = field(default_factory=dict)
    unloadable: str = ""
    seconds: float = 0.0

    @property
    def passed(self) -> bool:
        """Whether everything was checked and holds."""
        return self.status == "passed"

    def law1(self) -> dict[str, Any]:
        """Return what a report says of law 1, as plain JSON values."""
        return {
            "max_relative_error": self.max_relative_error,
            "tolerance": self.tolerance,
            "inputs": self.n_inputs + self.n_random,
            "given_inputs": self.n_inputs,
            "sizes": self.sizes,
            "refused": [{"sizes": sizes, "reason": why[:200]} for sizes, why in self.refused],
            **({"branches": self.branches} if self.branches else {}),
        }


def verify(
    analysis: Analysis, dead: Masks, pruned: Model | onnx.ModelProto | str | PathLike[str], *,
    masked: Model | None = None, inputs: Iterable[Feeds] | None = None, seed: int = 0, rtol: float | None = None,
    kept: Kept | None = None,
) -> Verification:  # fmt: skip
    """Check a pruned model against the original with the same channels masked.

    Parameters
    ----------
    analysis : Analysis
        Of the original.
    dead : mapping
        Root dim -> which of its indices are gone.
    pruned : Model, ModelProto or path
        A large model is best given as the file that was written: its weights are then mapped, not copied.
    masked : Model, optional
        The original with the same units silenced, where they are no channels (`onnxprune.granularity`); by default
        the masked twin of ``dead``.
    inputs : iterable of dict, optional
        Inputs to compare on, besides the random ones.
    seed : int
        Of the random inputs: one, and where axes are dynamic, one more for each of some other sizes
        (`onnxprune.proof.sizes`).
    rtol : float, optional
        Relative tolerance, instead of those of the types.
    kept : Kept, optional
        Where each channel of the pruned model was, if it isn't what is left of ``dead`` in the old order.

    Returns
    -------
    Verification
        Never raises for what is wrong with the pruned model.
    """
    start = time.perf_counter()
    result = Verification()
    pruned, kept = Model.load(pruned).unfold(), kept or Kept(analysis.coupling, dead)
    result.failures += soundness.interface(analysis.model, pruned, kept)
    for name, function in (("checker", soundness.check), ("strict shape inference", soundness.strict)):
        failures, notes = function(analysis.model, pruned)
        result.failures += failures
        result.notes += notes
        if not notes:
            result.checks.append(name)
    result.checks.insert(0, "names, types and order of inputs and outputs")
    if not result.failures:
        right = twin(analysis, dead) if masked is None else masked
        law = _Law(analysis, right, pruned, kept, result)
        law.tolerate(rtol)
        law.run(list(inputs or ()), np.random.default_rng(seed))
    if result.failures:
        result.status = "failed"
    result.seconds = time.perf_counter() - start
    _log.info("%s, within %.2g", result.status, result.max_relative_error)
    return result


class _Law:
    """Law 1 on one cut."""

    def __init__(
        self, analysis: Analysis, right: Model, pruned: Model, kept: Kept, result: Verification
    ) -> None:
        self.analysis, self.kept, self.result, self.prepack = analysis, kept, result, False
        self.loose: list[Places] = []
        self.steps = interior.steps(a.node for a in analysis.coupling.nodes)
        self.original, self.twin, self.pruned = analysis.model, right, pruned

    def tolerate(self, rtol: float | None) -> None:
        """Set the tolerance, by the types unless it is given; widen or narrow the models where that helps."""
        kinds = {elem for elem, _ in self.analysis.tracer.types.values()}
        kind = "double" if TensorProto.DOUBLE in kinds and TensorProto.FLOAT not in kinds else "float"
        if has_halves(kinds):
            kind = self.widen()
        elif kind == "double":
            kind = self.narrow()
        self.result.tolerance = TOLERANCE[kind] if rtol is None else rtol

    def widen(self) -> str:
        model = self.analysis.model
        if too_large(model):
            return "half"
        try:
            open_session(model)
        except RunError as error:
            self.result.notes.append(f"onnxruntime doesn't run the model in half floats on a CPU ({error})")
        else:
            try:
                open_session(self.pruned)
            except RunError as error:
                self.result.failures.append(f"onnxruntime doesn't load the pruned model: {error}")
        self.original, self.twin, self.pruned = (widen(m) for m in (self.original, self.twin, self.pruned))
        self.result.notes.append("half floats: law 1 was checked with both models widened to fp32")
        return "float"

    def narrow(self) -> str:
        """Compare in fp32 what onnxruntime has no kernels of doubles for."""
        try:
            open_session(self.analysis.model)
        except RunError as error:
            self.result.notes.append(
                f"onnxruntime doesn't run the model in doubles ({error}); law 1 was checked in fp32"
            )
            models = (self.original, self.twin, self.pruned)
            self.original, self.twin, self.pruned = (widen(m, DOUBLE) for m in models)
            return "float"
        return "double"

    def run(self, given: Sequence[Feeds], rng: np.random.Generator) -> None:
        result = self.result
        if result.failures:
            return
        references = References(self.analysis, self.original, self.twin)
        try:
            cases = references.draw(given, rng)
        except RunError as error:
            result.unloadable = str(error) if isinstance(error, OriginalUnloadable) else ""
            result.notes += [*references.notes, f"law 1 was not checked: {error}"]
            return
        self.prepack, result.refused = references.prepack, references.refused
        result.notes += references.notes
        result.failures += references.failures
        if cases and self.analysis.folded is not None:
            result.failures += soundness.folds(self.analysis.folded, cases[0].feeds)
            result.checks.append("folded weights")
        result.sizes = [dict(case.sizes) for case in cases if case.sizes]
        result.branches = [dict(alike[0].choice) for alike in _alike(cases) if alike[0].choice]
        result.n_inputs, result.n_random = len(given), len(cases) - len(given)
        if not cases:
            result.notes.append("law 1 was not checked: there are no inputs to check it on")
        if not cases or result.failures:
            return
        try:
            differences: dict[str, Difference] = {}
            for alike in _alike(cases):
                for name, difference in self.looked(alike).items():
                    before = differences.get(name, difference)
                    differences[name] = worst([before, difference])
        except RunError as error:
            result.failures.append(f"onnxruntime doesn't run the pruned model: {error}")
            return
        self.judge(differences)

    def looked(self, cases: Sequence[Case]) -> dict[str, Difference]:
        """Compare the models on cases for which the same branches are decided."""
        whole = self.twin, self.pruned
        self.twin, self.pruned = (decided(model, cases[0].choice) for model in whole)
        session = open_session(self.pruned, prepack=self.prepack)
        if "onnxruntime loads it" not in self.result.checks:
            self.result.checks.append("onnxruntime loads it")
        self.loose = []
        outputs = [self.outputs(session, case) for case in cases]
        del session
        differences = self.second_look(cases, outputs, self.compared(cases, outputs))
        self.twin, self.pruned = whole
        return differences

    def outputs(self, session: Session, case: Case) -> dict[str, Any]:
        try:
            return session.run(self.kept.take(case.feeds))
        except RunError as error:
            at = ", ".join(f"{axis} {size}" for axis, size in case.sizes.items())
            raise RunError(f"{error} (at {at})" if at else str(error)) from error

    def judge(self, differences: Mapping[str, Difference]) -> None:
        result = self.result
        result.checks.append("law 1")
        result.per_output = {name: d.error for name, d in differences.items()}
        result.max_relative_error = max((d.error for d in differences.values()), default=float("nan"))
        result.silent = {name: d.void for name, d in differences.items() if d.void}
        result.notes += [f"'{name}' says nothing: it is {void}" for name, void in result.silent.items()]
        wrong = {name: d.error for name, d in differences.items() if not d.error <= result.tolerance}
        if wrong:
            name = max(wrong, key=lambda n: wrong[n])
            result.failures.append(
                f"law 1 doesn't hold: '{name}' differs from the masked original by {wrong[name]:.3g} "
                f"of its largest value, where {result.tolerance:.0e} is allowed"
            )
        elif all(d.void for d in differences.values()):
            result.status = "not comparable"
        else:
            result.status = "passed"

    def compared(self, cases: Sequence[Case], outputs: Sequence[Mapping[str, Any]]) -> dict[str, Difference]:
        graph = self.analysis.model.proto.graph
        names = [v.name for v in graph.output if v.name not in self.kept.gone]
        pairs = list(zip([self.kept.take(c.reference) for c in cases], outputs, strict=True))
        if self.loose:
            pairs = [
                (left_out(a, loose), left_out(b, loose))
                for (a, b), loose in zip(pairs, self.loose, strict=True)
            ]
        return {
            n: worst(interior.compare_any(a[n], b[n], self.steps.get(n, 0.0)) for a, b in pairs)
            for n in names
        }

    def second_look(
        self, cases: Sequence[Case], outputs: Sequence[Mapping[str, Any]], differences: dict[str, Difference]
    ) -> dict[str, Difference]:
        """Look inside where outputs say nothing, and behind loose ends, jumps and rounding where they differ."""
        result = self.result
        inside: dict[str, Difference] = {}
        if all(d.void for d in differences.values()) or any(d.void == NEAR for d in differences.values()):
            inside = interior.inside(self.analysis, self.kept, (self.twin, self.pruned), cases, self.prepack)
            if inside:
                result.notes.append(f"outputs say nothing: compared {many(len(inside), 'tensor')} inside")
                differences = {**differences, **inside}
        if all(d.error <= result.tolerance for d in differences.values()):
            return differences
        if self.repeated(cases):
            differences = {**self.compared(cases, outputs), **inside}
            if all(d.error <= result.tolerance for d in differences.values()):
                return differences
        models = (self.twin, self.pruned)
        pieces = interior.pieces(self.analysis, self.kept, models, cases, self.prepack, inside)
        if pieces:
            result.notes.append("the graph has ops that jump: it was compared piece by piece between them")
            differences = pieces
        error = max(d.error for d in differences.values())
        if result.tolerance < error <= MOST_TOLERANCE and not pieces:
            self.amplified(cases)
        return differences

    def repeated(self, cases: Sequence[Case]) -> bool:
        """Leave out what the masked original itself gives otherwise in each run; whether there is such a thing."""
        places = unrepeatable(open_session(self.twin, prepack=self.prepack), cases, self.result.tolerance)
        counts: Counter[str] = Counter()
        for name, where in [(n, w) for p in places for n, w in p.items()]:
            counts[name] += int(where.sum())
        self.result.notes += [
            f"onnxruntime gives {count:,} elements of '{name}' other values in each run of the masked original: "
            "these were not compared"
            for name, count in counts.items()
        ]
        if counts:
            self.loose = [self.kept.take(p) for p in places]
        return bool(counts)

    def amplified(self, cases: Sequence[Case]) -> None:
        """Set the tolerance by what rounding alone does to the twin: of its inputs, and by other kernels."""
        rng = np.random.default_rng(0)
        moved = [{n: _rounded(a, rng) for n, a in case.feeds.items()} for case in cases]
        noise = 0.0
        for optimise, feeds in ((False, moved), (True, [case.feeds for case in cases])):
            session = open_session(self.twin, prepack=optimise or self.prepack, optimise=optimise)
            own = self.compared(cases, [self.kept.take(session.run(f)) for f in feeds])
            noise = max(noise, *(d.error for d in own.values()))
        if noise * 4 > self.result.tolerance:
            self.result.tolerance = min(4 * noise, MOST_TOLERANCE)
            self.result.notes.append(
                f"the graph amplifies rounding: by it alone the masked original changes by {noise:.2g}, "
                f"so {self.result.tolerance:.2g} is allowed"
            )


def _alike(cases: Sequence[Case]) -> list[list[Case]]:
    """Put cases together for which the same branches are decided."""
    groups: dict[tuple[tuple[str, bool], ...], list[Case]] = {}
    for case in cases:
        groups.setdefault(tuple(case.choice.items()), []).append(case)
    return list(groups.values())


def _rounded(array: Any, rng: np.random.Generator) -> Any:
    """Move each float by about one unit in its last place."""
    if not isinstance(array, np.ndarray) or array.dtype not in (np.float32, np.float64):
        return array
    step = np.finfo(array.dtype).eps * rng.standard_normal(array.shape)
    return np.asarray(array * (1 + step)).astype(array.dtype)
