"""Whatever call fails, and wherever a process is killed: the old result or the new one is there, and all of it."""

import errno
import os
import re
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from faults import Dead, Faults, breaking
from two_layers import V, W, contents, embedded, halve, two_layers

from onnxprune.errors import OutputError
from onnxprune.files.commit import together, write_text
from onnxprune.model import Model

Save = Callable[[], object]
FULL = OSError(errno.ENOSPC, "No space left on device")


def thirds(source: Path) -> Model:
    """Another result of the same model, as large."""
    model = halve(Model.load(source)).fork()
    model.put("w", -W[:, :16])
    return model


def fresh(folder: Path) -> tuple[Path, Save]:
    source, out = two_layers(folder / "in"), folder / "out.onnx"
    return out, lambda: halve(Model.load(source)).save(out)


def again(folder: Path) -> tuple[Path, Save]:
    out, save = fresh(folder)
    thirds(folder / "in" / "model.onnx").save(out)
    return out, save


def in_place(folder: Path) -> tuple[Path, Save]:
    source = two_layers(folder)
    return source, lambda: halve(Model.load(source)).save(source, in_place=True)


def name_taken(folder: Path) -> tuple[Path, Save]:
    source = two_layers(folder, "weights.bin")
    (folder / "model.onnx.data").write_text("of somebody")
    return source, lambda: halve(Model.load(source)).save(source, in_place=True)


def data_shared(folder: Path) -> tuple[Path, Save]:
    out, save = in_place(folder)
    (folder / "copy.onnx").write_bytes(out.read_bytes())
    return out, save


def copied(folder: Path) -> tuple[Path, Save]:
    source = two_layers(folder / "in", "sub/weights.bin")
    (folder / "out").mkdir()
    return folder / "out" / "o.onnx", lambda: Model.load(source).save(folder / "out" / "o.onnx")


def embedded_over_external(folder: Path) -> tuple[Path, Save]:
    source, out = embedded(folder / "in"), folder / "out.onnx"
    thirds(two_layers(folder / "in2")).save(out)
    return out, lambda: halve(Model.load(source)).save(out)


def with_reports(folder: Path) -> tuple[Path, Save]:
    out, save = again(folder)
    (folder / "r.json").write_text("old")

    def both() -> None:
        with together():
            save()
            write_text(folder / "p.json", "plan")
            write_text(folder / "r.json", "new")

    return out, both


CASES = [
    fresh,
    again,
    in_place,
    name_taken,
    data_shared,
    copied,
    embedded_over_external,
    with_reports,
]


def state(path: Path) -> dict[str, list[float]] | None:
    """What a model computes with, read by onnx itself; None where none is."""
    if not path.exists():
        return None
    return {t.name: onnx.numpy_helper.to_array(t).ravel().tolist() for t in onnx.load(path).graph.initializer}


def hidden(folder: Path) -> list[str]:
    return [name for name in contents(folder) if "/." in f"/{name}"]


def others(before: dict[str, bytes], out: Path, folder: Path) -> dict[str, bytes]:
    """Files that aren't the output, its data or a report."""
    data = re.compile(re.escape(out.name) + r"(\.\d+)?(\.data)?")
    mine = {
        name for name in before if data.fullmatch(Path(name).name) and (folder / name).parent == out.parent
    }
    return {name: text for name, text in before.items() if name not in mine and name != "r.json"}


def reference(case: Callable[[Path], tuple[Path, Save]], folder: Path) -> tuple[object, object, int]:
    """What the output is before and after, and how many calls that takes."""
    for place in (folder / "first", folder / "then"):  # modules are imported at the first time
        place.mkdir(parents=True)
        case(place)[1]()
    folder = folder / "counted"
    folder.mkdir()
    out, save = case(folder)
    old = state(out)
    with breaking(Faults(None, FULL)) as faults:
        save()
    new = state(out)
    assert old != new
    assert hidden(folder) == []
    return old, new, len(faults.calls)


@pytest.mark.parametrize("case", CASES)
def test_killed_at_any_call_the_old_or_the_new_model_is_there(
    case: Callable[[Path], tuple[Path, Save]], tmp_path: Path
) -> None:
    old, new, calls = reference(case, tmp_path / "whole")
    seen = []
    for number in range(calls):
        for after in (False, True):
            folder = tmp_path / f"{number}{after}"
            folder.mkdir()
            out, save = case(folder)
            rest = others(contents(folder), out, folder)
            with breaking(Faults(number, Dead(), after)), pytest.raises(Dead):
                save()
            assert state(out) in (old, new), (number, after)
            seen.append(state(out) == new)
            now = contents(folder)
            if case is data_shared:
                rest["model.onnx.data"] = now["model.onnx.data"]
                assert state(folder / "copy.onnx") == old
            assert now | rest == now, (number, after)
            if "r.json" in now:
                assert now["r.json"] in (b"old", b"new")
            save()  # and what is left is in nobody's way
            assert state(out) == new
    assert seen == sorted(seen)
    assert {False, True} == set(seen)


@pytest.mark.parametrize(
    "error", [FULL, PermissionError(errno.EPERM, "Operation not permitted"), KeyboardInterrupt()]
)
@pytest.mark.parametrize("case", CASES)
def test_any_call_that_fails_leaves_the_old_or_the_new_and_nothing_else(
    case: Callable[[Path], tuple[Path, Save]], error: BaseException, tmp_path: Path
) -> None:
    old, new, calls = reference(case, tmp_path / "whole")
    refused = 0
    for number in range(calls):
        folder = tmp_path / str(number)
        folder.mkdir()
        out, save = case(folder)
        before = contents(folder)
        with breaking(Faults(number, error)) as faults, warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            try:
                save()
            except (OutputError, KeyboardInterrupt) as failure:
                refused += 1
                text = str(failure)
            else:
                text = ""
                assert state(out) == new
        if faults.calls[number] == "unlink" and isinstance(error, KeyboardInterrupt):
            continue  # while files are removed signals wait, so that can't be
        now, litter = contents(folder), hidden(folder)
        assert state(out) in (old, new), (number, faults.calls[number])
        told = text + " ".join(str(w.message) for w in said)
        assert all(name.split("/")[-1] in told for name in litter), (number, faults.calls[number])
        if "nothing was left behind" in text:
            assert now == before, (number, faults.calls[number])
            assert not [
                p for p in folder.rglob("*") if p.is_dir() and not any(p.iterdir()) and p.name == "sub"
            ]
    assert refused > calls // 3


def test_the_harness_sees_what_the_old_way_did(tmp_path: Path) -> None:
    """The negative control: the old model removed, or its data replaced, before the new one is there."""
    out, _ = again(tmp_path)
    old = state(out)

    def wrong() -> None:
        os.replace(tmp_path / "in" / "model.onnx.data", tmp_path / "out.onnx.data")
        os.replace(tmp_path / "in" / "model.onnx", out)

    with breaking(Faults(0, Dead(), after=True)), pytest.raises(Dead):
        wrong()
    assert state(out) != old
    assert np.array_equal(Model.load(out).weight("w").ravel()[:16], W.ravel()[:16])
    assert not np.array_equal(V, W)


def small_disk(folder: Path, size: str) -> bool:
    folder.mkdir()
    return os.system(f"mount -t tmpfs -o size={size} none {folder} 2>/dev/null") == 0


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs to mount a disk")
@pytest.mark.parametrize("room", [4, 8])
def test_a_disk_that_is_full(tmp_path: Path, room: int) -> None:
    source, disk = two_layers(tmp_path / "in"), tmp_path / "disk"
    if not small_disk(disk, "40k"):
        pytest.skip("can't mount a disk here")
    try:
        (disk / "filler").write_bytes(bytes((40 - room) * 1024))
        before = contents(disk)
        model = Model.load(source)
        model.proto.doc_string = "edited"
        with pytest.raises(OutputError, match=r"No space left on device; nothing was left behind\.$"):
            model.save(disk / "o.onnx")
        assert contents(disk) == before
    finally:
        os.system(f"umount {disk}")
