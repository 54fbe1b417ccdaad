"""One job, wherever it runs: what goes there are paths and options, what comes back is a row of the table."""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from functools import partial
from typing import Any

from onnxprune.errors import OnnxPruneError
from onnxprune.files.commit import together
from onnxprune.files.reading import reading
from onnxprune.fleet.spec import Job
from onnxprune.options.pruning import Options
from onnxprune.pruning import journey
from onnxprune.wall.process import call

__all__ = ["DONE", "FAILED", "LOST", "apart", "work"]

_log = logging.getLogger("onnxprune.fleet")

Row = dict[str, Any]

#: What became of a job: it is there; it can't be done, and would fail again; its worker died, so it is tried again.
DONE, FAILED, LOST = "done", "failed", "lost"


def work(job: Job) -> Row:
    """Do a job; whatever is wrong with it is in the row.

    Returns
    -------
    dict
        ``status``, and either ``error`` and ``exit_code``, or figures before and after.
    """
    start = time.perf_counter()
    try:
        row = _made(job)
    except OnnxPruneError as error:
        row = {"status": FAILED, "exit_code": error.exit_code, "error": str(error)}
    except MemoryError:
        row = {"status": FAILED, "exit_code": 1, "error": "Out of memory."}
    except Exception as error:  # a row, so that the others go on
        text = f"This is a bug of onnxprune ({type(error).__name__}: {error}); please report it."
        row = {"status": FAILED, "exit_code": 1, "error": text}
    return {**row, "seconds": round(time.perf_counter() - start, 3)}


def _made(job: Job) -> Row:
    with reading(), together():
        result = journey.prune(journey.open_run(job.source, Options(**job.options)), job.output)
        result.report.save(job.report)
    told = result.report.to_json()
    row: Row = {"status": DONE, "output": job.output.name}
    for name in ("parameters", "macs", "bytes"):
        row[f"{name}_before"], row[f"{name}_after"] = told[name]["before"], told[name]["after"]
    row["law1"] = told["law1"]["max_relative_error"] if told["law1"] else None
    original = (told.get("calibration") or {}).get("original") or {}
    row |= {name: original.get(name) for name in ("relative_error", "agreement")}
    return {**row, "sha256": told["sha256"]["output"]}


def _heard(job: Job) -> Row:
    """Do a job; standard output is the table's, so what a script prints goes where messages do."""
    with contextlib.redirect_stdout(sys.stderr):
        return work(job)


def apart(job: Job) -> Row:
    """Do a job in a process of its own, behind the wall: a crash is that of this job alone."""
    try:
        return call(_heard, job, heard=partial(_log.info, "%s: %s", job.name))
    except OnnxPruneError as error:
        status = LOST if type(error) is OnnxPruneError else FAILED  # the wall has its reasons
        return {"status": status, "exit_code": error.exit_code, "error": str(error)}
