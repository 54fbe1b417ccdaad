"""Which kinds of units may go."""

from __future__ import annotations

from dataclasses import dataclass

from onnxprune import registry
from onnxprune.errors import UsageError
from onnxprune.options.declare import option
from onnxprune.options.vocabulary import VocabularyFields, VocabularyOptions

__all__ = ["CHANNELS", "EXPERTS", "GranularityFields", "GranularityOptions", "kinds_of"]

CHANNELS, EXPERTS = "channels", "experts"
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
    known = [name for name in registry.names("onnxprune.granularity") if name != _APART]
    given = {part.strip() for part in text.split(",")}
    for name in sorted(given - {*known}):
        raise UsageError(f"--granularity takes {', '.join(known)}, or several with commas; got {name!r}.")
    return tuple(sorted(given))


@dataclass(frozen=True, kw_only=True)
class GranularityOptions(VocabularyOptions):
    """Which kinds of units may go."""

    granularity: str = option(
        CHANNELS,
        "what may go, several with commas: channels (heads and neurons, too), experts (of a mixture; as many stay as "
        "its router chooses)",
        stage="decide",
        commands="prune plan",
        metavar="KIND,...",
    )

    def __post_init__(self) -> None:
        """Check the names."""
        super().__post_init__()
        object.__setattr__(self, "granularity", ",".join(kinds_of(self.granularity)))

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of units that may go, sorted."""
        return kinds_of(self.granularity)


class GranularityFields(VocabularyFields, total=False):
    """The fields of `GranularityOptions`, as keyword arguments."""

    granularity: str
