"""What is told of long work: texts that know how much is done, and an honest estimate of the time that is left.

A stage says ``"calibrate 3/42: name"`` when it begins its third step. Where steps cost very different amounts it sends
a `Milestone`, which is such a text with the shares of the cost. The estimate is of the stage that runs: nobody
knows what the stages after it will cost.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

__all__ = ["Seen", "Milestone", "StageClock", "Whole", "duration", "read"]

#: No estimate is made before this share of a stage and this many seconds are over.
SOON_SHARE, SOON = 0.03, 2.0


class Milestone(str):
    """A text that knows how much of its stage is done, as a share of the cost.

    Examples
    --------
    >>> step = Milestone.of("fit", "conv2", 1, [1.0, 3.0])
    >>> step, step.done
    ('fit 2/2: conv2', 0.25)
    """

    done: float = 0.0

    @classmethod
    def of(cls, stage: str, name: str, number: int, costs: Sequence[float]) -> Milestone:
        """Return the text for the beginning of a step.

        Parameters
        ----------
        stage, name : str
            Of the stage and of the step.
        number : int
            Of the step, from 0.
        costs : sequence of float
            What each step of the stage costs, in any unit.
        """
        milestone = cls(f"{stage} {number + 1}/{len(costs)}: {name}")
        milestone.done = sum(costs[:number]) / max(sum(costs), 1e-30)
        return milestone


@dataclass
class Whole:
    """Tells of the whole of a long work with steps that are long themselves, and never goes back.

    Attributes
    ----------
    say : callable or None
        Is told the texts.
    name : str
        Of the work, such as ``family``.
    steps : int
        In all, as far as is known.
    step : int
        That is worked at, from 1.
    what : str
        The step's name.
    done : float
        Share of the work, at least.
    """

    say: Callable[[str], None] | None
    name: str
    steps: int
    step: int = 1
    what: str = ""
    done: float = 0.0

    def at(self, step: int, what: str, done: float = 0.0) -> None:
        """Begin a step; more of the work may be known to be done than the steps before it."""
        self.step, self.what, self.steps = step, what, max(self.steps, step)
        self.done = max(self.done, done, (step - 1) / self.steps)

    def __call__(self, text: str) -> None:
        """Pass on a text of the step."""
        if self.say is not None:
            said = Milestone(f"{self.name} {self.step}/{self.steps}: {self.what}: {text}")
            said.done = min(self.done, 1.0)
            self.say(said)


@dataclass(frozen=True)
class Seen:
    """What a text says.

    Attributes
    ----------
    stage : str
    done : float or None
        Share of the stage; None where the text says nothing of it.
    """

    stage: str
    done: float | None = None


def read(text: str) -> Seen:
    """Read a text that was told.

    Examples
    --------
    >>> read("calibrate 3/5: conv2"), read("verify")
    (Seen(stage='calibrate', done=0.4), Seen(stage='verify', done=None))
    """
    match = re.match(r"(.*?)\s*(\d+)/(\d+)(?=:|$)", text)
    if not match or not 1 <= int(match[2]) <= int(match[3]):
        return Seen(text)
    done = text.done if isinstance(text, Milestone) else (int(match[2]) - 1) / int(match[3])
    return Seen(match[1], done)


@dataclass
class StageClock:
    """A stage and its clock.

    Attributes
    ----------
    stage : str
    began : float
        Seconds on any clock.
    done : float or None
        Share that is done.
    at : float
        When that was told.
    """

    stage: str = ""
    began: float = 0.0
    done: float | None = None
    at: float = 0.0

    def tell(self, text: str, now: float) -> bool:
        """Take a text; return whether a new stage begins with it."""
        seen = read(text)
        fresh = seen.stage != self.stage or (seen.done or 0.0) < (self.done or 0.0)
        if fresh:
            self.stage, self.began = seen.stage, now
        self.done, self.at = seen.done, now
        return fresh

    def left(self, now: float) -> float | None:
        """Return the seconds that this stage still takes if it goes on as it went; None where it is too soon to say."""
        if self.done is None or self.done < SOON_SHARE or self.at - self.began < SOON:
            return None
        return max((self.at - self.began) * (1 - self.done) / self.done - (now - self.at), 0.0)


def duration(seconds: float) -> str:
    """Return a time in words, no finer than an estimate can be.

    Examples
    --------
    >>> [duration(s) for s in (0.4, 7, 43, 100, 4000)]
    ['1 s', '7 s', '45 s', '2 min', '1 h 7 min']
    """
    if seconds < 10:
        return f"{max(round(seconds), 1)} s"
    if seconds < 90:
        return f"{5 * round(seconds / 5)} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
