"""The search for the best model within a budget: choose grids, fit, write, measure what it takes, choose again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from onnxprune.compression.coder import coded_size
from onnxprune.compression.curves import Choice, Rounds, by_bits, by_entropy, choose
from onnxprune.compression.fitting import SAMPLE, Gridded, Layers, alone, some_of
from onnxprune.compression.forms import HALF, Stored, has_int4
from onnxprune.compression.packing import Draft, Drafts
from onnxprune.compression.parts import Part
from onnxprune.compression.rounding import MOST, Alone, bits_of
from onnxprune.compression.weigh import by_trials
from onnxprune.compression.worth import by_gradients
from onnxprune.errors import NothingToPrune
from onnxprune.files.payload import encode
from onnxprune.journey.output import size_in_bytes
from onnxprune.journey.run import Run
from onnxprune.model import Model
from onnxprune.options.compression import CompressOptions

__all__ = ["Attempt", "GridSearch", "lines"]

#: Rounds of choice, fit and measurement, more until FAIR of the budget is used; USED ends them earlier.
ROUNDS, MORE, USED, FAIR = 4, 8, 0.985, 0.95
#: The same of budgets from so many bytes on, or of layers so wide, that a round takes minutes.
LARGE, USED_LARGE = 1 << 26, 0.93
#: Bytes of nodes and names that a weight on a grid takes besides, coded and as they are; measured in each round.
BESIDE_CODED, BESIDE, BESIDE_PAIRS = 60, 220, 900
#: What is left of floats when they are packed.
KEPT = 0.93
#: The steps of so many values in a byte, where nothing is coded.
FORMS: dict[int, tuple[int, int]] = {1: (-MOST, MOST), 2: HALF, 3: (-2, 2), 4: (-2, 1)}
#: Budgets that the curve is told at.
POINTS = 12


@dataclass
class Attempt:
    """A model whose weights lie on grids, and what it takes.

    Attributes
    ----------
    model : Model
    parts : dict
        Weight -> how it lies there.
    bits : dict
        Weight -> bits of a value as it is stored.
    data : dict
        Weight -> the initializer that holds its numbers of steps.
    nbytes : int
        Of the file.
    draft : Draft or None
        The packed file.
    """

    model: Model
    parts: dict[str, Gridded] = field(default_factory=dict)
    bits: dict[str, float] = field(default_factory=dict)
    data: dict[str, str] = field(default_factory=dict)
    nbytes: int = 0
    draft: Draft | None = None

    def kind(self, name: str) -> int:
        """Return the type of a weight's numbers of steps, ONNX's."""
        return self.model.info(self.data[name]).elem_type


@dataclass
class Aims:
    """Estimates that were aimed at and the bytes that came of them: the next one lies between too few and too many.

    Attributes
    ----------
    budget : float
    goal : float
        The bytes that are wanted, a little below the budget.
    low, high : (aim, bytes) or None
        Nearest to the budget, on either side.
    row : int
        How often in a row there were too many bytes, negative for too few. From the second time on the next aim is
        moved farther from there, else one end might never move (the Illinois rule).
    """

    budget: float
    goal: float
    low: tuple[float, float] | None = None
    high: tuple[float, float] | None = None
    row: int = 0

    def add(self, aim: float, nbytes: float) -> None:
        """Learn what came of an aim."""
        if nbytes <= self.budget:
            self.low, self.row = max(self.low or (-np.inf, 0.0), (aim, nbytes)), min(self.row, 0) - 1
        else:
            self.high, self.row = min(self.high or (np.inf, 0.0), (aim, nbytes)), max(self.row, 0) + 1

    def next(self) -> float:
        """Return what to aim at."""
        if self.low is None and self.high is not None:
            return self.high[0] - (1 << self.row) * (self.high[1] - self.budget)
        if self.low is None:
            return self.budget
        if self.high is None:
            return self.low[0] + (1 << (-self.row - 1)) * (self.goal - self.low[1])
        below, above = self.goal - self.low[1], self.high[1] - self.goal
        below, above = below / (1 << max(self.row - 1, 0)), above / (1 << max(-self.row - 1, 0))
        share = below / max(below + above, 1.0)
        return self.low[0] + min(max(share, 0.1), 0.9) * (self.high[0] - self.low[0])


@dataclass
class GridSearch:
    """What is searched in.

    Attributes
    ----------
    run : Run
    base : Model
        The input without local functions.
    parts : sequence of Part
    layers : Layers or None
        Those that can be fitted on samples.
    room : Drafts or None
        Where packed models go; None where a plain one is wanted.
    curve : list of dict
        Of the last search: bytes of the file, and the sum of the losses that they cost.
    """

    run: Run[CompressOptions]
    base: Model
    parts: Sequence[Part]
    layers: Layers | None
    room: Drafts | None
    curve: list[dict[str, float]] = field(default_factory=list)

    def measured(self, attempt: Attempt) -> Attempt:
        """Return an attempt that knows its size, packed where it is to be."""
        if self.room is None:
            attempt.nbytes = size_in_bytes(attempt.model)
        else:
            attempt.draft = self.room.write(attempt.model)
            attempt.nbytes = attempt.draft.nbytes
        return attempt

    def within(self, budget: float) -> Attempt:
        """Return the model of least loss that takes no more than so many bytes.

        Raises
        ------
        NothingToPrune
            If even the coarsest grids take more; the sentence says how much.
        """
        with self.run.stage("look"):
            choices = self._choices()
        with self.run.stage("code"):
            rest = beside = self._without_parts()
        weights = self._weights(choices, budget - rest)
        best: Attempt | None = None
        dear = budget >= LARGE or (self.layers is not None and self.layers.dear)
        used = USED_LARGE if dear else USED
        least, coarsest, aims = np.inf, False, Aims(budget, budget * (1 + used) / 2)
        seen: list[tuple[dict[str, Choice], int]] = []
        for number in range(MORE):
            enough = used if number < ROUNDS else FAIR
            if best is not None and best.nbytes >= enough * budget:
                break
            aim = aims.next()
            chosen = choose(choices, aim - rest, weights)
            if chosen is None and (coarsest or best is not None):
                break
            if coarsest := chosen is None:
                chosen = {name: min(each, key=lambda c: c.nbytes) for name, each in choices.items()}
            chosen = {name: choice for name, choice in chosen.items() if not choice.kept}
            known = next((nbytes for each, nbytes in seen if each == chosen), None)
            if known is not None:
                aims.add(aim, known)
                continue
            with self.run.stage("fit"):
                attempt = self._attempt(chosen)
            with self.run.stage("code"):
                self.measured(attempt)
            self.run.say(f"round {number + 1}: {attempt.nbytes:,} of {budget:,.0f} bytes")
            least = min(least, attempt.nbytes)
            if attempt.nbytes <= budget and (best is None or attempt.nbytes > best.nbytes):
                best = attempt
            if number:
                seen.append((chosen, attempt.nbytes))
            else:  # what each weight takes is known by now; from here on only the aim moves
                choices, rest = self._corrected(choices, chosen, attempt)
                aim = attempt.nbytes
            aims.add(aim, attempt.nbytes)
        self.curve = _curve(choices, rest)
        if best is None:
            grids = (
                "the coarsest grids that leave something of every layer"
                if coarsest
                else "the grids that were tried"
            )
            raise NothingToPrune(
                f"--target {self.run.options.target} can't be met: with {grids} the file takes {least:,.0f} bytes, "
                f"{beside:,.0f} of them for all but these weights; ask for more{self._hint()}."
            )
        if best.nbytes < FAIR * budget:
            self.run.notes.append(
                f"{1 - best.nbytes / budget:.0%} of the budget are left: nothing that was tried within it uses more"
            )
        return best

    def _weights(self, choices: Mapping[str, Sequence[Choice]], budget: float) -> dict[str, float]:
        if self.layers is None:
            return {}
        worths = by_gradients(self.run, self.layers, self.parts)
        return worths or by_trials(self.run, self.base, self.layers, choices, budget)

    def _hint(self) -> str:
        return ", or for a packed file with --to zst" if self.room is None else ", or prune channels first"

    def _choices(self) -> dict[str, list[Choice]]:
        """Return the grids that there are for each weight, with the bytes that they take."""
        choices: dict[str, list[Choice]] = {}
        for site, w, rounder, unit in self.layers.originals() if self.layers is not None else ():
            choices[site.weight] = self._curve(w, rounder, unit, w.size)
        for part in self.parts:
            if part.name not in choices:
                weight = np.asarray(self.base.weight(part.name))
                some, largest = some_of(weight, SAMPLE), max(-float(weight.min()), float(weight.max()))
                unit = float(np.vdot(some, some)) * part.size / max(some.size, 1)
                choices[part.name] = self._curve(some, Alone(), unit or 1.0, part.size, largest)
        for part in self.parts:
            each = [replace(c, nbytes=c.nbytes + self._beside(c)) for c in choices[part.name]]
            whole = part.nbytes * (1.0 if self.room is None else KEPT)
            choices[part.name] = [Choice(whole, 0.0, 0.0, 0.0, kept=True), *each]
        return choices

    def _beside(self, choice: Choice) -> int:
        """Return about how many bytes of nodes and names a grid takes."""
        if self.room is not None:
            return BESIDE_CODED
        return (
            BESIDE
            if choice.ends == FORMS[1] or (choice.ends == HALF and has_int4(self.base))
            else BESIDE_PAIRS
        )

    def _curve(
        self, w: NDArray[np.floating], rounds: Rounds, unit: float, size: int, largest: float | None = None
    ) -> list[Choice]:
        if self.room is None:
            forms = [(8 / m, ends) for m, ends in FORMS.items() if size % m == 0]
            return by_bits(w, rounds, unit, size, forms)
        return by_entropy(w, rounds, unit, size, largest)

    def _without_parts(self) -> float:
        """Return the bytes of all but the weights that are to lie on grids."""
        model = self.base.fork()
        model.drop(*(part.name for part in self.parts))
        return float(self.measured(Attempt(model)).nbytes)

    def _attempt(self, chosen: Mapping[str, Choice]) -> Attempt:
        model = self.base.fork()
        done = {} if self.layers is None else self.layers.carry(model, chosen)
        stored, bits = Stored(model, None if self.room is None else coded_size), {}
        for name in (part.name for part in self.parts if part.name in chosen):
            k = None
            if name not in done:
                k, done[name] = alone(np.asarray(model.weight(name)), chosen[name])
            bits[name] = stored.put(name, k, done[name].step)
        stored.together()
        return Attempt(model, done, bits, stored.data)

    def _corrected(
        self, choices: dict[str, list[Choice]], chosen: Mapping[str, Choice], attempt: Attempt
    ) -> tuple[dict[str, list[Choice]], float]:
        """Return the choices with bytes as they turned out, and the bytes of all else as they must have been."""
        total, better = 0.0, dict(choices)
        for name, choice in chosen.items():
            beside = self._beside(choice)
            part = attempt.parts[name]
            now = choice.nbytes - beside if self.room is None else bits_of(part.count) / 8
            factor = now / max(choice.nbytes - beside, 1.0)
            better[name] = [
                c if c.kept else replace(c, nbytes=self._beside(c) + factor * (c.nbytes - self._beside(c)))
                for c in choices[name]
            ]
            total += now + beside
        total += sum(each[0].nbytes for name, each in choices.items() if name not in chosen)
        return better, attempt.nbytes - total


def _curve(choices: Mapping[str, Sequence[Choice]], rest: float) -> list[dict[str, float]]:
    """Return what all weights together lose at several sizes of the file."""
    ends = [sum(pick(c.nbytes for c in each) for each in choices.values()) for pick in (min, max)]
    curve = []
    for budget in np.geomspace(max(ends[0], 1.0), max(ends[1], 1.0), POINTS):
        chosen = choose(choices, float(budget))
        if chosen is not None:
            nbytes = rest + sum(c.nbytes for c in chosen.values())
            curve.append({"bytes": round(nbytes), "loss": sum(c.loss for c in chosen.values())})
    return curve


def lines(search: GridSearch, attempt: Attempt) -> list[dict[str, object]]:
    """Return what was done to each weight, as plain JSON values."""
    coded = search.room is not None
    return [_line(part, attempt, coded=coded) for part in search.parts if part.name in attempt.parts]


def _line(part: Part, attempt: Attempt, *, coded: bool) -> dict[str, object]:
    own = attempt.parts[part.name]
    bits = attempt.bits[part.name]
    size = round(part.size * bits / 8) + own.step.nbytes
    low, high = own.ends
    packed = attempt.model.weight(attempt.data[part.name]) if coded and part.size <= SAMPLE else None
    return {
        "tensor": part.name,
        "layer": part.layer,
        "dims": list(part.dims),
        "weights": part.size,
        "zeros": int(own.count[MOST + 1]),
        "levels": high - low + 1,
        "bits": round(bits, 3),
        "entropy": round(bits_of(own.count) / max(part.size, 1), 4),
        "bytes_before": part.nbytes,
        "bytes_stored": size,
        "bytes_coded": None
        if packed is None
        else coded_size(encode(packed, attempt.kind(part.name)).tobytes()),
        "fitted": part.site is not None,
        "loss": own.loss,
    }
