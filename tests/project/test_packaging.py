"""What is installed is what is in the tree, however it gets installed."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PACKAGES = PROJECT["tool"]["setuptools"]["packages"]
FOLDERS = PROJECT["tool"]["setuptools"]["package-dir"]


def source_files(root: Path = ROOT) -> set[str]:
    """Return every module, and what the page is made of, under the name that it must have once installed."""
    found = {"onnxprune/py.typed"}
    found |= {
        f"onnxprune/report/page/{p.name}"
        for p in (root / "onnxprune/report/page").iterdir()
        if p.suffix in (".css", ".js")
    }
    for top, installed in (("onnxprune", "onnxprune"), ("passes", "onnxprune/passes")):
        for path in (root / top).rglob("*.py"):
            inside = path.relative_to(root / top).as_posix()
            if not (top == "onnxprune" and inside.startswith("passes/")):  # the symlink, where there is one
                found.add(f"{installed}/{inside}")
    return found


def build(kind: str, source: Path, out: Path) -> Path:
    """Build a wheel or an sdist of `source` with the installed setuptools, without the network."""
    out.mkdir(exist_ok=True)
    code = f"import setuptools.build_meta as b, sys; print(b.build_{kind}(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", code, str(out)], cwd=source, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return out / done.stdout.strip().splitlines()[-1]


def contents(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Return a clean copy of what a build needs, with the symlink where the system has them."""
    copy = tmp_path / "tree"
    copy.mkdir()
    skip = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("onnxprune", "passes"):
        shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=skip)
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy / name)
    return copy


def packages_in(root: Path) -> set[str]:
    """Return the dotted names of the folders that hold an ``__init__.py``."""
    inits = (name for name in source_files(root) if name.endswith("/__init__.py"))
    return {name.removesuffix("/__init__.py").replace("/", ".") for name in inits}


def test_the_package_list_is_the_tree() -> None:
    assert sorted(PACKAGES) == sorted(packages_in(ROOT))


def test_a_forgotten_package_is_seen(tree: Path) -> None:
    (tree / "onnxprune" / "forgotten").mkdir()
    (tree / "onnxprune" / "forgotten" / "__init__.py").touch()
    assert packages_in(tree) - set(PACKAGES) == {"onnxprune.forgotten"}


def test_no_module_lies_outside_a_package() -> None:
    folders = {name.rpartition("/")[0].replace("/", ".") for name in source_files() if name.endswith(".py")}
    assert folders == set(PACKAGES)


def test_wheel_holds_exactly_the_modules(tree: Path, tmp_path: Path) -> None:
    assert contents(build("wheel", tree, tmp_path / "out")) == source_files()


def test_wheel_from_sdist_is_the_same(tree: Path, tmp_path: Path) -> None:
    sdist = build("sdist", tree, tmp_path / "out")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    assert contents(build("wheel", unpacked, tmp_path / "out")) == source_files()


@pytest.mark.parametrize("left", ["nothing", "text"])
def test_wheel_without_symlinks(tree: Path, tmp_path: Path, left: str) -> None:
    """Git on Windows checks the symlink out as a file that holds its target."""
    (tree / "onnxprune" / "passes").unlink(missing_ok=True)  # an sdist has none
    if left == "text":
        (tree / "onnxprune" / "passes").write_text("../passes")
    assert contents(build("wheel", tree, tmp_path / "out")) == source_files()


def run_python(*args: str, path: Path | None = None, cwd: Path) -> "subprocess.CompletedProcess[str]":
    env = {**os.environ, "PYTHONPATH": str(path) if path else ""}
    return subprocess.run(
        [sys.executable, *args], cwd=cwd, env=env, capture_output=True, text=True, check=False
    )


def test_the_wheel_runs(tree: Path, tmp_path: Path) -> None:
    installed = tmp_path / "site"
    with zipfile.ZipFile(build("wheel", tree, tmp_path / "out")) as archive:
        archive.extractall(installed)
    code = "import onnxprune, onnxprune.passes; print(onnxprune.__file__); print(onnxprune.passes.__file__)"
    done = run_python("-c", code, path=installed, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert all(Path(line).is_relative_to(installed) for line in done.stdout.splitlines())
    done = run_python("-m", "onnxprune", "--help", path=installed, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "prune" in done.stdout


def test_passes_refuse_another_name() -> None:
    done = run_python("-c", "import passes", cwd=ROOT)
    assert done.returncode != 0
    assert "import onnxprune.passes, not 'passes'" in done.stderr


def test_the_console_script_exists() -> None:
    module, _, name = PROJECT["project"]["scripts"]["onnxprune"].partition(":")
    code = f"import {module} as m; assert callable(m.{name})"
    done = run_python("-c", code, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_every_dependency_has_a_lower_bound() -> None:
    extras = PROJECT["project"]["optional-dependencies"].values()
    wanted = [*PROJECT["project"]["dependencies"], *(one for extra in extras for one in extra)]
    assert [one for one in wanted if not re.fullmatch(r"[\w-]+>=[\d.]+", one)] == []


def test_the_lowest_versions_are_those_that_are_declared() -> None:
    """What .ci/lowest installs is read from pyproject.toml as it runs, and .ci/run runs it when asked."""
    script = (ROOT / ".ci" / "lowest").read_text(encoding="utf-8")
    (code,) = re.findall(r"<<'PY'\n(.*?)\nPY\n", script, re.DOTALL)
    done = run_python("-c", code, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    wanted = [*PROJECT["project"]["dependencies"], *PROJECT["project"]["optional-dependencies"]["dev"]]
    assert done.stdout.split() == [one.replace(">=", "==") for one in wanted]
    assert "exec .ci/lowest" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    versions = {c.rpartition(" ")[2] for c in PROJECT["project"]["classifiers"] if "Python :: 3." in c}
    assert min(versions) == PROJECT["project"]["requires-python"].removeprefix(">=")


def imported_names() -> set[str]:
    """Return the top-level names that the installed modules import, wherever in the file."""
    pattern = re.compile(r"^\s*(?:from|import)\s+([a-zA-Z_]\w*)", re.MULTILINE)
    files = [*(ROOT / "onnxprune").rglob("*.py"), *(ROOT / "passes").rglob("*.py")]
    found = {name for path in files for name in pattern.findall(path.read_text(encoding="utf-8"))}
    return {name for name in found if name not in sys.stdlib_module_names}


def test_every_import_is_declared() -> None:
    declared = {one.partition(">")[0].replace("-", "_") for one in PROJECT["project"]["dependencies"]}
    declared |= {one.partition(">")[0] for one in PROJECT["project"]["optional-dependencies"]["tokens"]}
    known = declared | {"onnxprune", "google"}  # google.protobuf comes with onnx
    prose = {name for name in imported_names() - known if not _importable(name)}  # words of docstrings
    assert imported_names() - known - prose == set()


def _importable(name: str) -> bool:
    import importlib.util

    return importlib.util.find_spec(name) is not None


def test_ci_runs_the_command_of_the_readme() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    lines = [line for line in readme.splitlines() if "python -m pytest" in line and ".venv" in line]
    assert len(lines) == 1, lines
    steps = [step.strip() for step in lines[0].split("&&")]
    assert steps[:2] == ["python3 -m venv .venv", ". .venv/bin/activate"]
    assert steps[2:], lines
    for step in steps[2:]:
        assert step in script.replace("--quiet ", ""), step


def test_the_readme_names_files_that_exist() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    named = set(re.findall(r"\b(?:samples|docs|benchmarks|passes|tests)/[\w./-]*\w", readme))
    assert named
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


def test_the_recipe_of_conda_asks_for_what_the_project_asks_for() -> None:
    text = (ROOT / "conda" / "meta.yaml").read_text(encoding="utf-8")
    run = text.partition("  run:\n")[2].partition("\ntest:")[0]
    asked = sorted(line.strip("- ").replace(" >=", ">=") for line in run.splitlines() if line.strip())
    assert asked == sorted(
        [f"python{PROJECT['project']['requires-python']}", *PROJECT["project"]["dependencies"]]
    )
    assert f'version = "{PROJECT["project"]["version"]}"' in text


def test_a_citation_is_of_this_version() -> None:
    text = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {PROJECT['project']['version']}\n" in text
    assert f"\nrepository-code: {PROJECT['project']['urls']['Source']}\n" in text


def test_the_sdist_has_what_its_tests_read(tmp_path: Path) -> None:
    """Built from a copy of what git has; a checkout without git is one already."""
    copy = tmp_path / "tree"
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode or not done.stdout:
        pytest.skip("no git, so this is an sdist or a copy")
    names = [n for n in done.stdout.split("\0") if (n and (ROOT / n).exists()) or (ROOT / n).is_symlink()]
    for name in filter(None, names):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, copy / name, follow_symlinks=False)
    with tarfile.open(build("sdist", copy, tmp_path / "out")) as archive:
        held = {m.name.partition("/")[2] for m in archive.getmembers() if not m.isdir()}
    missing = {n for n in names if n and not n.startswith("onnxprune/passes")} - held
    assert missing == set()


def test_links_of_the_readme_lead_somewhere_on_an_index_page(tree: Path, tmp_path: Path) -> None:
    wheel = build("wheel", tree, tmp_path / "out")
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [n for n in archive.namelist() if n.endswith(".dist-info/METADATA")]
        metadata = archive.read(name).decode()
    assert "Description-Content-Type: text/markdown" in metadata
    links = re.findall(r"\]\(([^)\s]+)\)", metadata.partition("\n\n")[2])
    home = PROJECT["project"]["urls"]["Source"]
    assert len(links) > 20
    assert [link for link in links if not link.startswith(f"{home}/")] == []
    paths = {link.removeprefix(f"{home}/").split("/", 2)[2] for link in links}
    assert [path for path in paths if not (ROOT / path).exists()] == []
    assert f"{home}/raw/main/docs/picture.svg" in links
    assert wheel.stat().st_size < 1_200_000
