"""Run one command of onnxprune on a file that may be hostile, under limits, and say how it ended. Linux only.

    python benchmarks/attempt.py FOLDER [WORD ...]

runs every command on every ``.onnx`` file of a folder (those whose name has one of the words) and prints what is wrong.
"""

from __future__ import annotations

import contextlib
import hashlib
import multiprocessing
import os
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

from onnxprune import cli

#: What a refusal may take: seconds of the processor (a busy machine says nothing of us), and bytes.
SECONDS, MEMORY = 5.0, 1e9
#: How many times longer a command may take before it counts as hanging.
PATIENCE = 12

ROOT = Path(__file__).resolve().parents[1]

COMMANDS: dict[str, tuple[str, ...]] = {
    "inspect": ("inspect", "IN"),
    "sparsity": ("inspect", "IN", "--sparsity"),
    "explain": ("explain", "IN", "h"),
    "prune": ("prune", "IN", "OUT", "--ratio", "0.5"),
    "plan": ("plan", "IN", "-o", "-", "--ratio", "0.5"),
    "sparsify": ("sparsify", "IN", "OUT", "--pattern", "2:4"),
    "resolve_shapes": ("run", "IN", "OUT", "--passes", "resolve_shapes"),
    "drop_dead": ("run", "IN", "OUT", "--passes", "drop_dead"),
    "shrink": ("run", "IN", "OUT", "--passes", "shrink"),
    "run_prune": ("run", "IN", "OUT", "--passes", "prune{ratio=0.5}"),
    "verify": ("verify", "IN", "IN", "--plan", "PLAN"),
    "apply": ("apply", "IN", "PLAN", "OUT"),
}
#: Exit codes that a command documents for a file that it refuses.
REFUSALS = frozenset(range(2, 10))


@dataclass(frozen=True)
class Outcome:
    """How a command ended.

    Attributes
    ----------
    kind : str
        ``ok``, ``refused``, or what is wrong: ``traceback``, ``bug``, ``signal``, ``hang``, ``slow``, ``memory``,
        ``litter`` (the input changed, or something was left behind), ``text`` (no single clean sentence), ``code`` (an
        exit code that isn't documented, or no result where all is said to be well).
    code : int or None
        Exit code; negative for a signal, None if it was stopped here.
    seconds, processor : float
        Wall clock's and processor's.
    memory : float
        Bytes at the peak.
    stderr : str
    """

    kind: str
    code: int | None
    seconds: float
    processor: float
    memory: float
    stderr: str

    @property
    def fine(self) -> bool:
        """Whether nothing is wrong."""
        return self.kind in ("ok", "refused")


def attempt(
    command: tuple[str, ...], source: Path, plan: Path | None = None, env: dict[str, str] | None = None
) -> Outcome:
    """Run one command on a copy of a file, in a folder of its own.

    Parameters
    ----------
    command : tuple of str
        Arguments, with ``IN``, ``OUT`` and ``PLAN`` for the files.
    source : Path
    plan : Path, optional
        A plan, for commands that need one; else that of `some_plan`.
    env : dict, optional
        More of the environment.
    """
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        names = {"IN": "in" + source.suffix, "OUT": "out.onnx", "PLAN": "plan.json"}
        shutil.copy(source, here / names["IN"])
        if "PLAN" in command:
            text = plan.read_text() if plan is not None else some_plan(source)
            (here / "plan.json").write_text(text)
        before = _print(here)
        more = {"ONNXPRUNE_CACHE": str(here / ".cache"), "TMPDIR": str(here / ".tmp"), **(env or {})}
        (here / ".tmp").mkdir()
        code, seconds, processor, memory, out, err = _run(
            [names.get(word, word) for word in command], here, more
        )
        after = _print(here)
        made = {n for n in after if n not in before and not n.endswith("/.ses")}
        kept = all(after.get(n) == text for n, text in before.items())
    kind = _kind(code, err, wants="OUT" in command, made=made, kept=kept)
    if kind in ("ok", "refused") and (code is None or processor > SECONDS):
        kind = "slow" if code is not None else "hang"
    if kind in ("ok", "refused", "slow") and memory > MEMORY:
        kind = "memory"
    if kind == "ok" and re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]", out):
        kind = "text"
    return Outcome(kind, code, seconds, processor, memory, err)


def some_plan(source: Path) -> str:
    """Return a plan that takes two of the sixteen units of the group ``w1:1``, which the file may not have."""
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    return PLAN.replace("SHA", digest)


PLAN = """{"format": 1, "model_sha256": "SHA", "criterion": "l2", "ratio": 0.5, "align": 1, "seed": 0,
"scope": "local", "inexact": false, "groups": [{"name": "w1:1", "removed_units": [0, 5], "units": 16}],
"input_shapes": {}}"""


def _print(folder: Path) -> dict[str, str]:
    skip = (".cache", ".tmp")
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
        and (p.relative_to(folder).parts[0] not in skip or p.relative_to(folder).parts[0] == ".tmp")
    }


def _run(
    arguments: list[str], folder: Path, more: dict[str, str]
) -> tuple[int | None, float, float, float, str, str]:
    """Return exit code, seconds, processor seconds, bytes, standard output and standard error."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        start = time.monotonic()
        child = _fork(arguments, folder, more, (out.fileno(), err.fileno()))
        late = False
        while True:
            pid, status, usage = os.wait4(child, os.WNOHANG)
            if pid:
                break
            if time.monotonic() - start > SECONDS * PATIENCE and not late:
                os.killpg(child, signal.SIGKILL)
                late = True
            time.sleep(0.01)
        code = os.waitstatus_to_exitcode(status)
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read(1 << 22).decode(errors="replace"))
    seconds = time.monotonic() - start
    worked, memory = usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024.0
    return None if late else code, seconds, worked, memory, texts[0], texts[1]


def _fork(arguments: list[str], folder: Path, more: dict[str, str], files: tuple[int, int]) -> int:
    """Begin the command line in a process of its own, in which all modules are imported already."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.setsid()
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for number, file in enumerate(files, 1):
            os.dup2(file, number)
        os.chdir(folder)
        os.environ.update(more)
        sys.argv = ["onnxprune", *arguments]
        code = cli.main()
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _kind(code: int | None, err: str, *, wants: bool, made: set[str], kept: bool) -> str:
    # on a busy machine, with progress
    lines = [line for line in err.splitlines() if line.strip() and not re.match(r"\[\d+ s\] ", line)]
    if "Traceback (most recent call last)" in err:
        return "traceback"
    if "this is a bug of onnxprune" in err:
        return "bug"
    if code is None:
        return "hang"
    if code < 0:
        return "signal"
    if not kept or made - {"out.onnx"} or (made and code):
        return "litter"
    if code == 0:
        return "code" if wants and "out.onnx" not in made else "ok"
    if code not in REFUSALS:
        return "code"
    # a C++ library may say something on its own before
    if (
        len(lines) != 1
        or not re.fullmatch(r"onnxprune: error: .*[.]", lines[0])
        or not lines[0].isprintable()
    ):
        return "text"
    return "refused"


def main() -> int:
    """Print what is wrong, and return how much."""
    folder, words = Path(sys.argv[1]), sys.argv[2:]
    files = [p for p in sorted(folder.glob("*.onnx")) if not words or any(w in p.name for w in words)]
    pairs = [(p, name) for p in files for name in COMMANDS]
    import onnxruntime  # noqa: F401

    import onnxprune.passes.shrink  # noqa: F401

    wrong = 0
    with multiprocessing.get_context("fork").Pool(int(os.environ.get("JOBS", "2"))) as pool:
        for (path, name), outcome in zip(pairs, pool.imap(_one, pairs), strict=True):
            last = (outcome.stderr.strip().splitlines() or [""])[-1]
            wrong += not outcome.fine
            if not outcome.fine or os.environ.get("ALL"):
                print(
                    f"{path.stem:28} {name:14} {outcome.kind:9} {outcome.code!s:4} {outcome.processor:5.1f} s "
                    f"{outcome.memory / 1e6:5.0f} MB  {last[:150]}",
                    flush=True,
                )
    print(f"{len(pairs)} commands on {len(files)} files: {wrong} wrong")
    return min(wrong, 100)


def _one(pair: tuple[Path, str]) -> Outcome:
    return attempt(COMMANDS[pair[1]], pair[0])


if __name__ == "__main__":
    sys.exit(main())
