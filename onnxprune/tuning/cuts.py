"""Cuts of one model at any share of a budget, from one calibration: the lever of widths."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass, field
from pathlib import Path

from onnxprune.calibration.samples import Samples
from onnxprune.errors import NothingToPrune
from onnxprune.journey.run import Run
from onnxprune.options.pruning import Options
from onnxprune.options.tuning import TuneOptions
from onnxprune.pruning.aimed import fitted
from onnxprune.pruning.decision import Limit, decide, limit_of
from onnxprune.pruning.journey import Result, analysis_of, carry_out, planned
from onnxprune.pruning.on_samples import FromSamples, admitted
from onnxprune.pruning.speed import Speed
from onnxprune.reconstruction.recover import recovery_of

__all__ = ["Cuts", "Width"]

#: Shares at which errors of different groups are weighed against each other, the first that can be had: always the
#: same, so that a member doesn't depend on those before it.
WEIGHED = (0.5, 0.7, 0.85)


@dataclass(frozen=True)
class Width:
    """How wide a member is.

    Attributes
    ----------
    kind : str
        The budget that is shared, such as ``macs``.
    share : float
        Of the original's.
    align : int or str
        Multiples of channels that widths stay on; ``auto`` for this machine's.
    recover : str
        How layers are fitted, where it isn't as the options say.
    """

    kind: str
    share: float
    align: int | str = "auto"
    recover: str = ""

    @property
    def name(self) -> str:
        """Short, for a file."""
        return f"{self.kind}{self.share:g}{self._on}"

    @property
    def ladder(self) -> str:
        """The name without the share."""
        return f"{self.kind}{self._on}"

    @property
    def _on(self) -> str:
        on = "" if self.align == "auto" else f"-by{self.align}"
        return f"{on}-{self.recover}" if self.recover else on


@dataclass
class Cuts:
    """What cuts of one model share.

    Attributes
    ----------
    run : Run
    labelled : bool
        Whether the samples hold labels.
    once : float
        Seconds that went into what all cuts share.
    """

    run: Run[TuneOptions]
    labelled: bool
    once: float = 0.0
    _known: FromSamples | None = None
    _speed: Speed | None = None
    _weighed: set[str] = field(default_factory=set)

    def _run(self, width: Width) -> Run[Options]:
        target = f"{width.kind}={width.share:g}"
        options = self.run.options.pruning(target, width.align, self.labelled)
        if width.recover:
            options = dataclasses.replace(options, recover=width.recover)
        run = self.run
        return Run(options, run.model, run.progress, {}, [])

    def _opened(self, width: Width) -> tuple[Run[Options], FromSamples, Limit]:
        run = self._run(width)
        if self._known is None:
            self._known = FromSamples.open(run, analysis_of(run))
        saliency = self._known.again(run)
        limit = limit_of(run, saliency.analysis, saliency.groups, self._speed and self._speed.again())
        self._speed = limit.budgets.speed or self._speed
        return run, saliency, dataclasses.replace(limit, timed=False)

    def _weigh(self, width: Width) -> None:
        """Weigh groups against each other, once, at a share that is always the same."""
        for share in WEIGHED if self._known is None or self._known.weights is None else ():
            _, saliency, limit = self._opened(
                dataclasses.replace(width, kind="macs", share=share, recover="")
            )
            try:
                saliency.rankings(limit)
            except NothingToPrune:
                continue
            assert self._known is not None
            self._known.weights = saliency.weights
            return

    def make(self, width: Width, output: Path) -> Result:
        """Cut, fit, prove and write one model.

        Raises
        ------
        NothingToPrune
            If there is no such cut.
        """
        start = time.monotonic()
        self._weigh(width)
        self.once += time.monotonic() - start
        run, saliency, limit = self._opened(width)
        if width.recover:
            made = saliency.calibration
            made.settings = dataclasses.replace(made.settings, recovery=recovery_of(width.recover))
        decision = admitted(decide(run, saliency.groups, saliency.rankings(limit), limit))
        candidate = fitted(run, saliency, limit, decision)
        return carry_out(run, candidate, planned(run, saliency.analysis, candidate.decision), output)

    @property
    def samples(self) -> Samples | None:
        """The samples that fits see, once there was a cut."""
        return None if self._known is None else self._known.fit_on
