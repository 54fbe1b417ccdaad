"""What the masked original gives, on given inputs and on random ones at several sizes of the dynamic axes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx

from onnxprune.graph.analysis import Analysis
from onnxprune.model import Model
from onnxprune.proof import interior
from onnxprune.proof.interior import Case
from onnxprune.proof.sizes import SizeTrials
from onnxprune.runtime.binding import Shape
from onnxprune.runtime.inputs import NoValues, random_inputs
from onnxprune.runtime.session import Feeds, RunError, Session, open_session

__all__ = ["References"]

_ATTEMPTS = ((1.0, False), (0.1, False), (0.01, False), (1.0, True))  # (scale of floats, all integers one)


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
        sizes.run()
        self.refused = sizes.failed
        return cases

    def _open_twin(self) -> Session:
        try:
            return open_session(self.twin)
        except RunError as error:
            self.prepack = True
            try:
                return open_session(self.twin, prepack=True)
            except RunError:
                raise RunError(self._whose_fault(error)) from error

    def _whose_fault(self, error: RunError) -> str:
        try:
            open_session(self.analysis.model)
        except RunError as own:
            return f"onnxruntime can't load the original: {own}"
        return f"onnxruntime can't load the masked original: {error}"

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
            self.notes.append(f"{how}, since the original gives NaN, infinity or nothing otherwise")
        return case
