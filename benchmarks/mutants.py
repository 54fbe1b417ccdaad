"""Break the code on purpose, one place at a time, and see whether the tests notice.

    python benchmarks/mutants.py                     all mutants, two at a time; about half an hour
    python benchmarks/mutants.py --only criteria     those whose file or text holds this
    python benchmarks/mutants.py --trusted           without a run of the tests before, where they have just passed
    python benchmarks/mutants.py --list              the rows, and whether their texts are found
    python benchmarks/mutants.py --results FILE      outcomes are added to the file; rows that it has aren't run again
    python benchmarks/mutants.py --killers FILE      rows that such a file has go first, by the test that killed them

Rows are in mutants.toml: for each file the quick tests of its room, and pairs of old and new text. Each is applied
alone in a copy of the tree, and its tests are run there until the first that fails. A mutant that no test kills is a
behaviour that could be lost unseen: it gets a test, or its row says why none can tell it from the original. Before
anything is broken all of these tests are run once as they are, since a test that fails anyway kills nothing.

A row is matched by its text. Where its file has moved the text is looked for in the whole tree; a row whose text isn't
there, or is there twice, is an error that names it. Tests are named by their file alone, wherever it lies.

Exit code 1 if less than 95 % are killed, or a survivor has no reason.
"""

from __future__ import annotations

import argparse
import compileall
import json
import os
import py_compile
import queue
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ("onnxprune", "passes")
#: What tests read of the tree beside the sources.
BESIDE = (
    "tests",
    "samples",
    "docs",
    "recipes",
    "benchmarks",
    "README.md",
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "CITATION.cff",
    "CONTRIBUTING.md",
    "LICENSE",
    "SECURITY.md",
    "pyproject.toml",
)
WANTED = 0.95
#: Seconds for the tests of one mutant, many times what they need: one that hangs is killed by that.
PATIENCE = 1800


@dataclass(frozen=True)
class Mutant:
    """A place in a file, what is put there, the files of its tests, and why none of them can tell, if none can."""

    file: str
    old: str
    new: str
    tests: tuple[str, ...]
    why: str = ""


def rows() -> list[Mutant]:
    """Return all rows."""
    rooms = tomllib.loads((Path(__file__).parent / "mutants.toml").read_text("utf-8"))
    return [
        Mutant(file, old, new, tuple(room["tests"]), *why)
        for file, room in rooms.items()
        for old, new, *why in room["mutants"]
    ]


@dataclass(frozen=True)
class Outcome:
    """What became of a mutant: the test that killed it, empty where none did."""

    mutant: Mutant
    killer: str
    seconds: float


def sources(root: Path) -> dict[str, str]:
    """Return the text of each source file, by its path; the symlink to passes/ isn't followed."""
    paths = (p for top in SOURCES for p in sorted((root / top).rglob("*.py")))
    return {p.relative_to(root).as_posix(): p.read_text("utf-8") for p in paths if _own(p, root)}


def _own(path: Path, root: Path) -> bool:
    return not path.is_relative_to(root / "onnxprune" / "passes")


def place(mutant: Mutant, texts: dict[str, str]) -> str:
    """Return the file that holds a mutant's text.

    Raises
    ------
    LookupError
        If no file holds it, or it stands at several places; the sentence names the row.
    """
    count = texts.get(mutant.file, "").count(mutant.old)
    where = [mutant.file] * count or [
        name for name, text in texts.items() for _ in range(text.count(mutant.old))
    ]
    if len(where) != 1:
        what = "is nowhere" if not where else f"is at {len(where)} places ({', '.join(where[:3])})"
        raise LookupError(f"The text {mutant.old!r} of the row for {mutant.file} {what}; mend the row.")
    return where[0]


def tests_of(mutant: Mutant, root: Path) -> list[str]:
    """Return the paths of a mutant's tests, wherever their files lie.

    Raises
    ------
    LookupError
        If there is no such file, or several.
    """
    found = []
    for name in mutant.tests:
        paths = sorted((root / "tests").rglob(name))
        if len(paths) != 1:
            raise LookupError(
                f"The tests {name!r} of the row for {mutant.file} are {len(paths)} files; mend the row."
            )
        found.append(paths[0].relative_to(root).as_posix())
    return found


def broken(mutant: Mutant, text: str) -> str:
    """Return a file's text with the mutant in it.

    Raises
    ------
    SyntaxError
        If it is no Python any more, so that any test would kill it.
    """
    found = text.replace(mutant.old, mutant.new)
    compile(found, mutant.file, "exec")
    return found


def copy_tree(to: Path) -> Path:
    """Copy the tree; what is compiled is checked by content, since a mutant may be written within the clock's tick."""
    skip = shutil.ignore_patterns("__pycache__", "*.egg-info", "*.data")
    for name in (*SOURCES, *BESIDE):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, to / name, symlinks=True, ignore=skip)
        else:
            shutil.copy(source, to / name)
    mode = py_compile.PycInvalidationMode.CHECKED_HASH
    compileall.compile_dir(to, quiet=2, invalidation_mode=mode)
    return to


def run_tests(tree: Path, tests: Sequence[str], *more: str) -> tuple[bool, str]:
    """Run tests in a copy of the tree; return whether they pass, and the first line of what failed."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-x",
        "--no-header",
        "-p",
        "no:cacheprovider",
        *more,
        *tests,
    ]
    env = {**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(
            command, cwd=tree, env=env, capture_output=True, text=True, timeout=PATIENCE, check=False
        )
    except subprocess.TimeoutExpired:
        return False, f"they hang: not done within {PATIENCE} s"
    if done.returncode == 0:
        return True, ""
    failed = re.findall(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE)
    return False, failed[0] if failed else (done.stdout + done.stderr).strip().splitlines()[-1]


def judge(mutant: Mutant, tree: Path, killer: str = "") -> Outcome:
    """Break one place of a copy, run its tests, the one that killed it before first, and mend it again."""
    start = time.perf_counter()
    path = tree / place(mutant, sources(tree))
    original = path.read_text("utf-8")
    path.write_text(broken(mutant, original), "utf-8")
    try:
        tests, why = tests_of(mutant, tree), ""
        if first := first_test(killer, tests):
            why = run_tests(tree, [first])[1]
        if not first or not why.startswith(first.partition("[")[0]):  # it passed, or is no test any more
            why = run_tests(tree, tests)[1]
    finally:
        path.write_text(original, "utf-8")
    return Outcome(mutant, why, time.perf_counter() - start)


def first_test(killer: str, tests: Sequence[str]) -> str:
    """Return what is run first: a test, all of its cases where its name has a space; "" if its file has no part."""
    name, _, rest = killer.partition("::")
    where = [path for path in tests if Path(path).name == Path(name).name]
    if not rest or not where:
        return ""
    return f"{where[0]}::{rest if rest.endswith(']') else rest.partition('[')[0]}"


def read_results(path: Path | None) -> dict[Mutant, Outcome]:
    """Return the outcomes that a file of results holds, by the rows as they are now; others are left out."""
    if path is None or not path.exists():
        return {}
    known = {(row.file, row.old, row.new): row for row in rows()}
    lines = [json.loads(text) for text in path.read_text("utf-8").splitlines()]
    return {
        known[key]: Outcome(known[key], one["killer"], one["seconds"])
        for one in lines
        if (key := (one["file"], one["old"], one["new"])) in known
    }


def keep_result(path: Path, found: Outcome) -> None:
    """Add an outcome to a file of results."""
    row = found.mutant
    entry = {
        "file": row.file,
        "old": row.old,
        "new": row.new,
        "killer": found.killer,
        "seconds": round(found.seconds, 1),
    }
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")


def all_of(
    mutants: Sequence[Mutant],
    jobs: int,
    trusted: bool,
    killers: dict[Mutant, str],
    tell: Callable[[Outcome], None],
) -> list[Outcome]:
    """Judge mutants, as many at a time as there are copies of the tree; trusted: the tests are known to pass."""
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        trees: queue.Queue[Path] = queue.Queue()
        for n in range(jobs):
            (Path(folder) / str(n)).mkdir()
            trees.put(copy_tree(Path(folder) / str(n)))
        tests = sorted({t for m in mutants for t in tests_of(m, ROOT)})
        first = trees.get()
        passed, why = (True, "") if trusted else run_tests(first, tests, "-n", str(jobs))
        trees.put(first)
        if not passed:
            raise SystemExit(f"The tests fail before anything is broken: {why}; mend that first.")

        def one(mutant: Mutant) -> Outcome:
            tree = trees.get()
            try:
                found = judge(mutant, tree, killers.get(mutant, ""))
            finally:
                trees.put(tree)
            tell(found)
            return found

        with ThreadPoolExecutor(jobs) as pool:
            return list(pool.map(one, mutants))


def line(found: Outcome) -> str:
    """Return what is printed of a mutant."""
    room = found.mutant.file.removeprefix("onnxprune/").removesuffix(".py")
    end = (
        f"killed by {found.killer}"
        if found.killer
        else f"SURVIVED: {found.mutant.why or 'no reason is given'}"
    )
    return (
        f"{room:28} {found.seconds:5.0f} s  {_short(found.mutant.old)} -> {_short(found.mutant.new)}  {end}"
    )


def _short(text: str) -> str:
    plain = " ".join(text.split())
    return repr(plain if len(plain) <= 60 else plain[:57] + "...")


def _cost(before: Outcome | None) -> tuple[bool, float]:
    """Sort what was killed before by its time, then the rest."""
    return before is None or not before.killer, before.seconds if before is not None else 0.0


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="mutants whose file or text holds this")
    parser.add_argument("--jobs", type=int, default=2, help="copies of the tree that are worked on at a time")
    parser.add_argument("--trusted", action="store_true", help="don't run the tests as they are before")
    parser.add_argument("--list", action="store_true", help="say where each row's text is, and run nothing")
    parser.add_argument("--results", type=Path, help="where outcomes are kept, and looked up")
    parser.add_argument(
        "--killers", type=Path, help="results of an earlier state, whose killers are tried first"
    )
    args = parser.parse_args()
    known, texts = rows(), sources(ROOT)
    chosen = [m for m in known if args.only in m.file or args.only in m.old]
    for mutant in chosen:  # without --only all of them
        where = place(mutant, texts)
        broken(mutant, texts[where])
        if args.list:
            print(
                f"{where}: {_short(mutant.old)} -> {_short(mutant.new)}; {', '.join(tests_of(mutant, ROOT))}"
            )
    if args.list:
        return 0
    done, before = read_results(args.results), read_results(args.killers)
    todo = sorted((m for m in chosen if m not in done), key=lambda m: _cost(before.get(m)))

    def tell(one: Outcome) -> None:
        print(line(one), flush=True)
        if args.results is not None:
            keep_result(args.results, one)

    found = [done[m] for m in chosen if m in done]
    found += all_of(todo, args.jobs, args.trusted, {m: one.killer for m, one in before.items()}, tell)
    killed = [one for one in found if one.killer]
    print(f"\n{len(killed)} of {len(found)} mutants killed ({len(killed) / max(len(found), 1):.1%})")
    for one in found:
        if not one.killer:
            print(f"survived: {line(one)}")
    unexplained = [one for one in found if not one.killer and not one.mutant.why]
    return int(bool(unexplained) or len(killed) < WANTED * len(found))


if __name__ == "__main__":
    sys.exit(main())
