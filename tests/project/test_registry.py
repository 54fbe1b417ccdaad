"""Leaves are found by name, without importing the others."""

import sys
from pathlib import Path

import pytest

from onnxprune import registry
from onnxprune.errors import UsageError
from onnxprune.registry import constant, load, names, sentence


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    folder = tmp_path / "leaves_of_test"
    folder.mkdir()
    for name in ("__init__", "first_one", "second", "_private"):
        (folder / f"{name}.py").write_text(f"NAME = {name!r}\n")
    (folder / "broken.py").write_text("raise RuntimeError('imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    for module in [m for m in sys.modules if m.startswith("leaves_of_test")]:
        del sys.modules[module]
    monkeypatch.setattr(registry, "PACKAGES", (*registry.PACKAGES, "leaves_of_test"))
    return "leaves_of_test"


def test_names_are_sorted_and_nothing_is_imported(package: str) -> None:
    assert names(package) == ["broken", "first_one", "second"]
    assert f"{package}.second" not in sys.modules


def test_load_imports_one_leaf(package: str) -> None:
    assert load(package, "second").NAME == "second"
    assert load(package, "first-one").NAME == "first_one"
    assert f"{package}.broken" not in sys.modules


@pytest.mark.parametrize(
    ("name", "says"),
    [
        (
            "secnd",
            r"^There is no 'secnd' in leaves_of_test; known are: .*, second\. Did you mean 'second'\?$",
        ),
        ("zzz", r"^There is no 'zzz' in leaves_of_test; known are: broken, first_one, second\.$"),
        ("_private", "There is no '_private'"),
        ("../second", r"There is no '\.\./second'"),
    ],
)
def test_unknown_names(package: str, name: str, says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        load(package, name)
    assert caught.value.exit_code == 2


def test_what_a_leaf_states_is_read_without_importing_it(package: str, tmp_path: Path) -> None:
    folder = tmp_path / package
    (folder / "broken.py").write_text('"""X."""\n\nREADS = "model"\nraise RuntimeError("imported")\n')
    (folder / "second.py").write_text('READS = "weights"\n')
    assert [constant(package, name, "READS") for name in names(package)] == ["model", None, "weights"]
    assert sentence(package) == "first_one, second; with --calib also broken"
    assert f"{package}.second" not in sys.modules


@pytest.mark.parametrize("name", ["no_such_package_at_all", "no.such.package", "json.decoder"])
def test_no_such_package(name: str) -> None:
    with pytest.raises(UsageError, match=f"^There is no package {name!r} to look for names in"):
        names(name)


def test_only_packages_of_leaves_are_loaded_from() -> None:
    with pytest.raises(
        ValueError, match=r"'onnxprune\.files' is no package of leaves; those are onnxprune.budgets, "
    ):
        load("onnxprune.files", "cache")
