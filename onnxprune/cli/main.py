"""The command line: ``onnxprune prune IN.onnx OUT.onnx --ratio 0.5`` and its parts.

Nothing heavy is imported before the arguments are read, so ``--help`` answers at once. Results go to standard
output (a table for a terminal, aligned text or JSON for a pipe), everything else to standard error.
"""

from __future__ import annotations

import contextlib
import gc
import os
import shlex
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from onnxprune.cli.arguments import build
from onnxprune.errors import OnnxPruneError, missing
from onnxprune.files.commit import written
from onnxprune.files.reading import reading
from onnxprune.report.printing import printable
from onnxprune.wall import board as wall
from onnxprune.wall import watch

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    argv : sequence of str, optional
        The arguments; those of the process by default.

    Returns
    -------
    int
        The exit code; see `onnxprune.errors`.
    """
    if argv is not None:
        with printable(), wall.bounds():
            return _main(argv)
    _open_standard_files()
    code = watch.guard()
    if code is None:
        with printable():
            code = _finished()
    return code


def _open_standard_files() -> None:
    """Give a process without standard output or error the null device, or the next file would take their number."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "r" if number == 0 else "w", encoding="utf-8"))  # noqa: SIM115


def _finished() -> int:
    """Do the work, and let the parent know that it is done."""
    try:
        code = _main(None)
    except SystemExit as ended:  # of --help and --version
        code = ended.code if isinstance(ended.code, int) else 0
    wall.finish(code)
    return code


def _main(argv: Sequence[str] | None) -> int:
    verbose, before, command = False, len(written()), ""
    gc.set_threshold(
        100_000, 20, 20
    )  # what is made here lives to the end; looking through it in vain costs 5 %
    # read when numpy is first imported: threads that wait busily after each product take cores from onnxruntime
    os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "4")
    try:
        args = build(whole=False).parse_args(sys.argv[1:] if argv is None else argv)
        verbose, command = bool(args.verbose), getattr(args, "command", "")
        if hasattr(args, "at_once"):
            args.at_once(args)
            sys.stdout.flush()
            return 0
        wall.limit(args.max_memory, args.max_seconds)
        args.line = shlex.join(["onnxprune", *map(str, sys.argv[1:] if argv is None else argv)])
        from onnxprune.cli import commands

        with warnings.catch_warnings():
            warnings.showwarning = _warn  # type: ignore[assignment]
            with reading():
                getattr(commands, args.command)(args)
        sys.stdout.flush()
        return 0
    except OnnxPruneError as error:
        names = (
            "" if type(error) is OnnxPruneError else _names(before)
        )  # fleets tell of their tables themselves
        done = f" What had been written before is whole: {names}." if names else ""
        return _fail(f"{error}{done}", error.exit_code, verbose)
    except KeyboardInterrupt:
        names = _names(before)
        done = f"{names} had been written, whole" if names else "nothing was written"
        again = "; the same command goes on from there" if names and command == "tune" else ""
        return _fail(f"interrupted; {done}{again}.", 130, False)
    except BrokenPipeError:  # the reader of our output has gone, as in `onnxprune inspect m.onnx | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except MemoryError:
        return _fail("out of memory; close other programs or use a machine with more.", 1, verbose)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and not (error.name or "onnxprune").startswith("onnxprune"):
            return _fail(missing(error), 1, verbose)
        text = f"this is a bug of onnxprune ({type(error).__name__}: {error}); please report it"
        return _fail(f"{text} with the output of the same command and -v.", 1, verbose)


def _names(before: int) -> str:
    """Return the names of what was written since there were so many files, and is there, for sentences."""
    return ", ".join(dict.fromkeys(repr(_short(path)) for path in written()[before:] if path.exists()))


def _short(path: Path) -> str:
    """Return a path as one would type it here."""
    with contextlib.suppress(OSError, ValueError):  # the folder is gone, or another
        return str(path.relative_to(Path.cwd()))
    return str(path)


def _warn(message: Warning | str, *_: object) -> None:
    print(f"onnxprune: warning: {message}", file=sys.stderr)


def _fail(text: str, code: int, verbose: bool) -> int:
    if verbose:
        import traceback

        traceback.print_exc()
    with contextlib.suppress(BrokenPipeError):
        print(f"onnxprune: error: {' '.join(text.split())}", file=sys.stderr)
    return code
