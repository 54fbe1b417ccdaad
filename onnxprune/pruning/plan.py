"""The plan: what shall be cut from which model, as a strict, diffable, hand-editable JSON file.

Format 1, every key required unless marked optional, no other key allowed::

    {
    "format": 1,
    "model_sha256": "64 hex digits",          of the input file
    "criterion": "l2", "ratio": 0.5, "align": 16, "seed": 0, "scope": "local", "inexact": false,
    "groups": [{"name": "conv1.weight:0", "removed_units": [1, 5], "units": 64}],
    "cuts": [{"tensor": "conv1.weight", "axis": 0, "removed": [1, 5]}],             optional
    "frozen": [{"tensor": "fc.weight", "axis": 0, "reason": "graph output"}],       optional
    "input_shapes": {"x": [1, 3, 224, 224]},
    "open_io": ["past|present"],                   optional: patterns of inputs and outputs that may shrink
    "granularity": ["channels", "experts"],        optional: kinds of units that might go; channels where it isn't there
    "vocabulary": {"keep": [0, 7], "size": 9, "remap": false, "unk": 0},   optional: ids that stay; cut first
    "depth": ["layer1.2"]}                         optional: residual branches that go, before all else

``groups`` is the decision. ``cuts`` follow from it and are worked out anew when the plan is applied: where they are
given they must agree, so delete them after an edit by hand. ``frozen`` is for reading. Lists are sorted.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from onnxprune.cut.cuts import TensorCut
from onnxprune.errors import PlanError
from onnxprune.files.commit import write_text
from onnxprune.files.target import STDOUT
from onnxprune.graph.groups import Frozen
from onnxprune.pruning import strict
from onnxprune.report.record import Shown, dumps

__all__ = ["FORMAT", "Plan", "PlannedGroup", "PlannedVocabulary"]

#: The version of the file format that is written, and the only one that is read.
FORMAT = 1
#: Bytes of a plan's file, and the size of an axis, beyond which it is no plan.
MOST_BYTES, MOST_SIZE = 1 << 28, 2**63 - 1

_LISTS = ("cuts", "frozen", "open_io", "granularity", "depth")
_OPTIONAL: dict[str, Any] = {**{name: [] for name in _LISTS}, "vocabulary": None}
_T = TypeVar("_T")


@dataclass(frozen=True)
class PlannedGroup:
    """The units that one group loses.

    Attributes
    ----------
    name : str
        Of the group.
    removed_units : tuple of int
        Sorted, each in ``0 .. units - 1``; never all of them.
    units : int
        How many the group has.
    """

    name: str
    removed_units: tuple[int, ...]
    units: int


@dataclass(frozen=True)
class PlannedVocabulary:
    """The ids that stay, sorted, of ``size`` ids; with ``remap`` the others are read as ``unk``."""

    keep: tuple[int, ...]
    size: int
    remap: bool
    unk: int


@dataclass(frozen=True, kw_only=True, repr=False)
class Plan(Shown):
    """What shall be cut from one model.

    Attributes
    ----------
    model_sha256 : str
        Of the model that the plan was made for, its external data included; see `Model.sha256`.
    criterion, ratio, align, seed, scope : str, float, int, int, str
        How it was decided; 1 is no alignment.
    inexact : bool
        Whether axes that an average runs over might be cut.
    groups : tuple of PlannedGroup
        The decision, by name; groups that lose nothing may be listed.
    cuts : tuple of TensorCut
        What follows for each weight, for reading; empty means: not given.
    frozen : tuple of Frozen
        What was left alone, and why, for reading.
    input_shapes : mapping
        Graph input -> sizes that its dynamic axes were given.
    open_io : tuple of str
        Regular expressions: inputs and outputs that may shrink.
    granularity : tuple of str
        Kinds of units that might go; empty: channels.
    vocabulary : PlannedVocabulary or None
        Ids that stay; the groups are those of the model that has no others.
    depth : tuple of str
        Residual branches that go; the groups are those of the model without them.
    """

    model_sha256: str
    criterion: str
    ratio: float
    align: int
    seed: int
    scope: str
    inexact: bool
    groups: tuple[PlannedGroup, ...]
    cuts: tuple[TensorCut, ...] = ()
    frozen: tuple[Frozen, ...] = ()
    input_shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    open_io: tuple[str, ...] = ()
    granularity: tuple[str, ...] = ()
    vocabulary: PlannedVocabulary | None = None
    depth: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Sort, so that equal plans are equal files."""
        put = object.__setattr__
        put(self, "groups", tuple(sorted(self.groups, key=lambda g: g.name)))
        put(self, "cuts", tuple(sorted(self.cuts, key=lambda c: (c.tensor, c.axis))))
        put(self, "frozen", tuple(sorted(self.frozen, key=lambda f: (f.tensor, f.axis, f.reason))))
        put(self, "input_shapes", {n: tuple(s) for n, s in sorted(self.input_shapes.items())})

    def brief(self) -> str:
        """Return how much is to go, in a sentence."""
        gone, units = sum(len(g.removed_units) for g in self.groups), sum(g.units for g in self.groups)
        return f"{gone:,} of {units:,} units of {len(self.groups):,} groups are to go"

    def _repr_html_(self) -> str:
        from onnxprune.report.page.notebook import of_cuts

        return of_cuts(self.brief(), [(g.name, len(g.removed_units), g.units) for g in self.groups])

    def dumps(self) -> str:
        """Return the plan as JSON text; equal plans give equal text."""
        lists: dict[str, tuple[Any, ...]] = {"groups": self.groups, "cuts": self.cuts, "frozen": self.frozen}
        values: dict[str, Any] = {"format": FORMAT}
        for spec in fields(self):
            name = spec.name
            values[name] = [asdict(e) for e in lists[name]] if name in lists else getattr(self, name)
        values["vocabulary"] = None if self.vocabulary is None else asdict(self.vocabulary)
        return dumps(
            {name: value for name, value in values.items() if value or name not in _OPTIONAL or name in lists}
        )

    @classmethod
    def loads(cls, text: str, where: str = "The plan") -> Plan:
        """Read a plan from JSON text.

        Parameters
        ----------
        text : str
        where : str
            How messages call the plan.

        Raises
        ------
        PlanError
            If it isn't JSON, or anything in it is unknown, missing, of a wrong type or out of range; the sentence
            names the key.
        """
        try:
            values = json.loads(text, object_pairs_hook=strict.no_twins, parse_constant=strict.no_constant)
        except (ValueError, RecursionError) as error:
            raise PlanError(f"{where} isn't JSON: {error}.") from error
        try:
            return _plan(values)
        except strict.Wrong as error:
            raise PlanError(f"{where} is malformed: {error}.") from error

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the plan, complete or not at all.

        Raises
        ------
        OutputError
            If the file can't be written.
        """
        write_text(Path(path), self.dumps())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Plan:
        """Read a plan from a file; see `loads`.

        Raises
        ------
        PlanError
            If the file can't be read, or isn't a sound plan.
        """
        try:
            with Path(path).open("rb") as file:
                data = file.read(MOST_BYTES + 1)
            if len(data) > MOST_BYTES:
                raise ValueError(f"it has more than {MOST_BYTES:,} bytes")
            text = data.decode("utf-8-sig")  # as editors of Windows save it
        except (OSError, UnicodeDecodeError, ValueError) as error:
            why = getattr(error, "strerror", None) or error
            if str(path) == STDOUT:
                why = "that is standard output, where it is written; name a file"
            raise PlanError(f"The plan {str(path)!r} can't be read: {why}.") from error
        return cls.loads(text, f"The plan {str(path)!r}")

    def check_model(self, sha256: str, file_sha256: str = "") -> None:
        """Refuse a plan that was made for another model.

        Parameters
        ----------
        sha256 : str
            Of the model, its external data included.
        file_sha256 : str
            Of its file alone, which plans of version 0.1.0 have.

        Raises
        ------
        PlanError
            With both hashes.
        """
        if self.model_sha256 == sha256:
            return
        if self.model_sha256 == file_sha256:
            raise PlanError(
                f"The plan names the model's file alone (sha256 {file_sha256}), so it can't tell whether it was made "
                f"for this external data; with it the sha256 is {sha256}: make a new plan with 'onnxprune plan'."
            )
        data = ", weights in external data included" if file_sha256 not in ("", sha256) else ""
        raise PlanError(
            f"The plan is for another model: it was made for sha256 {self.model_sha256}, this one has "
            f"{sha256}{data}; make a new one with 'onnxprune plan'."
        )


def _plan(values: Any) -> Plan:
    if isinstance(values, dict) and values.get("format", FORMAT) != FORMAT:
        raise strict.Wrong(
            f'"format" is {strict.shown(values["format"])}, this version of onnxprune reads {FORMAT}'
        )
    names = ("format", *(spec.name for spec in fields(Plan)))
    known = strict.record(_OPTIONAL | values if isinstance(values, dict) else values, names, "it")
    strict.integer(known["format"], '"format"')
    groups = strict.each(known["groups"], '"groups"', _group)
    cuts = strict.each(known["cuts"], '"cuts"', _cut)
    strict.distinct([g.name for g in groups], '"groups"')
    strict.distinct([(c.tensor, c.axis) for c in cuts], '"cuts"')
    return Plan(
        model_sha256=strict.matching(
            known["model_sha256"], r"[0-9a-f]{64}", '"model_sha256"', "64 lower-case hex digits"
        ),
        criterion=strict.text(known["criterion"], '"criterion"'),
        ratio=strict.share(known["ratio"], '"ratio"'),
        align=strict.integer(known["align"], '"align"', 1),
        seed=strict.integer(known["seed"], '"seed"', 0),
        scope=strict.matching(known["scope"], "local|global", '"scope"', '"local" or "global"'),
        inexact=strict.flag(known["inexact"], '"inexact"'),
        groups=tuple(groups),
        cuts=tuple(cuts),
        frozen=tuple(strict.each(known["frozen"], '"frozen"', _frozen)),
        input_shapes=_shapes(known["input_shapes"], '"input_shapes"'),
        open_io=tuple(strict.each(known["open_io"], '"open_io"', strict.text)),
        granularity=tuple(strict.each(known["granularity"], '"granularity"', strict.text)),
        vocabulary=_vocabulary(known["vocabulary"]),
        depth=tuple(strict.each(known["depth"], '"depth"', strict.text)),
    )


def _group(value: Any, where: str) -> PlannedGroup:
    known = strict.record(value, ("name", "removed_units", "units"), where)
    name = strict.text(known["name"], f'"name" of {where}')
    where = f"the group {name!r}"
    units = strict.integer(known["units"], f'"units" of {where}', 1)
    removed = strict.indices(known["removed_units"], f'"removed_units" of {where}', units)
    if len(removed) == units:
        raise strict.Wrong(f"{where} would lose all of its {units} units; leave at least one")
    return PlannedGroup(name, removed, units)


def _vocabulary(value: Any) -> PlannedVocabulary | None:
    if value is None:
        return None
    where = '"vocabulary"'
    known = strict.record(value, ("keep", "size", "remap", "unk"), where)
    size = strict.integer(known["size"], f'"size" of {where}', 1)
    keep = strict.indices(known["keep"], f'"keep" of {where}', size)
    unk = strict.integer(known["unk"], f'"unk" of {where}', 0)
    if unk not in keep:
        raise strict.Wrong(f'"unk" of {where} is {unk}, which "keep" doesn\'t hold')
    return PlannedVocabulary(keep, size, strict.flag(known["remap"], f'"remap" of {where}'), unk)


def _cut(value: Any, where: str) -> TensorCut:
    known = strict.record(value, ("tensor", "axis", "removed"), where)
    axis = strict.integer(known["axis"], f'"axis" of {where}', 0)
    removed = strict.indices(known["removed"], f'"removed" of {where}', None)
    return TensorCut(strict.text(known["tensor"], f'"tensor" of {where}'), axis, removed)


def _frozen(value: Any, where: str) -> Frozen:
    known = strict.record(value, ("tensor", "axis", "reason"), where)
    axis = strict.integer(known["axis"], f'"axis" of {where}', 0)
    return Frozen(
        strict.text(known["tensor"], f'"tensor" of {where}'),
        axis,
        strict.text(known["reason"], f'"reason" of {where}'),
    )


def _shapes(value: Any, where: str) -> dict[str, tuple[int, ...]]:
    if not isinstance(value, dict):
        raise strict.Wrong(f"{where} must be an object, it is {strict.shown(value)}")
    return {name: tuple(strict.each(sizes, f"{where} of {name!r}", _size)) for name, sizes in value.items()}


def _size(value: Any, where: str) -> int:
    size = strict.integer(value, where, 0)
    if size > MOST_SIZE:
        raise strict.Wrong(f"{where} must be at most {MOST_SIZE}, it is {strict.shown(size)}")
    return size
