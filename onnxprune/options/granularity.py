"""Which kinds of units may go."""

from __future__ import annotations

from dataclasses import dataclass

from onnxprune import registry
from onnxprune.errors import UsageError
from onnxprune.options.declare import option, patterns
from onnxprune.options.kinds import Texts
from onnxprune.options.vocabulary import VocabularyFields, VocabularyOptions

__all__ = ["CHANNELS", "DEPTH", "EXPERTS", "HEADS", "GranularityFields", "GranularityOptions", "kinds_of"]

CHANNELS, DEPTH, EXPERTS = "channels", "depth", "experts"
#: Those of the channels that are heads, or widths of heads; by its name nothing else of them goes.
HEADS = "heads"
#: A kind of unit that has an option of its own.
_APART = "vocabulary"


def kinds_of(text: str) -> tuple[str, ...]:
    """Return the kinds that a text names, sorted.

    Raises
    ------
    UsageError
        If one isn't known.

    Examples
    --------
    >>> kinds_of("experts, channels")
    ('channels', 'experts')
    """
    known = sorted([*(name for name in registry.names("onnxprune.granularity") if name != _APART), HEADS])
    given = {part.strip() for part in text.split(",")}
    for name in sorted(given - {*known}):
        raise UsageError(f"--granularity takes {', '.join(known)}, or several with commas; got {name!r}.")
    return tuple(sorted(given))


@dataclass(frozen=True, kw_only=True)
class GranularityOptions(VocabularyOptions):
    """Which kinds of units may go."""

    granularity: str = option(
        CHANNELS,
        "what may go, several with commas: channels (heads and neurons, too), heads (no other channels), experts (of "
        "a mixture, ranked on samples by gate weight times norm of output; as many stay as are chosen), depth (whole "
        "residual branches, ranked on samples: attention and feed-forward parts, blocks of CNNs)",
        stage="decide",
        commands="prune plan",
        metavar="KIND,...",
    )
    drop: Texts = option(
        (),
        "drop the residual branches whose name matches, before anything else (regular expression, repeatable)",
        stage="decide",
        commands="prune plan",
        metavar="REGEX",
    )

    def __post_init__(self) -> None:
        """Check the names, and what branches go by."""
        super().__post_init__()
        object.__setattr__(self, "granularity", ",".join(kinds_of(self.granularity)))
        object.__setattr__(self, "drop", patterns("--drop", self.drop))
        for flag, given in (("--granularity depth", self.depth), ("--drop", bool(self.drop))):
            if given and self.keep_tokens is not None:
                raise UsageError(
                    f"{flag} and --keep-tokens are two steps; cut the vocabulary, and then that model."
                )
        if self.depth and self.calib is None:
            raise UsageError(
                "--granularity depth ranks branches by what the model gives without them; give samples with --calib, "
                "or name the branches with --drop."
            )
        if EXPERTS in self.kinds and self.fitted and self.calib is None:
            raise UsageError("Experts are ranked on samples, not by moments; give samples with --calib, too.")
        if self.depth and self.drop:
            raise UsageError(
                "--drop names the branches that go, and --granularity depth chooses some; give one of them."
            )

    def check_depth(self, *, bounded: bool) -> None:
        """Refuse depth where nothing but a floor says how much may go."""
        if self.depth and not bounded:
            raise UsageError(
                "--granularity depth takes --ratio or --target; a floor alone searches widths: give one of them, too."
            )

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of units that may go, sorted."""
        return kinds_of(self.granularity)

    @property
    def depth(self) -> bool:
        """Whether residual branches are to be chosen."""
        return DEPTH in self.kinds

    @property
    def others(self) -> tuple[str, ...]:
        """The kinds that are units of axes, sorted."""
        return tuple(kind for kind in self.kinds if kind != DEPTH)


class GranularityFields(VocabularyFields, total=False):
    """The fields of `GranularityOptions`, as keyword arguments."""

    granularity: str
    drop: Texts
