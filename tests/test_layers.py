"""The house: imports point down, leaves stand alone, files and functions stay small."""

import ast
import math
from collections.abc import Iterable, Iterator
from pathlib import Path

import networkx as nx
import pytest

import onnxprune

ROOT = Path(__file__).resolve().parents[1]

#: The layers, lowest first. A module may import from its own layer and from those before it.
#: A new core module is added here; a new leaf (criterion, budget, pass) or op file needs no line.
LAYERS = (
    "errors wall watching walled printing",
    "registry page progress tilt graph.group_types proof.compare table sentences graph.space "
    "graph.values machine",
    "targets",
    "declaring options files.wire files.protowalk files.payload files.external files.sizes files.store files.digest "
    "files.checks files.schema files.texts files.arrays files.opening files.output graph.binding given "
    "files.holding files.target files.disk files.beside files.commit files.pair record",
    "model places",
    "ops",
    "graph.plausible",
    "graph.trace graph.agree graph.feasible graph.lengths graph.length_rules graph.sizes",
    "graph.live graph.known graph.computed graph.branches graph.inline",
    "graph.escapes graph.coupling graph.size_locks graph.belongings graph.groups",
    "categories runtime folding probing proof.widen analysis",
    "cut.kept memory outline cut.writer cut.mend plan cut.rewrite carry report calibrate proof.interior "
    "proof.sizes proof.elsewhere proof.references proof.soundness proof.twin proof.verify picking deciding "
    "inspection explaining staging",
    "gradient",
    "criteria budgets recovery sparse.clock sparse.layout sparse.kinds sparse.pattern sparse.options",
    "sparse.targets sparse.triangular sparse.refits sparse.task",
    "sparse.methods sparse.storage sparse.gains sparse.masking sparse.fitting sparse.dead",
    "sparse.search sparse.symmetry sparse.permutation sparse.sequence",
    "sparse.arranging sparse.report sparse.inspection",
    "latency",
    "speed",
    "budgeting keeping search",
    "rotation blockwise",
    "repair pipeline measuring passlist calibrated",
    "sparse.journey family",
    "api single testing sparse.front",
    "passes",
    "cli_arguments cli_progress cli_commands cli __main__",
)
RANK = {name: rank for rank, line in enumerate(LAYERS) for name in line.split()}
#: Packages of core modules: each module has a layer of its own.
PACKAGES = {name.partition(".")[0] for name in RANK if "." in name}
RANK |= dict.fromkeys(PACKAGES, 0)  # their __init__ imports nothing
#: Folders whose files are found by name and never know of each other. Files with a leading "_" are shared.
LEAVES = ("criteria", "budgets", "recovery", "sparse.methods", "passes")
#: Belongs to no layer: the front door imports nothing when it is imported, and anyone may ask its version.
FREE = {"onnxprune:__version__"}


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
    """Yield the modules of onnxprune that a module imports, wherever in the file the import stands."""
    known = set(known)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "onnxprune")
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
                if inside in known:
                    yield inside
                elif base != "onnxprune":
                    yield base
                elif f"{base}:{alias.name}" not in FREE:
                    yield "onnxprune"


def place(name: str) -> str:
    """Return what a module is called in LAYERS: by itself, or by its package."""
    parts = name.split(".")[1:]
    inner = ".".join(parts[:2])
    return inner if inner in RANK or parts[0] in PACKAGES else parts[0]


def faults(files: dict[str, str]) -> list[str]:
    """Return what is wrong with the imports of modules given as dotted name -> source."""
    found = []
    for name, source in files.items():
        top = place(name)
        if top not in RANK:
            found.append(f"{name} has no layer: add {top!r} to LAYERS in tests/test_layers.py")
            continue
        is_package = any(other.startswith(name + ".") for other in files)
        for target in imports(source, name, files, is_package):
            if target == "onnxprune":
                found.append(f"{name} imports the front door")
                continue
            other = place(target)
            if other not in RANK:
                found.append(f"{name} imports {target}, which has no layer")
            elif RANK[other] > RANK[top]:
                found.append(f"{name} imports up: {target}")
            elif other in LEAVES and target.count(".") > 1 and not target.rpartition(".")[2].startswith("_"):
                found.append(f"{name} names a leaf: {target}")
    return found


def sources() -> dict[str, str]:
    return {name: path.read_text(encoding="utf-8") for name, path in modules().items()}


def test_imports_point_down() -> None:
    assert faults(sources()) == []


def test_every_layer_exists_in_the_tree() -> None:
    tops = {place(name) for name in modules()} | PACKAGES
    assert sorted(set(RANK) - tops - {"testing"}) == []


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
        ("onnxprune.cli", "from onnxprune.criteria.l2 import score", "names a leaf"),
        ("onnxprune.criteria.l2", "from onnxprune.criteria import l1", "names a leaf"),
        ("onnxprune.criteria.l2", "from . import l1", "names a leaf"),
        ("onnxprune.model", "import onnxprune", "imports the front door"),
        ("onnxprune.novelty", "", "has no layer"),
    ],
)
def test_a_wrong_import_is_caught(name: str, source: str, fault: str) -> None:
    known = dict.fromkeys(["onnxprune.cli", "onnxprune.graph.groups", "onnxprune.criteria.l1"], "")
    found = faults({**known, name: source})
    assert len(found) == 1, found
    assert fault in found[0]


def test_shared_leaf_helpers_and_versions_are_allowed() -> None:
    good = "from onnxprune.criteria._norm import p_norm\nfrom onnxprune import __version__\n"
    assert faults({"onnxprune.criteria._norm": "", "onnxprune.criteria.l2": good}) == []


def test_no_cycles() -> None:
    files = sources()
    graph = nx.DiGraph()
    for name, source in files.items():
        is_package = modules()[name].name == "__init__.py"
        for target in imports(source, name, files, is_package):
            if not target.startswith(name + ".") and not name.startswith(target + "."):
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
    assert len(names) <= 15
    assert len(set(names)) == len(names)
    assert all(getattr(onnxprune, name) is not None for name in names)
