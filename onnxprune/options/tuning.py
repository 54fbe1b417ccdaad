"""The options of `onnxprune tune`, declared once: command line, Python API, report and docs/options.md."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from onnxprune.errors import UsageError
from onnxprune.options.declare import SharedFields, SharedOptions, documented, like, option, patterns
from onnxprune.options.kinds import Shapes, Texts
from onnxprune.options.pruning import Options
from onnxprune.options.target import checked

__all__ = ["AIMS", "TuneFields", "TuneOptions"]

#: What may be made least.
AIMS = ("latency", "bytes", "macs", "memory")


@documented
@dataclass(frozen=True, kw_only=True)
class TuneOptions(SharedOptions):
    """What may be asked of `onnxprune.api.tune`.

    Raises
    ------
    UsageError
        If a value is out of range; the sentence names the option.
    """

    COMMAND = "tune"

    max_drop: float = option(
        dataclasses.MISSING,
        "how much of the metric may be lost, on data that no fit has seen: points of accuracy with --labels; with "
        "--metric hundredths where the input's metric is a share from 0 to 1, else in the metric's own unit",
        stage="decide",
        commands="tune",
        metavar="POINTS",
        unit="points",
    )
    metric: str | None = option(
        None,
        "what is judged by: a function of a path, or of an InferenceSession where its argument is called session, that "
        "returns a number, or a number for each item (then there is an interval)",
        stage="decide",
        commands="tune",
        metavar="SCRIPT.py:FUNCTION",
    )
    lower_is_better: bool = option(
        False, "with --metric: less is better, as of an error", stage="decide", commands="tune"
    )
    held_out: Any = option(
        None,
        "with --labels and no --metric: judge on these labelled samples, which no fit sees; else on a tenth of those "
        "of --calib",
        stage="calibrate",
        commands="tune",
        metavar="SAMPLES",
        flag="--eval",
    )
    minimize: str = option(
        "latency",
        "what is made least: latency (measured here), bytes of the file, macs, or memory (an estimate)",
        stage="decide",
        commands="tune",
        metavar="|".join(AIMS),
    )
    target: Texts = option(
        (),
        "end with the first model that loses no more than it may and meets this ({onnxprune.budgets}), such as "
        "latency=0.5 or bytes=2MB; all of several must hold",
        stage="decide",
        commands="tune",
        metavar="KIND=VALUE",
    )
    minutes: float | None = option(
        None,
        "end by then: begin nothing that would end later, and stop a trial that takes longer than was to be known; "
        "without it the search ends by itself",
        stage="decide",
        commands="tune",
        metavar="M",
        unit="minutes",
    )
    state: str | None = option(
        None,
        "folder of finished members, from which a search that was stopped goes on; by default OUT's name with .tune",
        stage="write",
        commands="tune",
        metavar="DIR",
    )
    recover: str = like(Options, "recover", "tune")
    ignore: Texts = like(Options, "ignore", "tune")
    only: Texts = like(Options, "only", "tune")
    input_shapes: Shapes = like(Options, "input_shapes", "tune")
    threads: int | None = like(Options, "threads", "tune")

    def __post_init__(self) -> None:
        """Check ranges, and bring values to their own types."""
        super().__post_init__()
        if self.calib is None:
            raise UsageError("'tune' fits what it cuts on samples; give them with --calib.")
        if self.metric is None and self.labels is None:
            raise UsageError(
                "'tune' needs what to judge by: either --metric script.py:function, or --labels KEY for the accuracy "
                "of a classifier."
            )
        if self.metric is not None and self.held_out is not None:
            raise UsageError("--eval goes with --labels alone; a script of --metric reads its own data.")
        if self.metric is None and self.lower_is_better:
            raise UsageError("--lower-is-better goes with --metric; more accuracy is always better.")
        if not 0 <= self.max_drop < math.inf:
            raise UsageError(f"--max-drop must not be negative; got {self.max_drop}.")
        if self.minimize not in AIMS:
            raise UsageError(f"--minimize must be one of {', '.join(AIMS)}; got {self.minimize!r}.")
        object.__setattr__(self, "target", checked(self.target))
        if any("," in text for text in self.target):
            raise UsageError("--target of 'tune' is one value of each kind; it finds a frontier by itself.")
        if self.minutes is not None and not 0 < self.minutes < math.inf:
            raise UsageError(f"--minutes must be above 0; got {self.minutes}.")
        if self.threads is not None and self.threads < 1:
            raise UsageError(f"--threads must be at least 1; got {self.threads}.")
        object.__setattr__(self, "ignore", patterns("--ignore", self.ignore))
        object.__setattr__(self, "only", patterns("--only", self.only))

    def pruning(self, target: str, align: str | int, labelled: bool) -> Options:
        """Return the options of one cut.

        Parameters
        ----------
        target : str
            Such as ``"macs=0.5"``.
        align : str or int
            Of widths.
        labelled : bool
            Whether the samples hold labels.
        """
        return Options(
            calib=self.calib,
            samples=self.samples,
            calib_provider=self.calib_provider,
            labels=self.labels if labelled else None,
            target=(target,),
            align=align,
            recover=self.recover,
            ignore=self.ignore,
            only=self.only,
            input_shapes=self.input_shapes,
        )


class TuneFields(SharedFields, total=False):
    """The fields of `TuneOptions`, as keyword arguments; a test holds the two together."""

    max_drop: float
    metric: str | None
    lower_is_better: bool
    held_out: Any
    minimize: str
    target: Texts
    minutes: float | None
    state: str | None
    recover: str
    ignore: Texts
    only: Texts
    input_shapes: Shapes
    threads: int | None
