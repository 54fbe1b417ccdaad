"""Each kind of unit: its units can go one by one, and law 1 holds and says something for each."""

from functools import partial

import numpy as np
import pytest
from depth_models import images, transformer
from expert_models import FORMS, mixture
from nets import attention, convs, grouped
from small_models import residual
from vocabulary_models import language

from onnxprune import granularity, registry
from onnxprune.errors import UsageError
from onnxprune.granularity import Granularity, channels
from onnxprune.graph.analysis import Analysis, analyse
from onnxprune.model import Model
from onnxprune.proof.compare import compare
from onnxprune.proof.verify import verify
from onnxprune.runtime.inputs import random_inputs
from onnxprune.runtime.session import open_session

KINDS = registry.names("onnxprune.granularity")
NETS = {
    "channels": {"residual": residual, "convs": convs, "grouped": grouped, "attention": attention},
    "depth": {"pre-norm": transformer, "basic blocks": images},
    "experts": {form: partial(mixture, form) for form in FORMS},
    "vocabulary": {"encoder": lambda: language(head="none"), "argmax": lambda: language(head="argmax")},
}


def outputs(model: Model, analysis: Analysis) -> dict[str, np.ndarray]:
    feeds = random_inputs(
        analysis.model, analysis.inputs, np.random.default_rng(0), sizes=analysis.tracer.types
    )
    return open_session(model).run(feeds)


def test_each_kind_has_nets() -> None:
    assert set(KINDS) == set(NETS)


@pytest.mark.parametrize(("name", "net"), [(name, net) for name in NETS for net in NETS[name]])
def test_law_1_for_one_unit_of_each_group(name: str, net: str) -> None:
    analysis, kind = analyse(Model.load(NETS[name][net]())), granularity.load(name)
    groups = kind.groups(analysis)
    assert groups
    assert len({group.name for group in groups}) == len(groups)
    original, changed = outputs(analysis.model, analysis), 0
    for group in (g for g in groups if g.units > 1 or name == "depth"):
        removed = {group.name: np.array([0], np.int64)}
        masked, cut = kind.masked(analysis, removed), kind.cut(analysis, removed)
        assert (cut.cuts and cut.dead) or (
            group.units == 1 and len(cut.model.names()) < len(analysis.model.names())
        )
        right, left = outputs(masked, analysis), outputs(cut.model, analysis)
        for output, value in right.items():
            assert compare(value, left[output]).error < 1e-5
            changed += compare(original[output], value).error > 1e-3
        assert verify(analysis, cut.dead, cut.model, masked=masked).passed
    assert changed, "no unit says anything"


def test_a_side_that_lies_is_seen() -> None:
    """A proof on the right side that a granularity gives fails where that side is another unit's."""
    analysis = analyse(Model.load(convs()))
    group = next(g for g in channels.groups(analysis) if g.units > 2)
    first, last = ({group.name: np.array([unit])} for unit in (0, group.units - 1))
    cut = channels.cut(analysis, first)
    assert verify(analysis, cut.dead, cut.model, masked=channels.masked(analysis, first)).passed
    assert verify(analysis, cut.dead, cut.model, masked=channels.masked(analysis, last)).status == "failed"


def test_the_original_stays_as_it_is() -> None:
    model = Model.load(convs())
    before = model.proto.SerializeToString(deterministic=True)
    analysis = analyse(model)
    removed = {g.name: np.array([0]) for g in channels.groups(analysis) if not g.alternative}
    channels.masked(analysis, removed)
    channels.cut(analysis, removed)
    assert model.proto.SerializeToString(deterministic=True) == before


def test_what_cannot_go_is_refused_on_both_sides() -> None:
    analysis = analyse(Model.load(convs()))
    group = next(g for g in channels.groups(analysis) if not g.alternative)
    whole = {group.name: np.arange(group.units)}
    for side in (channels.masked, channels.cut):
        with pytest.raises(ValueError, match="elements of an axis would go"):
            side(analysis, whole)


def test_a_kind_is_found_by_its_name() -> None:
    kind: Granularity = channels  # a module is typed like any other object that has these functions
    assert granularity.load() is kind
    with pytest.raises(UsageError, match="channels"):
        granularity.load("chanels")
