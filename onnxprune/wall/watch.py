"""The parent's side of the wall: it watches the child, passes signals on, and says how it ended."""

from __future__ import annotations

import contextlib
import os
import signal
import struct
import sys
import time

from onnxprune.wall import board as wall
from onnxprune.wall.board import Board

__all__ = ["guard", "watch"]

_PAGE = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096
_TICKS = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100
#: Seconds between looks at the memory; and how many of them there are to a look at the time.
_TICK, _TIMES = 0.03, 8
#: Seconds that what libraries write to standard error is held back: until it is clear that it isn't a crash.
HELD = 0.3
#: Seconds without any work after which a process is taken to wait for ever.
STILL = 10.0


class Watch:
    """A child under watch.

    Parameters
    ----------
    board : Board
    child : int
        Its process.
    noise : int
        The file that its libraries' standard error can be read from.
    """

    board: Board
    child: int
    noise: int
    why: str
    code: int
    left: int
    moved: tuple[float, float]

    def __init__(self, board: Board, child: int, noise: int) -> None:
        self.board, self.child, self.noise = board, child, noise
        self.why = ""  # the sentence, once the child is killed from here
        self.code = 3
        self.interrupted: tuple[int, float] | None = None  # by which signal, and until when it may go on
        self.pending: list[tuple[float, bytes]] = []
        self.left = wall.NOISE
        self.moved = (0.0, time.monotonic())  # processor's time when it last went on, and when that was
        self.suspects: set[float] = set()  # stages that were over their limit at the last look
        os.set_blocking(noise, False)
        self._stat = os.open(f"/proc/{child}/stat", os.O_RDONLY)
        self._statm = os.open(f"/proc/{child}/statm", os.O_RDONLY)

    def memory(self) -> float:
        """Return the bytes that the child holds itself."""
        fields = os.pread(self._statm, 200, 0).split()
        return (int(fields[1]) - int(fields[2])) * _PAGE if len(fields) > 2 else 0.0

    def processor(self) -> float:
        """Return the seconds that the child has worked."""
        fields = os.pread(self._stat, 1000, 0).rpartition(b")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS

    def look_at_memory(self) -> None:
        """Kill the child if it holds too much."""
        memory, _ = wall.LIMITS.unpack_from(self.board.page, 16)
        if self.memory() > memory:
            what, code = self.doing()
            self.kill(
                f"{what} needs more than {memory / 1e6:,.0f} MB of memory, the most for a model of this size, and was "
                "stopped; if the model is sound, allow more with --max-memory, or give smaller inputs.",
                code,
            )

    def doing(self) -> tuple[str, int]:
        """Return the innermost stage: its name, and the exit code if it fails."""
        stages = self.board.stages()
        return (stages[-1][4], stages[-1][3]) if stages else ("The command", 3)

    def look_at_time(self) -> None:
        """Kill the child if it works too long at one thing, or waits for ever."""
        stages = self.board.stages()
        worked, now = self.processor(), time.monotonic()
        if worked > self.moved[0]:
            self.moved = (worked, now)
        still = now - self.moved[1] > STILL
        suspects = set()
        for began, clock, seconds, *_ in stages:
            took, waited = worked - began, now - clock
            if not ((took > seconds and waited > seconds) or (still and waited > wall.IDLE * seconds)):
                continue
            suspects.add(clock)
            if clock in self.suspects:  # at two looks, since the page changes while it is read
                what, code = stages[-1][4], stages[-1][3]
                self.kill(
                    f"{what} takes longer than {seconds:.3g} s, the most for a model of this size, and was stopped; if "
                    "the model is sound, allow more with --max-seconds.",
                    code,
                )
                return
        self.suspects = suspects

    def kill(self, why: str = "", code: int = 3) -> None:
        """End the child, for a reason."""
        self.why, self.code = why, code
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.child, signal.SIGKILL)

    def pass_on(self, number: int, from_terminal: bool) -> None:
        """Pass a signal on, and let the child end by itself; at the second one it is killed."""
        if self.interrupted is not None:
            self.kill()
            return
        if not from_terminal:  # there the child has got it as well
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.child, number)
        inside = bool(self.board.stages())
        self.interrupted = (number, time.monotonic() + wall.GRACE[0 if inside else 1])

    def relay(self, *, now: float | None = None) -> None:
        """Show what libraries wrote some time ago; so nothing of a crash is shown."""
        with contextlib.suppress(BlockingIOError, OSError):
            while text := os.read(self.noise, 1 << 16):
                self.pending.append((time.monotonic(), text))
        until = time.monotonic() - HELD if now is None else now
        while self.pending and self.pending[0][0] <= until:
            text = self.pending.pop(0)[1]
            with contextlib.suppress(OSError):
                os.write(2, text[: max(self.left, 0)])
            self.left -= len(text)

    def clean(self) -> None:
        """Remove what a killed child has left half-written."""
        text = self.board.page[wall.HEAD + wall.LEVELS * wall.LEVEL :].rstrip(b"\0")
        for name in text.split(b"\0"):
            path = os.fsdecode(name)
            if path and os.path.isdir(path) and not os.path.islink(path):
                import shutil

                shutil.rmtree(path, ignore_errors=True)
            elif path:
                with contextlib.suppress(OSError):
                    os.unlink(path)

    def end(self, status: int) -> int:
        """Return the exit code of a child that has ended, and say why where it couldn't."""
        code = os.waitstatus_to_exitcode(status)
        done = struct.unpack_from("<i", self.board.page, 4)[0]
        crashed = code < 0 and done < 0
        if not crashed:
            self.relay(now=float("inf"))
        if done >= 0:
            return int(done)
        self.clean()
        if self.interrupted is not None and (code < 0 or code == 130):
            return self._interrupted(-code)
        what, right = self.doing()
        if self.why:
            return say(self.why, self.code)
        if code >= 0:
            return say(f"{what} ended the process before the work was done; nothing was written.", right)
        name = signal.Signals(-code).name
        if code == -signal.SIGKILL:
            return say(
                f"{what} was killed from outside, most likely because the machine has no memory left; close other "
                "programs, or set a limit with --max-memory.",
                right,
            )
        if -code in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE, signal.SIGQUIT):
            return self._interrupted(-code)
        cause = (
            ", so the model can't be used: it is damaged or hostile, or meets a bug of the installed onnx or "
            "onnxruntime; check that place, or export the model again"
            if right == 3
            else "; it is not the model's work: look at that script or file, and at the libraries that it uses"
        )
        return say(f"{what} crashes the process ({name}){cause}.", right)

    def _interrupted(self, number: int) -> int:
        if self.interrupted is not None:
            number = self.interrupted[0]
        if number == signal.SIGINT:
            return say("interrupted; what was not finished is gone.", 130)
        return 128 + number


def say(text: str, code: int) -> int:
    """Print the sentence of an error, and return its exit code."""
    start = ""
    with contextlib.suppress(Exception):
        if sys.stderr.isatty():
            start = "\r\x1b[K\x1b[?25h"  # what a progress line may have left
        print(f"{start}onnxprune: error: {' '.join(text.split())}", file=sys.stderr, flush=True)
    return code


def watch(board: Board, child: int, noise: int, watched: set[signal.Signals]) -> int:
    """Watch a child until it ends; return the exit code."""
    over, tick = Watch(board, child, noise), 0
    while True:
        seen = signal.sigtimedwait(watched, _TICK)
        if (
            seen is not None and seen.si_signo not in watched
        ):  # Python's answer after a stop is what lay in memory
            seen = None
        if seen is not None and seen.si_signo != signal.SIGCHLD:
            over.pass_on(seen.si_signo, seen.si_code > 0)
        tick += 1
        if seen is not None or tick % _TIMES == 0:
            over.relay()
            pid, status = os.waitpid(child, os.WNOHANG)
            if pid:
                return over.end(status)
        if over.why:
            continue
        over.look_at_memory()
        if tick % _TIMES == 0:
            over.look_at_time()
        if over.interrupted is not None and time.monotonic() > over.interrupted[1]:
            over.kill()
            over.interrupted = (over.interrupted[0], float("inf"))


def guard() -> int | None:
    """Fork: None in the child, which does the work; in the parent, at its end, the exit code.

    None, too, where there is no wall.
    """
    if wall.is_walled() or sys.platform != "linux" or os.environ.get("ONNXPRUNE_WALL") == "0":
        return None
    board = wall.Board()
    watched = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, watched)
    reading, writing = os.pipe()
    parent = os.getpid()
    try:
        child = os.fork()
    except OSError:  # no more processes: then without
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        os.close(reading)
        os.close(writing)
        return None
    if child == 0:
        wall.attach(board)
        os.close(reading)
        _take_noise(writing)
        _die_with(parent)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return None
    os.close(writing)
    return watch(board, child, reading, watched)


def _take_noise(writing: int) -> None:
    """Let file 2, to which libraries write, lead to the parent; Python's own standard error stays where it was."""
    if sys.stderr is None:
        return
    with contextlib.suppress(OSError, ValueError):
        real = os.dup(2)
        sys.stderr = open(  # noqa: SIM115 - it lives to the end
            real, "w", encoding=sys.stderr.encoding, errors=sys.stderr.errors, buffering=1, closefd=False
        )
        os.dup2(writing, 2)
    os.close(writing)


def _die_with(parent: int) -> None:
    """Ask the kernel to end this process with its parent."""
    with contextlib.suppress(Exception):
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
