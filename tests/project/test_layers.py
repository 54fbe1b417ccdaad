"""The house: rooms stand in ranks and imports point down, leaves stand alone, files and functions stay small."""

import ast
import importlib.util
import math
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType

import networkx as nx
import pytest

import onnxprune
from onnxprune import registry

ROOT = Path(__file__).resolve().parents[2]

#: The ranks, lowest first: a room imports from itself and from lower lines.
RANKS = (
    "errors progress version",
    "ops wall",
    "files registry",
    "model options",
    "runtime",
    "graph",
    "cut report calibration allocation testing",
    "journey proof latency gradient budgets",
    "reconstruction granularity permutation",
    "criteria rotation sparsity",
    "pruning",
    "compression",
    "tuning",
    "fleet",
    "api",
    "passes integrations",
    "cli",
)
RANK = {room: rank for rank, line in enumerate(RANKS) for room in line.split()}
#: The one place that may load what stands above it: the chain of passes, whose names are the user's.
CHAIN = "onnxprune.journey.passes"
#: What starts the program stands above all.
START = "__main__"
#: Packages whose files are found by name and never know of each other. Files with a leading "_" are shared.
LEAVES = registry.PACKAGES
#: Modules that may lie beside the rooms.
LOOSE = {"errors", "progress", "version", "registry", "model", "__main__"}


def modules() -> dict[str, Path]:
    """Return dotted name -> file, for everything that gets installed except the front door."""
    found = {}
    for folder, package in ((ROOT / "onnxprune", "onnxprune"), (ROOT / "passes", "onnxprune.passes")):
        for path in folder.rglob("*.py"):
            parts = path.relative_to(folder).with_suffix("").parts
            if folder.name == "onnxprune" and parts[0] == "passes":  # the symlink
                continue
            name = ".".join((package, *parts)).removesuffix(".__init__")
            found[name] = path
    del found["onnxprune"]
    return found


def imports(source: str, name: str, known: Iterable[str], is_package: bool = False) -> Iterator[str]:
    """Yield the modules of onnxprune that a module imports, wherever in the file the import stands.

    A package that `registry.load` is asked for counts as imported; it has to stand there as a literal.
    """
    known = set(known)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "onnxprune")
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "registry.load":
            package, leaf = node.args
            by_user = name == CHAIN and not isinstance(leaf, ast.Constant)
            if not by_user or ast.literal_eval(package) != "onnxprune.passes":
                yield ast.literal_eval(package) if isinstance(package, ast.Constant) else "onnxprune.?"
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = name.split(".")
                above = parts[: len(parts) - node.level + is_package]
                base = ".".join([*above, node.module] if node.module else above)
            if base.split(".")[0] != "onnxprune":
                continue
            for alias in node.names:
                inside = f"{base}.{alias.name}"
                yield inside if inside in known or base == "onnxprune.registry" else base


def room(name: str) -> str:
    """Return the room of a module."""
    return name.split(".")[1]


def faults(files: dict[str, str]) -> list[str]:
    """Return what is wrong with the imports of modules given as dotted name -> source."""
    found = []
    for name, source in files.items():
        own = room(name)
        if own == START:
            continue
        if own not in RANK:
            found.append(f"{name} is in no room: add {own!r} to RANKS in tests/project/test_layers.py")
            continue
        is_package = any(other.startswith(name + ".") for other in files)
        for target in imports(source, name, files, is_package):
            if target == "onnxprune":
                found.append(f"{name} imports the front door")
                continue
            found += _wrong(name, target, target in files)
    return found


def _wrong(name: str, target: str, is_module: bool) -> Iterator[str]:
    own, other = room(name), room(target)
    package, _, leaf = target.rpartition(".")
    if other not in RANK:
        yield f"{name} imports {target}, which is in no room"
    elif other != own and RANK[other] >= RANK[own]:
        yield f"{name} imports {'up' if RANK[other] > RANK[own] else 'aside'}: {target}"
    elif package in LEAVES and is_module and not leaf.startswith("_"):
        yield f"{name} names a leaf: {target}"
    elif target == "onnxprune.registry.load":
        yield f"{name} hides what it loads: import the registry, and call registry.load"
    elif leaf.startswith("_") and not leaf.startswith("__") and name.rpartition(".")[0] != package:
        yield f"{name} imports what is another folder's own: {target}"


def sources() -> dict[str, str]:
    return {name: path.read_text(encoding="utf-8") for name, path in modules().items()}


def test_imports_point_down() -> None:
    assert faults(sources()) == []


#: Rooms that see samples.
SEEING = "calibration gradient reconstruction permutation rotation sparsity criteria pruning"
#: What opens sessions there: one place runs samples; descent and the rule of Resize run what they made themselves.
SESSIONS = {
    "onnxprune.calibration.stream",
    "onnxprune.reconstruction.descent",
    "onnxprune.gradient.movement",
}


def test_one_place_opens_sessions_on_samples() -> None:
    opening = {name for name, source in sources().items() if "open_session" in source}
    assert {name for name in opening if room(name) in SEEING.split()} == SESSIONS


def page() -> ModuleType:
    """Return docs/architecture.py, which draws what is known here."""
    sys.modules.setdefault("test_layers", sys.modules[__name__])
    spec = importlib.util.spec_from_file_location("architecture", ROOT / "docs" / "architecture.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_architecture_page_is_up_to_date() -> None:
    """Drawn by ``python docs/architecture.py``."""
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    assert page().drawn(text) == text
    assert page().drawn(text.replace("│ graph │", "│ hall │")) == text
    named = re.findall(r"`((?:onnxprune/|docs/|tests/|benchmarks/)?(?:\w+/)+(?:\w+\.py)?)", text)
    rooms = [name for name in named if not (ROOT / name).exists()]
    assert len(named) > 30
    assert [name for name in rooms if not (ROOT / "onnxprune" / name).exists()] == []


def test_every_room_is_in_the_tree_and_little_lies_loose() -> None:
    assert {room(name) for name in modules()} == set(RANK) | {START}
    loose = {name.split(".")[1] for name in modules() if name.count(".") == 1}
    folders = {room(name) for name in modules() if name.count(".") > 1}
    assert loose - folders == LOOSE


@pytest.mark.parametrize(
    ("name", "source", "fault"),
    [
        ("onnxprune.graph.trace", "from onnxprune.cli import main", "imports up: onnxprune.cli"),
        (
            "onnxprune.model",
            "def f():\n    import onnxprune.graph.groups",
            "imports up: onnxprune.graph.groups",
        ),
        ("onnxprune.model", "from onnxprune.graph import groups", "imports up: onnxprune.graph.groups"),
        ("onnxprune.model", "from .graph.groups import Group", "imports up: onnxprune.graph.groups"),
        ("onnxprune.ops.conv", "from ..graph.groups import Group", "imports up: onnxprune.graph.groups"),
        ("onnxprune.proof.twin", "from onnxprune.latency import clock", "imports aside: onnxprune.latency"),
        ("onnxprune.cli", "from onnxprune.criteria.l2 import score", "names a leaf"),
        ("onnxprune.criteria.l2", "from onnxprune.criteria import l1", "names a leaf"),
        ("onnxprune.criteria.l2", "from . import l1", "names a leaf"),
        ("onnxprune.pruning.budgets", "from onnxprune.criteria._norm import p_norm", "another folder's own"),
        (
            "onnxprune.graph.dead",
            'registry.load("onnxprune.passes", "shrink")',
            "imports up: onnxprune.passes",
        ),
        (CHAIN, 'registry.load("onnxprune.passes", "shrink")', "imports up: onnxprune.passes"),
        ("onnxprune.journey.run", 'registry.load("onnxprune.passes", name)', "imports up: onnxprune.passes"),
        ("onnxprune.model", "registry.load(package, name)", "imports onnxprune.?, which is in no room"),
        ("onnxprune.model", "from onnxprune.registry import load", "hides what it loads"),
        ("onnxprune.model", "import onnxprune", "imports the front door"),
        ("onnxprune.novelty", "", "is in no room"),
    ],
)
def test_a_wrong_import_is_caught(name: str, source: str, fault: str) -> None:
    names = ("cli", "graph.groups", "criteria.l1", "criteria.l2", "criteria._norm", "latency.clock")
    known = dict.fromkeys((f"onnxprune.{one}" for one in names), "")
    found = faults({**known, name: source})
    assert len(found) == 1, found
    assert fault in found[0]


def test_shared_leaf_helpers_and_the_version_are_allowed() -> None:
    good = "from onnxprune.criteria._norm import p_norm\nfrom onnxprune.version import __version__\n"
    assert (
        faults({"onnxprune.criteria._norm": "", "onnxprune.version": "", "onnxprune.criteria.l2": good}) == []
    )


def reached(start: str, files: dict[str, str]) -> set[str]:
    """Return the modules that a module imports, directly or through others."""
    seen, todo = set[str](), [start]
    while todo:
        name = todo.pop()
        if name in files and name not in seen:
            seen.add(name)
            todo += imports(files[name], name, files, any(n.startswith(name + ".") for n in files))
    return seen


def test_the_masked_twin_and_the_writer_share_no_code() -> None:
    """Both sides of law 1 would be wrong alike, if one were built with the other's code."""
    files = sources()
    writer = "onnxprune.cut.writer"
    assert writer in reached("onnxprune.granularity.channels", files)
    assert not [name for name in reached("onnxprune.proof.twin", files) if room(name) == "cut"]
    assert not [name for name in reached(writer, files) if room(name) == "proof"]
    for kind in ("vocabulary", "depth"):
        sides = f"onnxprune.cut.{kind}", f"onnxprune.proof.{kind}"
        for side, other in zip(sides, ("proof", "cut"), strict=True):
            assert not [name for name in reached(side, files) if room(name) == other]


def test_no_cycles() -> None:
    files = sources()
    graph = nx.DiGraph()
    for name, source in files.items():
        is_package = modules()[name].name == "__init__.py"
        for target in imports(source, name, files, is_package):
            if not f"{target}.".startswith(name + ".") and not name.startswith(target + "."):
                graph.add_edge(name, target)
    assert list(nx.simple_cycles(graph)) == []


def python_files() -> list[Path]:
    """Return every Python file of the repository."""
    folders = ("onnxprune", "passes", "tests", "samples", "benchmarks")
    return sorted({path.resolve() for folder in folders for path in (ROOT / folder).rglob("*.py")})


def functions(paths: Iterable[Path]) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield f"{path.relative_to(ROOT)}:{node.lineno} {node.name}", node


def lines_of(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Return how many lines a function has, its docstring aside."""
    lines = (node.end_lineno or node.lineno) - node.lineno + 1
    first = node.body[0]
    if (
        isinstance(first, ast.Expr)
        and isinstance(first.value, ast.Constant)
        and isinstance(first.value.value, str)
    ):
        lines -= (first.end_lineno or first.lineno) - first.lineno + 1
    return lines


def arguments_of(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Return how many arguments a function has, ``self`` and ``cls`` aside."""
    spec = node.args
    names = [one.arg for one in (*spec.posonlyargs, *spec.args, *spec.kwonlyargs)]
    return len([name for name in names if name not in ("self", "cls")]) + bool(spec.vararg) + bool(spec.kwarg)


def p95(values: list[int]) -> int:
    return sorted(values)[math.ceil(0.95 * len(values)) - 1]


def test_measures() -> None:
    text = 'def f(self, a, /, b, *c, d, **e):\n    """One.\n\n    Two.\n    """\n    return a\n'
    node = ast.parse(text).body[0]
    assert isinstance(node, ast.FunctionDef)
    assert (lines_of(node), arguments_of(node)) == (2, 5)
    assert (p95(list(range(1, 101))), p95([7])) == (95, 7)


def test_files_are_short() -> None:
    long = {
        str(path.relative_to(ROOT)): n
        for path in python_files()
        if (n := len(path.read_bytes().splitlines())) > 400
    }
    assert long == {}


@pytest.mark.parametrize("folders", [("onnxprune", "passes"), ("tests", "samples", "benchmarks")])
def test_functions_are_short(folders: tuple[str, ...]) -> None:
    paths = [path for path in python_files() if path.relative_to(ROOT).parts[0] in folders]
    assert p95([lines_of(node) for _, node in functions(paths)]) <= 50


def test_functions_take_few_arguments() -> None:
    inside = [path for path in python_files() if path.relative_to(ROOT).parts[0] != "tests"]
    assert [name for name, node in functions(inside) if arguments_of(node) > 8] == []


def test_the_front_door_is_small() -> None:
    names = onnxprune.__all__
    assert len(names) <= 21
    assert len(set(names)) == len(names)
    assert all(getattr(onnxprune, name) is not None for name in names)
