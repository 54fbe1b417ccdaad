"""What must not be broken off: signals wait while files take their places, and folders are locked meanwhile."""

from __future__ import annotations

import contextlib
import functools
import glob
import hashlib
import os
import secrets
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from onnxprune.wall import board as wall

__all__ = [
    "PREFIX",
    "alive",
    "cleaning",
    "locked",
    "remove_orphans",
    "scratch",
    "signals_deferred",
    "temporary",
]

#: How the names of all temporary files and folders begin; the number of the process follows.
PREFIX = ".onnxprune-"
_ALL = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


@functools.cache
def _here() -> str:
    """Return a mark of where numbers of processes count: this boot of this machine, and this container; else empty.

    A number means another process on the other machines that write into a shared folder.
    """
    if not sys.platform.startswith("linux"):
        return ""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""
    return hashlib.sha256(f"{boot}{namespace}".encode()).hexdigest()[:12]


def temporary(folder: Path, pid: int | None = None) -> Path:
    """Return a name in a folder that nothing has, for a file that will not stay."""
    return folder / f"{PREFIX}{pid or os.getpid()}-{_here()}{secrets.token_hex(6)}.tmp"


def remove_orphans(folder: Path, prefix: str = PREFIX) -> None:
    """Remove what processes of this machine that were killed have left in a folder; what can't go stays.

    Parameters
    ----------
    folder : Path
    prefix : str
        How the names begin; the process and the mark of the machine follow.
    """
    here = _here()
    if not here:
        return
    for path in folder.glob(f"{glob.escape(prefix)}*-{here}*"):
        number = path.name.removeprefix(prefix).partition("-")[0]
        if number.isdecimal() and not alive(int(number)):
            with contextlib.suppress(OSError):
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def alive(pid: int) -> bool:
    """Whether there is a process of this number, as far as one can tell; posix only."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # another user's, or no number of a process
        return True
    return True


def _swapped(numbers: tuple[int, ...], handler: Any, only_default: bool = False) -> dict[int, Any]:
    """Give signals a handler, and return those that they had; what is ignored stays ignored."""
    old: dict[int, Any] = {}
    if threading.current_thread() is not threading.main_thread():
        return old  # only there can handlers be set, and only there do they run
    for number in numbers:
        known = signal.getsignal(number)
        if known in (None, signal.SIG_IGN) or (only_default and known != signal.SIG_DFL):
            continue
        old[number] = known
        signal.signal(number, handler)
    return old


@contextlib.contextmanager
def signals_deferred() -> Iterator[None]:
    """Let SIGINT, SIGTERM and SIGHUP wait until the end of a block, and then do what they do."""
    arrived: list[int] = []
    old = _swapped(_ALL, lambda number, _: arrived.append(number))
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
        for number in dict.fromkeys(arrived):
            signal.raise_signal(number)


def _stop(number: int, _: FrameType | None) -> None:
    raise SystemExit(128 + number)


@contextlib.contextmanager
def cleaning() -> Iterator[None]:
    """Within a block SIGTERM and SIGHUP raise SystemExit (128 and the signal's number) where they would end the
    process at once, so that temporary files can go.
    """
    old = _swapped(tuple(n for n in _ALL if n != signal.SIGINT), _stop, only_default=True)
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A temporary folder where the platform has them, gone at the end, also after SIGTERM and SIGHUP."""
    remove_orphans(Path(tempfile.gettempdir()), PREFIX[1:])
    prefix = f"{PREFIX[1:]}{os.getpid()}-{_here()}"
    with (
        cleaning(),
        tempfile.TemporaryDirectory(prefix=prefix, ignore_cleanup_errors=True) as folder,
        wall.litter(folder),
    ):
        yield Path(folder)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Be the only process, of those that ask, that writes models into a folder; nothing is left in it.

    Where the platform or the file system has no such lock, nobody waits.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    handle = None
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        yield
    finally:
        if handle is not None:
            os.close(handle)
