"""The plan's file: what is written, what is read, and what is refused in which words."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import residual

import onnxprune
from onnxprune.cut.cuts import TensorCut
from onnxprune.errors import OutputError, PlanError, UsageError
from onnxprune.graph.groups import Frozen
from onnxprune.options import widths
from onnxprune.pruning.plan import Plan, PlannedGroup

SHA = "0123456789abcdef" * 4


def plan(**fields: Any) -> Plan:
    return dataclasses.replace(
        Plan(
            model_sha256=SHA,
            criterion="l2",
            ratio=0.5,
            align=16,
            seed=0,
            scope="local",
            inexact=False,
            groups=(PlannedGroup("b", (1, 5), 8), PlannedGroup("a", (), 4)),
            cuts=(TensorCut("w", 1, (1, 5)), TensorCut("w", 0, (0,))),
            frozen=(Frozen("fc", 0, "graph output 'y'"),),
            input_shapes={"x": (1, 3, 224, 224)},
        ),
        **fields,
    )


TEXT = f"""\
{{
"format": 1,
"model_sha256": "{SHA}",
"criterion": "l2",
"ratio": 0.5,
"align": 16,
"seed": 0,
"scope": "local",
"inexact": false,
"groups": [
 {{"name": "a", "removed_units": [], "units": 4}},
 {{"name": "b", "removed_units": [1, 5], "units": 8}}],
"cuts": [
 {{"tensor": "w", "axis": 0, "removed": [0]}},
 {{"tensor": "w", "axis": 1, "removed": [1, 5]}}],
"frozen": [
 {{"tensor": "fc", "axis": 0, "reason": "graph output 'y'"}}],
"input_shapes": {{"x": [1, 3, 224, 224]}}}}
"""


def test_the_file_is_sorted_with_an_entry_a_line() -> None:
    assert plan().dumps() == TEXT


def test_a_file_comes_back(tmp_path: Path) -> None:
    plan().save(tmp_path / "p.json")
    assert Plan.load(tmp_path / "p.json") == plan()
    assert (tmp_path / "p.json").read_bytes() == TEXT.encode()


names = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
indices = st.sets(st.integers(0, 9)).map(lambda s: tuple(sorted(s)))


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(names, indices, max_size=4),
    st.dictionaries(st.tuples(names, st.integers(0, 5)), indices, max_size=4),
    st.lists(st.tuples(names, st.integers(0, 3), names), max_size=3),
    st.dictionaries(names, st.lists(st.integers(0, 1 << 40)), max_size=3),
    st.floats(0, 1, exclude_max=True),
)
def test_every_plan_comes_back(groups: dict, cuts: dict, frozen: list, shapes: dict, ratio: float) -> None:
    one = plan(
        ratio=ratio,
        groups=tuple(PlannedGroup(n, r, 11) for n, r in groups.items()),
        cuts=tuple(TensorCut(n, axis, r) for (n, axis), r in cuts.items()),
        frozen=tuple(Frozen(*f) for f in frozen),
        input_shapes=shapes,
    )
    text = one.dumps()
    assert Plan.loads(text) == one
    assert Plan.loads(text).dumps() == text


def test_order_does_not_matter() -> None:
    one = plan()
    turned = plan(groups=one.groups[::-1], cuts=one.cuts[::-1], frozen=one.frozen[::-1])
    assert turned.dumps() == one.dumps()


def edited(**changes: Any) -> str:
    values = json.loads(TEXT)
    for key, value in changes.items():
        if value is ...:
            del values[key]
        else:
            values[key] = value
    return json.dumps(values)


def test_edits_by_hand() -> None:
    """Any order, and without what follows from the groups."""
    text = edited(groups=[{"units": 8, "removed_units": [5, 1], "name": "b"}], cuts=..., frozen=...)
    assert Plan.loads(text) == plan(groups=(PlannedGroup("b", (1, 5), 8),), cuts=(), frozen=())


def one_group(**fields: Any) -> str:
    return edited(groups=[{"name": "b", "removed_units": [1], "units": 8} | fields])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            edited(colour=1),
            "The plan is malformed: it has an unknown key 'colour'; known are format, model_sha256",
        ),
        (
            one_group(unit=3),
            "entry 0 of \"groups\" has an unknown key 'unit'; known are name, removed_units, units.",
        ),
        (
            edited(cuts=[{"tensor": "w", "axis": 0, "removed": [], "why": 1}]),
            'entry 0 of "cuts" has an unknown key',
        ),
        (edited(frozen=[{"tensor": "w", "axis": 0}]), "entry 0 of \"frozen\" lacks the key 'reason'"),
        (edited(seed=...), "it lacks the key 'seed'"),
        (edited(format=...), "it lacks the key 'format'"),
        (edited(format=2), '"format" is 2, this version of onnxprune reads 1'),
        (edited(format=True), '"format" must be an integer, it is true'),
        (edited(model_sha256="12"), '"model_sha256" must be 64 lower-case hex digits, it is "12"'),
        (edited(criterion=None), '"criterion" must be a string, it is null'),
        (edited(ratio=1), '"ratio" must be at least 0 and below 1, it is 1'),
        (edited(ratio="half"), '"ratio" must be a number, it is "half"'),
        (edited(ratio=True), '"ratio" must be a number, it is true'),
        (edited(align=0), '"align" must be at least 1, it is 0'),
        (edited(align=None), '"align" must be an integer, it is null'),
        (edited(seed=1.5), '"seed" must be an integer, it is 1.5'),
        (edited(scope="layer"), '"scope" must be "local" or "global", it is "layer"'),
        (edited(inexact=0), '"inexact" must be true or false, it is 0'),
        (edited(groups={}), '"groups" must be a list, it is {}'),
        (edited(groups=[3]), 'entry 0 of "groups" must be an object, it is 3'),
        (one_group(removed_units=[8]), "\"removed_units\" of the group 'b' holds 8, beyond the last unit 7"),
        (
            one_group(removed_units=[-1]),
            "entry 0 of \"removed_units\" of the group 'b' must be at least 0, it is -1",
        ),
        (one_group(removed_units=[2, 2]), "\"removed_units\" of the group 'b' holds 2 twice"),
        (one_group(removed_units=[True]), "must be an integer, it is true"),
        (
            one_group(removed_units=[0], units=1),
            "the group 'b' would lose all of its 1 units; leave at least one",
        ),
        (one_group(units=0), "\"units\" of the group 'b' must be at least 1, it is 0"),
        (edited(groups=[{"name": "b", "removed_units": [], "units": 1}] * 2), "\"groups\" holds 'b' twice"),
        (edited(cuts=[{"tensor": "w", "axis": 0, "removed": [1]}] * 2), "\"cuts\" holds ('w', 0) twice"),
        (
            edited(cuts=[{"tensor": "w", "axis": -1, "removed": []}]),
            '"axis" of entry 0 of "cuts" must be at least 0',
        ),
        (
            edited(input_shapes={"x": [1, "n"]}),
            'entry 1 of "input_shapes" of \'x\' must be an integer, it is "n"',
        ),
        (edited(input_shapes=[]), '"input_shapes" must be an object'),
        ("[]", "it must be an object, it is []"),
        ("null", "it must be an object, it is null"),
        ("", "The plan isn't JSON: Expecting value"),
        (TEXT[:-9], "The plan isn't JSON"),
        (TEXT.replace("0.5", "NaN"), "The plan isn't JSON: NaN isn't a number of JSON"),
        (TEXT.replace('"seed": 0', '"seed": 0, "seed": 1'), "the key 'seed' is given twice"),
        ("[" * 100_000, "The plan isn't JSON"),
        (TEXT.replace('"seed": 0', '"seed": ' + "9" * 5000), "The plan isn't JSON"),
    ],
)
def test_what_is_wrong_is_named(text: str, message: str) -> None:
    with pytest.raises(PlanError) as caught:
        Plan.loads(text)
    assert message in str(caught.value)
    assert str(caught.value).endswith(".")
    assert caught.value.exit_code == 6


def test_another_model_is_refused_with_both_hashes() -> None:
    plan().check_model(SHA)
    other = "f" * 64
    with pytest.raises(
        PlanError, match=f"another model: it was made for sha256 {SHA}, this one has {other}; make"
    ):
        plan().check_model(other)


def test_files_that_cannot_be_read_or_written(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"The plan '.*none.json' can't be read: "):
        Plan.load(tmp_path / "none.json")
    with pytest.raises(PlanError, match="can't be read"):
        Plan.load(tmp_path)
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(PlanError, match="can't be read"):
        Plan.load(tmp_path / "bytes.json")
    (tmp_path / "key.json").write_text("{}", encoding="utf-8")
    with pytest.raises(PlanError, match=r"The plan '.*key.json' is malformed: it lacks"):
        Plan.load(tmp_path / "key.json")
    plan().save(tmp_path / "made" / "p.json")
    assert Plan.load(tmp_path / "made" / "p.json") == plan()
    with pytest.raises(OutputError):
        plan().save(tmp_path / "key.json" / "p.json")
    assert (tmp_path / "key.json").read_text(encoding="utf-8") == "{}"


def fake(monkeypatch: pytest.MonkeyPatch, processor: str, system: str) -> None:
    widths.vector_unit.cache_clear()
    monkeypatch.setattr(widths.platform, "machine", lambda: processor)
    monkeypatch.setattr(widths.sys, "platform", system)


@pytest.mark.parametrize(
    ("processor", "system", "flags", "step"),
    [
        ("x86_64", "linux", "fpu avx2 avx512f avx512vl", 16),
        ("x86_64", "linux", "fpu avx avx2", 8),
        ("x86_64", "linux", "fpu sse2", 8),
        ("x86_64", "linux", None, 8),
        ("aarch64", "linux", None, 16),
        ("arm64", "darwin", None, 16),
        ("x86_64", "darwin", "FPU SSE\nAVX2 AVX512F\n", 16),
        ("ARM64", "win32", None, 16),
        ("AMD64", "win32", "avx512f", 16),
        ("AMD64", "win32", "avx2", 8),
        ("AMD64", "win32", None, 8),
        ("riscv64", "linux", None, 8),
    ],
)
def test_the_step_of_a_machine(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, processor: str, system: str, flags: str | None, step: int
) -> None:
    fake(monkeypatch, processor, system)
    info = tmp_path / "cpuinfo"
    if flags is not None:
        info.write_text(f"processor\t: 0\nflags\t\t: {flags}\n\nflags\t: \n", encoding="utf-8")
    monkeypatch.setattr(widths, "Path", lambda _: info)
    done = type("Done", (), {"stdout": flags or ""})
    monkeypatch.setattr(widths.subprocess, "run", lambda *_, **__: done)
    present = {41: flags == "avx512f", 40: flags == "avx2"}
    kernel = type("Kernel", (), {"IsProcessorFeaturePresent": staticmethod(present.__getitem__)})
    if flags is not None:
        monkeypatch.setattr(widths.ctypes, "windll", type("Windll", (), {"kernel32": kernel}), raising=False)
    try:
        assert widths.align_step() == step
    finally:
        widths.vector_unit.cache_clear()


def test_this_machine_has_a_step() -> None:
    assert widths.align_step() in (8, 16)


def test_a_mark_of_the_order_of_bytes_is_read(tmp_path: Path) -> None:
    (tmp_path / "p.json").write_bytes(b"\xef\xbb\xbf" + plan().dumps().encode())
    assert Plan.load(tmp_path / "p.json") == plan()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"depth": ("nope.1",)}, r'"depth" of the plan \'nope.1\' matches no residual branch'),
        ({"open_io": ("(a",)}, r'"open_io" of the plan \'\(a\' isn\'t a regular expression'),
        ({"input_shapes": {"z": (2, 3)}}, r'"input_shapes" of the plan names \'z\''),
        ({"input_shapes": {"x": (0, 3, 8, 8)}}, r'"input_shapes" of the plan'),
        ({"input_shapes": {"x": (2, 3, 8, 8)}}, r'"input_shapes" of the plan .* contradicts the model'),
    ],
)
def test_what_a_plan_asks_for_is_its_own_fault(change: dict[str, Any], words: str) -> None:
    made = dataclasses.replace(onnxprune.plan(residual(), ratio=0.5, align=None), cuts=(), **change)
    with pytest.raises(PlanError, match=words):
        onnxprune.apply(residual(), made)
    with pytest.raises(UsageError, match="--inputs"):
        onnxprune.apply(residual(), onnxprune.plan(residual(), ratio=0.5), inputs="none.npz", verify=False)
