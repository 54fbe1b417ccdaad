"""The journey of a fleet: what is there stays, what isn't is done by whoever does it, and the table grows meanwhile.

A row is kept when its job is done, after the model has been written, so a fleet may be stopped or killed at any time:
the same command goes on. A job is done where its row has the key of all that it depends on, and its file the bytes that
it was written with.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from onnxprune.errors import OnnxPruneError, OutputError
from onnxprune.files.cache import digest_of, key_of
from onnxprune.files.commit import sweep
from onnxprune.files.holding import PREFIX, alive
from onnxprune.fleet.spec import PATHS, Job, jobs_of
from onnxprune.fleet.table import FleetTable
from onnxprune.fleet.work import DONE, FAILED, LOST, apart, work
from onnxprune.model import Model
from onnxprune.options.fleet import FleetOptions
from onnxprune.reconstruction.cache import program
from onnxprune.report.record import versions

__all__ = ["sail"]

_log = logging.getLogger("onnxprune.fleet")

Progress = Callable[[str], None]


def sail(
    source: Path, output: Path, options: FleetOptions, executor: Executor | None, say: Progress | None
) -> FleetTable:
    """Do all jobs that aren't done.

    Parameters
    ----------
    source : Path
        A spec or a folder of models, see `onnxprune.fleet.spec`.
    output : Path
        Folder of all results; it is made.
    options : FleetOptions
    executor : Executor or None
        Whose workers see the same files; processes of this machine by default.
    say : callable or None
        Told of each job.

    Raises
    ------
    UsageError, ModelError
        If the spec isn't one.
    OutputError
        If the folder can't be written, or another fleet is at it.
    """
    jobs, notes = jobs_of(source, output, options)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"The folder {str(output)!r} can't be made: {error.strerror or error}.") from error
    with alone_in(output):
        _clear(output)
        table = FleetTable.open(output)
        table.names, table.notes = [job.name for job in jobs], notes
        for note in notes:
            _log.info("%s", note)
        keys = {job.name: _key(job) for job in jobs}
        todo = [job for job in jobs if not _is_settled(table, job, keys[job.name], options.retry)]
        _log.info("%d jobs, %d of them are settled", len(jobs), len(jobs) - len(todo))
        table.write()
        for number, (job, row) in enumerate(_rows(todo, options.jobs, executor), 1):
            target = job.options.get("target", ())
            facts = {
                "name": job.name, "model": job.source, "key": keys[job.name],
                "target": "+".join(target) if target else f"ratio={job.options.get('ratio')}",
            }  # fmt: skip
            table.keep({**row, **facts})
            if say is not None:
                say(f"{number}/{len(todo)} {job.name}: {row['status']}")
    return table


def _rows(
    jobs: Sequence[Job], abreast: int, executor: Executor | None
) -> Iterator[tuple[Job, dict[str, Any]]]:
    """Yield what becomes of jobs, as they end; no more of ours begin once somebody stops listening."""
    with contextlib.ExitStack() as stack:
        if executor is None:
            pool: Executor = ThreadPoolExecutor(abreast)
            stack.callback(pool.shutdown, wait=True, cancel_futures=True)
            function = apart
        else:
            pool, function = executor, work
        futures: dict[Future[dict[str, Any]], Job] = {}
        for job in jobs:
            try:
                futures[pool.submit(function, job)] = job
            except Exception as error:  # a pool that broke meanwhile
                yield job, _lost(error)
        stack.callback(lambda: [future.cancel() for future in futures])
        for future in as_completed(futures):
            try:
                row = future.result()
            except Exception as error:  # work keeps its own errors, so this is the worker's end
                row = _lost(error)
            yield futures[future], row


def _lost(error: BaseException) -> dict[str, Any]:
    text = f"Its worker was lost ({type(error).__name__}: {error}); the same command tries again."
    return {"status": LOST, "exit_code": 1, "error": " ".join(text.split())}


def _key(job: Job) -> str:
    """Return a key of all that a job's result depends on."""
    given = dict(job.options)
    files = {name: digest_of(given[name]) for name in PATHS if isinstance(given.get(name), str)}
    try:
        model = Model.load(job.source).sha256
    except OnnxPruneError as error:  # it will fail, and so it will again as long as nothing changes
        model = str(error)
    options = {name: str(value) for name, value in given.items()}
    return key_of(
        {"model": model, "options": options, "files": files, "program": program(), "versions": versions()}
    )


def _is_settled(table: FleetTable, job: Job, key: str, retry: bool) -> bool:
    """Whether nothing is left to do for a job."""
    row = table.rows.get(job.name)
    if row is None or row["key"] != key:
        return False
    if row["status"] == DONE:
        with contextlib.suppress(OnnxPruneError):
            return Model.load(job.output).sha256 == row["sha256"] and job.report.is_file()
        return False
    return row["status"] == FAILED and not retry


def _clear(folder: Path) -> None:
    """Remove what jobs that were killed on this machine had begun to write."""
    if os.name != "posix":  # elsewhere a process can't be asked whether it is there
        return
    numbers = {p.name.removeprefix(PREFIX).partition("-")[0] for p in folder.glob(f"{PREFIX}*.tmp")}
    for number in (int(n) for n in numbers if n.isdecimal()):
        if not alive(number):
            sweep(folder, number)


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Be the only fleet in a folder; who is killed leaves it free.

    Raises
    ------
    OutputError
        If there is another one, or the folder can't be written.
    """
    place = folder / ".fleet.lock"
    handle = _held(place)
    while not _is_there(place, handle):  # its owner has removed it between our opening and our locking it
        os.close(handle)
        handle = _held(place)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # Windows removes no file that is open
            place.unlink()
        os.close(handle)


def _is_there(place: Path, handle: int) -> bool:
    """Whether a file that is open is still the one that has this path."""
    try:
        return os.path.samestat(os.stat(place), os.fstat(handle))
    except OSError:
        return False


def _held(place: Path) -> int:
    """Open the file of a lock, and take it."""
    try:
        handle = os.open(place, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise OutputError(
            f"The folder {str(place.parent)!r} can't be written: {error.strerror or error}."
        ) from error
    try:
        _lock(handle)
    except OSError as error:
        os.close(handle)
        raise OutputError(
            f"Another fleet writes into {str(place.parent)!r}; wait for its end, or give another folder."
        ) from error
    return handle


def _lock(handle: int) -> None:
    """Take a lock that ends with the process, or fail with an OSError where somebody has it."""
    try:
        import fcntl
    except ImportError:  # Windows
        import msvcrt

        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined,unused-ignore]
        return
    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
