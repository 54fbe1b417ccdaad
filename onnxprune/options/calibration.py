"""The options of `onnxprune calibrate`, declared once: command line, Python API and docs/options.md."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from onnxprune.errors import UsageError
from onnxprune.options.declare import SharedFields, SharedOptions, documented, like, option
from onnxprune.options.kinds import Shapes
from onnxprune.options.pruning import Options

__all__ = ["CalibrateFields", "CalibrateOptions"]


@documented
@dataclass(frozen=True, kw_only=True)
class CalibrateOptions(SharedOptions):
    """What may be asked of `onnxprune.api.calibrate`.

    Raises
    ------
    UsageError
        If a value is out of range; the sentence names the option.
    """

    COMMAND = "calibrate"

    shard: str | None = option(
        None,
        "take this share of the samples only, such as 2/8; 'onnxprune merge' puts all shares together, and what it "
        "writes has the bytes of one run over all samples",
        stage="calibrate",
        commands="calibrate",
        metavar="I/N",
    )
    layers: str | None = option(
        None,
        "take the moments of this share of the layers only, such as 1/4, dealt by what they cost, of all samples or of "
        "a --shard; 'onnxprune merge' puts all together",
        stage="calibrate",
        commands="calibrate",
        metavar="I/N",
    )
    input_shapes: Shapes = like(Options, "input_shapes", "calibrate")
    seed: int = option(
        0, "seed of the positions that are drawn", stage="calibrate", commands="calibrate", metavar="N"
    )

    def __post_init__(self) -> None:
        """Refuse what says nothing without samples."""
        super().__post_init__()
        if self.calib is None:
            raise UsageError("'calibrate' needs samples; give them with --calib.")

    def as_pruning(self) -> Options:
        """Return the options under which a model is analysed for its moments."""
        names = ("calib", "labels", "samples", "calib_provider", "input_shapes", "seed")
        given: dict[str, Any] = {name: getattr(self, name) for name in names}
        return Options(ratio=0.5, **given)


class CalibrateFields(SharedFields, total=False):
    """The fields of `CalibrateOptions`, as keyword arguments."""

    shard: str | None
    layers: str | None
    input_shapes: Shapes
    seed: int
