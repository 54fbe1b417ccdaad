"""Names: a class name stands for one thing, and what lies in the package's own namespace is no module by accident."""

import ast
from collections import defaultdict

import pytest

import onnxprune
from project.test_layers import modules, room, sources

#: What a protocol asks of leaves has the same name in each of them.
SHARED = frozenset[str]()


def classes(files: dict[str, str]) -> dict[str, list[str]]:
    """Return class name -> the modules that define it, wherever in the file."""
    homes = defaultdict(list)
    for name, source in files.items():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ClassDef):
                homes[node.name].append(name)
    return homes


def twice(files: dict[str, str]) -> dict[str, list[str]]:
    """Return the class names that more than one module defines."""
    return {name: homes for name, homes in classes(files).items() if len(homes) > 1 and name not in SHARED}


def test_a_class_name_is_unique() -> None:
    assert twice(sources()) == {}


def test_a_class_name_that_is_not_unique_is_seen() -> None:
    source = "class Step:\n    pass\n"
    files = {
        "onnxprune.a.x": source,
        "onnxprune.b.y": f"def f():\n    {source.replace(chr(10), chr(10) + '    ')}",
    }
    assert twice(files) == {"Step": ["onnxprune.a.x", "onnxprune.b.y"]}


def shadowing(names: set[str]) -> list[str]:
    """Return the modules right under the package that have the name of one of its functions."""
    functions = {name for name in onnxprune.__all__ if name[0].islower()}
    return sorted({room(name) for name in names} & functions)


def test_no_module_hides_a_function_of_the_front_door() -> None:
    """``onnxprune.prune`` must stay the function when a submodule of that name is imported."""
    assert shadowing(set(modules())) == []
    assert shadowing({"onnxprune.prune.x", "onnxprune.run", "onnxprune.pruning.plan"}) == ["prune", "run"]


@pytest.mark.parametrize("name", sorted(name for name in onnxprune.__all__ if name[0].islower()))
def test_the_front_door_gives_functions(name: str) -> None:
    assert getattr(onnxprune, name).__module__ in (
        "onnxprune.api",
        "onnxprune.api.several",
        "onnxprune.calibration.reader",
    )
