"""Which groups may be cut: ``--ignore``, ``--only``, and alternatives.

A regular expression is searched in (not matched against all of) the names of groups, weights and nodes, and of the
modules that nodes were exported from.

- ``--ignore`` leaves alone whatever is named: every group that would change a matching weight, or an axis of
a tensor that
  a matching node reads or writes.
- ``--only`` cuts what the named thing produces: groups of that name, groups whose channels a matching weight
or node
  makes. (A layer's weight is also sliced where it consumes the channels of the layer before; those aren't
  picked.)
- Where an axis could be cut along two factors (whole heads, or head width), one of the two is an alternative,
cut only
  when ``--only`` picks nothing else of its component.
"""

from __future__ import annotations

import difflib
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np

from onnxprune.errors import UsageError
from onnxprune.graph.coupling import Applied, Dims
from onnxprune.graph.group_types import Group
from onnxprune.graph.groups import Grouping
from onnxprune.graph.scopes import names_of

__all__ = ["near_names", "passed_over", "pick"]

#: Metadata of a node that names the modules around it.


def pick(grouping: Grouping, ignore: Sequence[str] = (), only: Sequence[str] = ()) -> list[Group]:
    """Return the groups that may be cut.

    Parameters
    ----------
    grouping : Grouping
    ignore, only : sequence of str
        Regular expressions.

    Raises
    ------
    UsageError
        If one of them matches nothing in the model; the sentence lists near names.
    """
    if not ignore and not only:
        return [g for g in grouping.groups if not g.alternative]
    names = _Names(grouping)
    spared = {name for pattern in ignore for name in names.search("--ignore", pattern, produced=False)}
    wanted = {name for pattern in only for name in names.search("--only", pattern, produced=True)}
    groups = [g for g in grouping.groups if g.name not in spared and (not only or g.name in wanted)]
    main = {g.component for g in groups if not g.alternative}
    return [g for g in groups if not g.alternative or (only and g.component not in main)]


def passed_over(grouping: Grouping, groups: Iterable[Group]) -> list[str]:
    """Return what is to be said of layers that stay whole for another layer's sake.

    Of whole heads and the width of heads both are axes of the same weights. In an outer product the factors are made by
    different layers, of which one stays as it is.

    Parameters
    ----------
    grouping : Grouping
    groups : iterable of Group
        Those that may be cut.
    """
    first: dict[int, Group] = {}
    changed: defaultdict[int, set[str]] = defaultdict(set)
    for group in groups:
        first.setdefault(group.component, group)
        changed[group.component] |= {member.tensor for member in group.members}
    notes = []
    for group in grouping.groups:
        made = {member.tensor for member in group.members if not member.contracted}
        if group.alternative and made and group.component in first and not made & changed[group.component]:
            notes.append(
                f"{group.name} stays whole: one axis holds it times {first[group.component].name}, and is cut along "
                f"one of the two; --only '^{re.escape(group.name)}$' takes it instead"
            )
    return notes


class _Names:
    """What there is to match, and the groups behind each name."""

    def __init__(self, grouping: Grouping) -> None:
        self.grouping = grouping
        self.group_of_unit = []
        for family in grouping.families:
            owner = np.full(family.solution.inexact.size, -1, np.int64)
            for number, group in enumerate(family.groups):
                owner[family.numbers[group.name]] = number
            self.group_of_unit.append(owner)

    def search(self, option: str, pattern: str, *, produced: bool) -> set[str]:
        """Return the names of the groups behind whatever a pattern matches."""
        regex = re.compile(pattern)
        coupling = self.grouping.coupling
        hits = {g.name for g in self.grouping.groups if regex.search(g.name)}
        known = bool(hits)
        for group in self.grouping.groups:
            for member in group.members:
                if any(map(regex.search, (member.tensor, *coupling.aliases.get(member.tensor, ())))):
                    known = True
                    if not (produced and member.contracted):
                        hits.add(group.name)
        names = {name for i in coupling.instances for name in (i.tensor, *coupling.aliases.get(i.tensor, ()))}
        known = known or any(map(regex.search, names))
        for applied in coupling.nodes:
            if any(map(regex.search, names_of(applied.node.name, applied.proto))):
                known = True
                hits |= self._of_node(applied, produced)
        if not known:
            raise UsageError(self._unknown(option, pattern))
        return hits

    def _of_node(self, applied: Applied, produced: bool) -> set[str]:
        axes: Iterable[Dims | None] = applied.outs if produced else (*applied.ins, *applied.outs)
        space, names = self.grouping.coupling.space, set()
        for dims in axes:
            for dim in dims or ():
                root = space.find(dim)
                for family, owner in zip(self.grouping.families, self.group_of_unit, strict=True):
                    unit = family.solution.units_of(root, space.sizes[root])
                    numbers = np.unique(owner[unit[unit >= 0]])
                    names |= {family.groups[n].name for n in numbers if n >= 0}
        return names

    def _unknown(self, option: str, pattern: str) -> str:
        coupling = self.grouping.coupling
        names = [g.name for g in self.grouping.groups]
        names += [i.tensor for i in coupling.instances]
        names += [name for a in coupling.nodes for name in names_of(a.node.name, a.proto)]
        near = near_names(pattern, names)
        hint = f"; near names are {', '.join(repr(n) for n in near)}" if near else ""
        return (
            f"{option} {pattern!r} matches no group, weight or node of the model{hint}; "
            "'onnxprune inspect' lists the groups."
        )


def near_names(pattern: str, names: Iterable[str]) -> list[str]:
    """Return the few names that are most like a pattern."""
    unique = list(dict.fromkeys(names))
    plain = re.sub(r"[\\^$*+?()\[\]{}|]", "", pattern)
    fold: defaultdict[str, list[str]] = defaultdict(list)
    for name in unique[:20_000]:
        fold[name.lower()].append(name)
    close = difflib.get_close_matches(plain.lower(), fold, n=3, cutoff=0.4)
    return [fold[name][0] for name in close] or unique[:3]
