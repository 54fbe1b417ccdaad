"""The options of `onnxprune compress`, declared once: command line, Python API, report and docs/options.md."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from onnxprune.errors import UsageError
from onnxprune.files.target import STDOUT
from onnxprune.options.declare import SharedFields, SharedOptions, documented, option, patterns
from onnxprune.options.kinds import Shapes, Texts
from onnxprune.options.target import checked

__all__ = ["FORMS", "SUFFIX", "CompressFields", "CompressOptions"]

#: What may be written, and how the name of a packed file ends.
FORMS, SUFFIX = ("auto", "onnx", "zst"), ".zst"


@documented
@dataclass(frozen=True, kw_only=True)
class CompressOptions(SharedOptions):
    """What may be asked of `onnxprune.compress`.

    Raises
    ------
    UsageError
        If a value is out of range; the sentence names the option.
    """

    COMMAND = "compress"

    target: str | None = option(
        None,
        "bytes of the file that is written, as a share of the input's or as an amount, such as bytes=0.1 or bytes=2MB; "
        "without it no weight changes, and the file is packed as it is",
        stage="decide",
        commands="compress",
        metavar="bytes=VALUE",
    )
    to: str = option(
        "auto",
        "onnx is a model that stock onnxruntime loads, zst a packed one, the smallest in transfer, which 'onnxprune "
        "decompress' or 'zstd -d' unpack; auto is zst where OUT ends in .zst, else onnx",
        stage="write",
        commands="compress",
        metavar="|".join(FORMS),
    )
    input_shapes: Shapes = option(
        {},
        "sizes for the dynamic axes of an input, such as name:1,3,224,224 (repeatable)",
        stage="calibrate",
        commands="compress",
        metavar="NAME:D,D,...",
        flag="--input-shape",
    )
    seed: int = option(
        0,
        "with --calib: seed of the choice of samples and positions",
        stage="calibrate",
        commands="compress",
        metavar="N",
        needs="calibrated",
    )
    check_speed: bool = option(
        False,
        "time the result in turns with the input, in onnxruntime on this machine, and tell it",
        stage="speed",
        commands="compress",
    )
    ignore: Texts = option(
        (),
        "leave weights as they are whose name, or whose layer's name, matches (regular expression, repeatable)",
        stage="decide",
        commands="compress",
        metavar="REGEX",
    )
    only: Texts = option(
        (),
        "change no weights but those that match (repeatable)",
        stage="decide",
        commands="compress",
        metavar="REGEX",
    )

    def __post_init__(self) -> None:
        """Check ranges, and bring values to their own types."""
        super().__post_init__()
        if self.to not in FORMS:
            raise UsageError(f"--to must be one of {', '.join(FORMS)}; got {self.to!r}.")
        if self.target is not None:
            checked(self.target)
            if not self.target.startswith("bytes=") or "+" in self.target or "," in self.target:
                raise UsageError(
                    f"--target of 'compress' is one budget of bytes, such as bytes=0.1; got {self.target!r}."
                )
        elif self.check_speed:
            raise UsageError(
                "--check-speed is for what --target changes; give a target such as bytes=0.1, or leave it out."
            )
        elif self.calib is not None:
            raise UsageError(
                "--calib is for what --target changes; give a target such as bytes=0.1, or leave it out."
            )
        object.__setattr__(self, "ignore", patterns("--ignore", self.ignore))
        object.__setattr__(self, "only", patterns("--only", self.only))

    def packed(self, output: Path | None) -> bool:
        """Whether a packed file is to be written."""
        return self.to == "zst" or (self.to == "auto" and output is not None and output.suffix == SUFFIX)

    def place(self, output: Path) -> Path:
        """Return the file that is written: a packed one's name ends in .zst."""
        named = output.suffix == SUFFIX
        if self.to == "onnx" and named:
            raise UsageError(
                f"--to onnx writes a model, and {str(output)!r} ends in .zst; give another name."
            )
        if str(output) == STDOUT or named or not self.packed(output):
            return output
        return output.with_name(output.name + SUFFIX)


class CompressFields(SharedFields, total=False):
    """The fields of `CompressOptions`, as keyword arguments; a test holds the two together."""

    target: str | None
    to: str
    input_shapes: Shapes
    seed: int
    check_speed: bool
    ignore: Texts
    only: Texts
