"""Every option, declared once: this feeds the command line, the Python API, the report's JSON and
docs/options.md.

This module imports nothing heavy, since the command line reads it before it knows what is asked.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import Any

from onnxprune.errors import UsageError, did_you_mean
from onnxprune.options.declare import documented, option, patterns
from onnxprune.options.granularity import GranularityFields, GranularityOptions
from onnxprune.options.kinds import Shapes, Share, Texts, meant_in_percent
from onnxprune.options.target import checked
from onnxprune.options.widths import PRESETS

__all__ = ["OptionFields", "Options", "Shapes", "parse_align", "parse_shape"]


@documented
@dataclass(frozen=True, kw_only=True)
class Options(GranularityOptions):
    """What may be asked of a pruning run.

    Raises
    ------
    UsageError
        If a value is out of range; the sentence names the option.
    """

    ratio: Share | None = option(
        None,
        "share of the units (channels, heads, neurons) of every group to remove; 0 copies the file",
        stage="decide",
        commands="prune plan",
        metavar="R",
        unit="0 <= R < 1",
    )
    criterion: str = option(
        "auto",
        "how units are ranked: {onnxprune.criteria}; auto is obs with --calib or --moments, and l2 without",
        stage="decide",
        commands="prune plan sensitivity",
        metavar="NAME",
    )
    align: str | int | None = option(
        "auto",
        "keep widths on multiples of this many channels: 'auto' suits this machine's onnxruntime, none is 1; or of a "
        f"target: {', '.join(PRESETS)}",
        stage="decide",
        commands="prune plan",
        metavar="auto|none|N|TARGET",
        unit="channels",
    )
    scope: str = option(
        "local",
        "rank the units within each group (local), or of the whole model together (global)",
        stage="decide",
        commands="prune plan",
        needs="by_ratio",
        metavar="local|global",
    )
    cap: Share = option(
        0.9,
        "with --scope global: the largest share of any one group that may go",
        stage="decide",
        commands="prune plan",
        metavar="SHARE",
        unit="0 < SHARE <= 1",
    )
    ignore: Texts = option(
        (),
        "leave alone what matches: the name of a group, weight or node (regular expression, repeatable)",
        stage="decide",
        commands="prune plan sensitivity",
        metavar="REGEX",
    )
    only: Texts = option(
        (),
        "cut nothing but the channels that a matching group, weight or node produces (repeatable)",
        stage="decide",
        commands="prune plan sensitivity",
        metavar="REGEX",
    )
    input_shapes: Shapes = option(
        {},
        "sizes for the dynamic axes of an input, such as name:1,3,224,224 (repeatable)",
        stage="decide",
        commands="prune plan inspect explain sensitivity run profile",
        metavar="NAME:D,D,...",
        flag="--input-shape",
    )
    allow_inexact: bool = option(
        False,
        "also cut axes that an average or a maximum is taken over (LayerNorm width); the result is marked inexact",
        stage="decide",
        commands="prune plan inspect explain sensitivity profile",
    )
    center_norms: bool = option(
        True,
        "leave LayerNorm as it is: by default it becomes an RMS norm where the width that it reads is cut, so that the "
        "cut is exact",
        stage="decide",
        commands="prune plan inspect explain sensitivity profile",
        flag="--no-center-norms",
    )
    open_io: Texts = option(
        (),
        "let inputs and outputs of a matching name shrink, axes of fixed size only, such as the heads of a cache of "
        "keys and values: past|present (regular expression, repeatable)",
        stage="decide",
        commands="prune plan inspect explain sensitivity",
        metavar="REGEX",
    )
    seed: int = option(
        0,
        {
            "": "seed of the random criterion and of the random test inputs",
            "verify": "seed of the random test inputs",
            "plan": "seed of the random criterion",
            "sensitivity": "seed of the random criterion and of positions that are drawn",
        },
        stage="decide",
        commands="prune plan sensitivity verify",
        metavar="N",
    )
    target: Texts = option(
        (),
        "instead of --ratio: what may stay of the whole model ({onnxprune.budgets}), as a share or an amount: "
        "macs=0.5, params=3M, bytes=20MB, memory=0.7 (activations alive at once, and weights), latency=4ms (measured "
        "here); all of several must hold (repeat it, or macs=0.5+bytes=20MB)",
        stage="decide",
        commands="prune plan",
        metavar="KIND=VALUE",
    )
    moments: str | None = option(
        None,
        "moments of samples, written by 'onnxprune calibrate' or 'merge', to choose by; without --calib layers are "
        "refitted by them too, each to the original's inputs, and nothing that reads samples is done",
        stage="calibrate",
        commands="prune sensitivity",
        metavar="M.npz",
    )
    steps: int = option(
        1,
        "with --calib: reach the cut in this many steps of prune and refit, taking the loss curves again after each",
        stage="calibrate",
        metavar="K",
        needs="calibrated",
    )
    rotate: bool = option(
        True,
        "with --calib: first turn attention heads and linear bottlenecks, without loss, so that few of their axes hold "
        "most of what is read",
        stage="calibrate",
        commands="prune sensitivity",
        flag="--no-rotate",
        needs="calibrated",
    )
    trials: int = option(
        24,
        "with --calib and --target: fits on few samples, at most so many, each with one group cut alone (or a few "
        "neighbours), to find how much its errors matter at the model's outputs, and a quarter as many of whole cuts; "
        "0 for none",
        stage="calibrate",
        metavar="N",
        needs="calibrated by_budget",
    )
    min_agreement: Share | None = option(
        None,
        "with --calib: the top-1 must agree with the original's on at least this share of samples set aside; the "
        "largest such cut, or one that meets --target as well, or none",
        stage="calibrate",
        metavar="SHARE",
        unit="0 to 1",
        needs="calibrated",
    )
    max_drop: float | None = option(
        None,
        "with --calib and --labels: the cut must cost at most this much accuracy on samples set aside; the largest "
        "such cut, or one that meets --target as well, or none",
        stage="calibrate",
        metavar="POINTS",
        unit="points",
        needs="calibrated",
    )
    check_speed: bool = option(
        False,
        "time the result against the input; one that isn't faster is cut again on wider multiples, and never written "
        "(always so with a latency target)",
        stage="speed",
        commands="prune plan",
    )
    provider: str = option(
        "cpu",
        "time on this execution provider of onnxruntime",
        stage="speed",
        commands="prune plan profile",
        needs="timed",
        metavar="NAME",
    )
    batch: int | None = option(
        None,
        "time with this first axis of every input, where it is dynamic",
        stage="speed",
        commands="prune plan profile",
        needs="timed",
        metavar="N",
    )
    threads: int | None = option(
        None,
        "time with this many threads; as many as onnxruntime likes otherwise",
        stage="speed",
        commands="prune plan profile",
        needs="timed",
        metavar="N",
    )
    verify: bool = option(
        True,
        "skip the proof that the result computes what it must",
        stage="verify",
        commands="prune apply",
        flag="--no-verify",
    )
    inputs: Any = option(
        None,
        "inputs to verify on, beside random ones, in any form that samples may have: an .npz file with one array for "
        "each input, a folder, script.py:function",
        stage="verify",
        commands="prune apply verify",
        needs="verify",
        metavar="FILE",
    )
    rtol: float | None = option(
        None,
        "greatest relative error of law 1 that passes; by default 1e-4, or 1e-9 where all floats are double",
        stage="verify",
        commands="prune apply verify",
        needs="verify",
        metavar="E",
        unit="of the largest output value",
    )

    def __post_init__(self) -> None:
        """Check ranges, and bring values to their own types."""
        super().__post_init__()
        _check_amounts(self)
        self._refuse_idle(["timed", "verify", "by_ratio", "by_budget", "whole"])
        if (self.keep_tokens is not None or self.drop) and not self.by_ratio and not self.by_budget:
            object.__setattr__(self, "ratio", 0.0)  # nothing but the vocabulary, or branches by name
        if self.reproducible and self.timed:
            raise UsageError(
                "--reproducible leaves times out of the report, and --check-speed and latency targets ask for them; "
                "leave one of them out."
            )
        if self.ratio is None:
            if not self.target and self.min_agreement is None and self.max_drop is None:
                raise UsageError("--ratio or --target must say how much shall go.")
        elif not isinstance(self.ratio, (int, float)) or not 0 <= self.ratio < 1:
            raise UsageError(
                f"--ratio must be at least 0 and below 1, since a group never loses all of it; "
                f"got {self.ratio}.{meant_in_percent(self.ratio)}"
            )
        if self.scope not in ("local", "global"):
            raise UsageError(f"--scope must be 'local' or 'global'; got {self.scope!r}.")
        if not 0 < self.cap <= 1:
            raise UsageError(f"--cap must be above 0 and at most 1; got {self.cap}.")
        if self.cap != Options.cap and self.scope != "global":
            raise UsageError("--cap holds for --scope global only; give that too, or leave --cap out.")
        if self.rtol is not None and not self.rtol > 0:
            raise UsageError(f"--rtol must be above 0; got {self.rtol}.")
        if self.criterion == "auto":
            object.__setattr__(self, "criterion", "obs" if self.fitted else "l2")
        object.__setattr__(self, "align", parse_align(self.align))
        object.__setattr__(self, "ignore", patterns("--ignore", self.ignore))
        object.__setattr__(self, "only", patterns("--only", self.only))
        object.__setattr__(self, "open_io", patterns("--open-io", self.open_io))

    @property
    def timed(self) -> bool:
        """Whether results are to be timed."""
        parts = (part for text in self.target for part in text.split("+"))
        return self.check_speed or any(part.strip().startswith("latency=") for part in parts)

    @property
    def by_ratio(self) -> bool:
        """Whether a share of the units goes."""
        return self.ratio is not None

    @property
    def by_budget(self) -> bool:
        """Whether a budget is shared among the groups, be it that of a search."""
        return bool(self.target) or self.min_agreement is not None or self.max_drop is not None

    def decided(self, ratio: float) -> Options:
        """Return the options as a plan has them: the share of the units that went, whatever decided it."""
        fixed: dict[str, Any] = {
            "target": (),
            "min_agreement": None,
            "max_drop": None,
            "trials": Options.trials,
        }
        return dataclasses.replace(self, ratio=ratio, check_speed=self.timed, **fixed)


class OptionFields(GranularityFields, total=False):
    """The fields of `Options`, as keyword arguments; a test holds the two together."""

    ratio: Share | None
    criterion: str
    align: str | int | None
    scope: str
    cap: Share
    ignore: Texts
    only: Texts
    input_shapes: Shapes
    allow_inexact: bool
    center_norms: bool
    open_io: Texts
    seed: int
    target: Texts
    moments: str | None
    steps: int
    rotate: bool
    trials: int
    min_agreement: Share | None
    max_drop: float | None
    check_speed: bool
    provider: str
    batch: int | None
    threads: int | None
    verify: bool
    inputs: Any
    rtol: float | None


def _check_amounts(options: Options) -> None:
    """Check how much shall go, and bring the target to its own type."""
    options.check_depth(bounded=bool(options.target) or options.ratio is not None)
    if options.target and options.ratio is not None:
        raise UsageError("--target and --ratio both say how much shall go; give one of them.")
    object.__setattr__(options, "target", checked(options.target or ()))
    if options.max_drop is not None and options.labels is None:
        raise UsageError("--max-drop needs true labels; name their key in the samples with --labels.")
    if options.min_agreement is not None and not 0 < options.min_agreement <= 1:
        raise UsageError(f"--min-agreement must be above 0 and at most 1; got {options.min_agreement}.")
    if options.max_drop is not None and not options.max_drop >= 0:
        raise UsageError(f"--max-drop must not be negative; got {options.max_drop}.")
    if options.steps < 1:
        raise UsageError(f"--steps must be at least 1; got {options.steps}.")
    if options.steps > 1 and options.ratio is None and not options.target:
        raise UsageError("--steps goes with --ratio or --target; a search for the largest cut takes none.")
    if options.trials < 0:
        raise UsageError(f"--trials must be at least 0; got {options.trials}.")
    for name in ("batch", "threads"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UsageError(f"--{name} must be at least 1; got {value}.")


def parse_align(value: str | int | None) -> str | int:
    """Return ``"auto"``, or a number of channels, also that of a target by its name.

    Examples
    --------
    >>> parse_align("16"), parse_align("none"), parse_align(None), parse_align("auto"), parse_align("trt-int8")
    (16, 1, 1, 'auto', 32)
    """
    text = "none" if value is None else str(value).strip().lower()
    text = str(PRESETS.get(text, text))
    if text in ("auto", "none"):
        return text if text == "auto" else 1
    if not re.fullmatch(r"[0-9]{1,6}", text) or int(text) < 1:
        raise UsageError(
            "--align must be 'auto', 'none', a number of channels from 1, or one of "
            f"{', '.join(PRESETS)}; got {value!r}.{did_you_mean(text, PRESETS)}"
        )
    return int(text)


def parse_shape(text: str) -> tuple[str, tuple[int, ...]]:
    """Split ``name:1,3,224,224``; a name may hold colons itself.

    Examples
    --------
    >>> parse_shape("x:0:1,3,8,8")
    ('x:0', (1, 3, 8, 8))
    """
    name, colon, sizes = text.rpartition(":")
    if not colon or not name or not re.fullmatch(r"\s*[0-9]+\s*(,\s*[0-9]+\s*)*", sizes):
        raise UsageError(f"--input-shape must look like name:1,3,224,224; got {text!r}.")
    return name, tuple(int(size) for size in sizes.split(","))
