"""The options of `onnxprune fleet`, declared once: command line, Python API and docs/options.md."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypedDict

from onnxprune.errors import UsageError
from onnxprune.options.declare import bring_to_kinds, documented, option
from onnxprune.options.kinds import Share, Texts

__all__ = ["FleetFields", "FleetOptions"]


@documented
@dataclass(frozen=True, kw_only=True)
class FleetOptions:
    """What may be asked of `onnxprune.api.fleet`; what a spec says of a model goes before.

    Raises
    ------
    UsageError
        If a value is out of range; the sentence names the option.
    """

    ratio: Share | None = option(
        None,
        "share of the channels that goes of each group, where the spec doesn't say",
        stage="decide",
        commands="fleet",
        metavar="R",
    )
    target: Texts = option(
        (),
        "instead of --ratio: what may stay of each model, as for 'prune'; several values, macs=0.7,0.5, make several",
        stage="decide",
        commands="fleet",
        metavar="KIND=VALUE",
    )
    calib: str | None = option(
        None,
        "samples for all models, where the spec doesn't say: such as 'synthetic', or script.py:function",
        stage="calibrate",
        commands="fleet",
        metavar="SAMPLES",
    )
    jobs: int = option(
        1,
        "models that are worked at side by side, a process each",
        stage="write",
        commands="fleet",
        metavar="N",
    )
    retry: bool = option(
        False, "try again what failed before; what is done stays", stage="write", commands="fleet"
    )

    def __post_init__(self) -> None:
        """Check ranges, and bring values to their own types."""
        bring_to_kinds(self)
        if self.jobs < 1:
            raise UsageError(f"--jobs must be at least 1; got {self.jobs}.")
        if self.ratio is not None and self.target:
            raise UsageError("--ratio and --target both say how much goes; leave one of them out.")

    def to_prune(self) -> dict[str, Any]:
        """Return what is given of the options of 'prune'."""
        given: dict[str, Any] = {"ratio": self.ratio, "target": self.target, "calib": self.calib}
        return {name: value for name, value in given.items() if value not in (None, ())}


class FleetFields(TypedDict, total=False):
    """The fields of `FleetOptions`, as keyword arguments."""

    ratio: Share | None
    target: Texts
    calib: str | None
    jobs: int
    retry: bool
