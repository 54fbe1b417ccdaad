"""What the masked original gives, on given inputs and on random ones at several sizes of the dynamic axes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx

from onnxprune.graph.analysis import Analysis
from onnxprune.model import Model
from onnxprune.ops import FLOATS
from onnxprune.proof import interior
from onnxprune.proof.branches import MOST, Choice, choices, decided, title
from onnxprune.proof.interior import Case
from onnxprune.proof.sizes import SizeTrials
from onnxprune.runtime.binding import Axes, Shape
from onnxprune.runtime.inputs import NoValues, random_inputs
from onnxprune.runtime.session import Feeds, RunError, Session, Unloadable, open_session

__all__ = ["OriginalUnloadable", "References"]

_ATTEMPTS = ((1.0, False), (0.1, False), (0.01, False), (1.0, True))  # (scale of floats, all integers one)


class OriginalUnloadable(Unloadable):
    """It is the original that onnxruntime doesn't load, or doesn't run on any inputs."""


class References:
    """Runs of a model's masked twin.

    Parameters
    ----------
    analysis : Analysis
        Of the original.
    original, twin : Model
        Perhaps in other types than the analysed model.

    Attributes
    ----------
    prepack : bool
        Whether onnxruntime takes the twin with repacked weights only.
    notes, failures : list of str
    refused : list of (dict, str)
        Sizes that the original can't be run at, and why.
    """

    analysis: Analysis
    original: Model
    twin: Model
    prepack: bool

    def __init__(self, analysis: Analysis, original: Model, twin: Model) -> None:
        self.analysis, self.original, self.twin = analysis, original, twin
        self.prepack = False
        self.notes: list[str] = []
        self.failures: list[str] = []
        self.refused: list[tuple[dict[str, int], str]] = []
        self._original: Session | None = None
        self._how = 0

    def draw(self, given: Sequence[Feeds], rng: np.random.Generator) -> list[Case]:
        """Run the twin on given inputs, on a random one at the bound sizes, and on one at each of other sizes.

        Raises
        ------
        RunError
            If it can't be run at the bound sizes.
        """
        session = self._open_twin()
        feeds = [self._cast(one) for one in given]
        cases = [Case(one, session.run(one)) for one in feeds]

        def attempt(shapes: Mapping[str, Shape], sizes: Mapping[str, int]) -> str:
            feeds = self._random(shapes, self._how, rng)  # of the kind that did at the bound sizes
            try:
                cases.append(Case(feeds, session.run(feeds), sizes))
            except RunError as error:
                return self._own_fault(feeds, sizes, error)
            return ""

        sizes = SizeTrials(self.analysis, attempt)
        try:
            cases.append(self._best(session, sizes.bound, rng))
        except NoValues as error:
            if not cases:
                raise
            self.notes.append(f"law 1 was checked on the given inputs alone: {error}")
            return cases
        except RunError as error:
            if cases or sizes.bound or not self._floats_alone():
                raise
            raise OriginalUnloadable(str(error)) from error
        sizes.run()
        self.refused = sizes.failed
        return cases + self._branches(_spread(sizes), rng)

    def _floats_alone(self) -> bool:
        """Whether inputs are numbers, none of which is an index or a length."""
        types = self.analysis.tracer.types
        return all(types[name][0] in FLOATS for name in self.analysis.inputs)

    def _branches(self, sizes: Sequence[Mapping[str, int]], rng: np.random.Generator) -> list[Case]:
        """Run the twin with the branches of its Ifs decided, at a few sizes each."""
        cases: list[Case] = []
        silent: list[str] = []
        todo = [(together, True) for together in choices(self.twin)]
        for _ in range(MOST):
            if not todo:
                break
            together, several = todo.pop(0)
            own, why = self._decided({k: v for wanted in together for k, v in wanted.items()}, sizes, rng)
            cases += own
            if not own and several and len(together) > 1:
                todo += [([wanted], False) for wanted in together]
            elif not own:
                silent.append(f"{title(self.twin, together[-1])} ({why})")
        silent += [f"{title(self.twin, wanted)} (not tried)" for together, _ in todo for wanted in together]
        if silent:
            more = f", and {len(silent) - 1} more branches" if len(silent) > 1 else ""
            self.notes.append(f"law 1 says nothing of {silent[0]}{more}: no input ran there")
        return cases

    def _decided(
        self, choice: Choice, sizes: Sequence[Mapping[str, int]], rng: np.random.Generator
    ) -> tuple[list[Case], str]:
        """Run the twin with one way of deciding; say why where it doesn't run."""
        axes = Axes.of(self.analysis.model.proto.graph, self.analysis.inputs)
        cases: list[Case] = []
        why = ""
        session = open_session(decided(self.twin, choice), prepack=self.prepack)
        for size in sizes:
            shapes = (axes.shapes(size) if size else None) or self.analysis.inputs
            feeds = self._random(shapes, self._how, rng)
            try:
                cases.append(Case(feeds, session.run(feeds), size, choice))
            except RunError as error:
                why = why or str(error)
                self._sound(choice, feeds, error)
        return cases, why

    def _sound(self, choice: Choice, feeds: Feeds, error: RunError) -> None:
        """Note as a failure where the original runs with these branches and the twin doesn't."""
        try:
            open_session(decided(self.original, choice), prepack=self.prepack).run(feeds)
        except RunError:
            return
        self.failures.append(
            f"the masked original doesn't run in {title(self.twin, choice)}, where the original does: {error}"
        )

    def _open_twin(self) -> Session:
        try:
            return open_session(self.twin)
        except RunError as error:
            self.prepack = True
            try:
                return open_session(self.twin, prepack=True)
            except RunError:
                raise self._whose_fault(error) from error

    def _whose_fault(self, error: RunError) -> RunError:
        try:
            open_session(self.analysis.model)
        except RunError as own:
            return OriginalUnloadable(f"onnxruntime can't load the original: {own}")
        return RunError(f"onnxruntime can't load the masked original: {error}")

    def _cast(self, feeds: Feeds) -> dict[str, Any]:
        """Bring given inputs to the types of the twin."""
        types = {v.name: v.type.tensor_type.elem_type for v in self.twin.proto.graph.input}
        return {
            n: np.asarray(a).astype(onnx.helper.tensor_dtype_to_np_dtype(types[n])) if types.get(n) else a
            for n, a in feeds.items()
        }

    def _random(self, shapes: Mapping[str, Shape], how: int, rng: np.random.Generator) -> dict[str, Any]:
        scale, ones = _ATTEMPTS[how]
        sizes = self.analysis.tracer.types
        return random_inputs(self.twin, shapes, rng, scale=scale, ones=ones, sizes=sizes)

    def _own_fault(self, feeds: Feeds, sizes: Mapping[str, int], error: RunError) -> str:
        """Return why the original doesn't run either; where it does, the twin is at fault."""
        try:
            if self._original is None:
                self._original = open_session(self.original, prepack=self.prepack)
            self._original.run(feeds)
        except RunError as own:
            return str(own)
        at = ", ".join(f"{axis} {size}" for axis, size in sizes.items())
        self.failures.append(f"the masked original doesn't run at {at}, where the original does: {error}")
        return ""

    def _best(self, session: Session, sizes: Mapping[str, int], rng: np.random.Generator) -> Case:
        """Find random inputs that the twin can be run on, with outputs that say something if possible."""
        ran: list[tuple[int, int, Case]] = []  # (trouble, number of the attempt, case): the least is best
        errors: list[str] = []
        for number in range(len(_ATTEMPTS)):
            feeds = self._random(self.analysis.inputs, number, rng)
            try:
                case = Case(feeds, session.run(feeds), sizes)
            except RunError as error:
                errors.append(str(error))
                continue
            ran.append((sum(interior.trouble(a) for a in case.reference.values()), number, case))
            if not ran[-1][0]:
                break
        if not ran:
            raise RunError(f"onnxruntime can't run the original: {errors[0]}")
        _, self._how, case = min(ran, key=lambda entry: entry[:2])
        if self._how:
            scale, ones = _ATTEMPTS[self._how]
            how = "integer inputs were all one" if ones else f"random inputs were scaled by {scale:g}"
            if not ones or any(
                isinstance(a, np.ndarray) and a.dtype.kind in "iu" for a in case.feeds.values()
            ):
                gives = "doesn't run" if errors else "gives NaN, infinity or nothing"
                self.notes.append(f"{how}, since the original {gives} otherwise")
        return case


def _spread(trials: SizeTrials) -> list[dict[str, int]]:
    """Return the bound sizes and those that ran which have the least and the most elements, for runs of each branch."""
    ran = sorted(trials.ran, key=lambda sizes: sum(sizes.values()))
    few = [trials.bound, *ran[:1], *ran[len(ran) // 2 : len(ran) // 2 + 1], *ran[-1:]]
    return [one for n, one in enumerate(few) if one not in few[:n]]
