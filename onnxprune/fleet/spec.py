"""What a fleet is to make: a list of jobs, from a TOML file or a folder of models.

::

    [options]                     # of all models: the options of 'prune' by their names in Python
    target = "macs=0.7,0.5"       # a model for each value
    calib = "samples.npz"

    [[model]]
    path = "a.onnx"

    [[model]]
    path = "b.onnx"
    name = "fast"                 # of its files; that of the model by default
    target = "macs=0.3"           # options of this one

Paths are relative to the folder of the file.
"""

from __future__ import annotations

import dataclasses
import os
import re
import tomllib
import zipfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnxprune.errors import CalibrationError, ModelError, OutputError, UsageError, did_you_mean
from onnxprune.options.fleet import FleetOptions
from onnxprune.options.pruning import Options
from onnxprune.options.target import family_of
from onnxprune.pruning.family import member_path

__all__ = ["Job", "jobs_of"]

#: Options that are files.
PATHS = ("calib", "moments", "inputs", "keep_tokens", "words")
#: The table, which is written beside reports.
TABLE = "fleet.json"
#: The name of a folder in which 'tune' keeps a search.
_STATE = re.compile("[0-9a-f]{16}")
#: Keys of a model that are no options.
OWN = ("path", "name")


@dataclass(frozen=True)
class Job:
    """One model to be made; all of it can be sent to another process or machine.

    Attributes
    ----------
    name : str
        Of its files.
    source : str
        Absolute path of the model.
    options : dict
        Of `onnxprune.prune`.
    folder : str
        Absolute path of what its files go to.
    """

    name: str
    source: str
    options: Mapping[str, Any]
    folder: str

    @property
    def output(self) -> Path:
        """Where the model goes."""
        return Path(self.folder, f"{self.name}.onnx")

    @property
    def report(self) -> Path:
        """Where the report goes."""
        return Path(self.folder, f"{self.name}.json")


def jobs_of(source: Path, output: Path, options: FleetOptions) -> tuple[list[Job], list[str]]:
    """Return the jobs of a fleet, and what there is to say of models that are none.

    Raises
    ------
    UsageError
        If the spec isn't one, an option is unknown or out of range, or two jobs have the same name.
    ModelError
        If there is no such file or folder, or no model in it.
    OutputError
        If the folder of the models is that of the results.
    """
    if source.is_dir():
        models, notes = _in_folder(source, output)
        common: dict[str, Any] = {}
    else:
        (common, models), notes = _in_spec(source), []
    jobs: dict[str, Job] = {}
    for model in models:
        own = {name: value for name, value in model.items() if name not in OWN}
        given = _layered(_placed(options.to_prune(), Path.cwd()), common, own)
        for job in _of_model(model["path"], model["name"], given, output):
            if job.report.name.casefold() == TABLE:
                raise UsageError(
                    f"The report of {job.source!r} would be {job.report.name!r}, which is the table of all; give the "
                    "model another name."
                )
            known = jobs.setdefault(job.name.casefold(), job)
            if known is not job:
                raise UsageError(
                    f"{known.source!r} and {job.source!r} would both be written as {job.output.name!r}; give one of "
                    "them a name."
                )
    return list(jobs.values()), notes


def _of_model(path: str, name: str, given: dict[str, Any], output: Path) -> list[Job]:
    """Return the jobs of one model, one for each value of its target."""
    target = given.get("target", ())
    if not isinstance(target, str) and not (
        isinstance(target, (list, tuple)) and all(isinstance(one, str) for one in target)
    ):
        raise UsageError(f"The target of {path!r} must be a text or a list of texts; got {target!r}.")
    family = family_of([target] if isinstance(target, str) else target) if target else ("",)
    jobs = []
    for member in family:
        own = {**given, "target": (member,)} if member else given
        _check(path, own)
        stem = member_path(f"{name}.onnx", member).stem if member else name
        jobs.append(Job(stem, path, own, str(output.absolute())))
    return jobs


def _layered(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Return options, of which later layers count more; a ratio takes the place of a target, and the other way."""
    given: dict[str, Any] = {}
    for layer in layers:
        for name, other in (("ratio", "target"), ("target", "ratio")):
            if name in layer:
                given.pop(other, None)
        given |= layer
    return given


def _check(path: str, given: Mapping[str, Any]) -> None:
    known = {spec.name for spec in dataclasses.fields(Options)}
    unknown = [name for name in given if name not in known]
    if unknown:
        raise UsageError(
            f"{path!r} is given {unknown[0]!r}, which is no option of 'prune'; docs/options.md lists them by their "
            f"names in Python.{did_you_mean(unknown[0], known)}"
        )
    try:
        Options(**given)
    except UsageError as error:
        raise UsageError(f"{str(error).rstrip('.')} (for {path!r}).") from error
    except (TypeError, ValueError, AttributeError) as error:
        raise UsageError(f"An option of {path!r} is of a wrong type: {error}.") from error
    for name in PATHS:
        value = given.get(name)
        if isinstance(value, str) and value != "synthetic" and not _is_count(name, value):
            _check_file(path, name, value)


def _check_file(model: str, name: str, value: str) -> None:
    """Refuse a file that isn't there, or no file of its kind, before anything runs.

    Raises
    ------
    CalibrationError
        With the model that it is for.
    """
    script, colon, _ = value.rpartition(":")
    file = Path(script if colon and script.endswith(".py") else value)
    if not file.exists():
        why = "there is no such file"
    elif file.suffix == ".npz" and not zipfile.is_zipfile(file):
        why = "it is no .npz file, or is truncated"
    elif file.is_dir() and not any(file.iterdir()):
        why = "the folder is empty"
    else:
        return
    raise CalibrationError(f"The option {name!r} of {model!r} can't be {str(file)!r}: {why}.")


def _in_folder(folder: Path, output: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the models in a folder and its folders, but for those of the output, and a note of what else is left out:
    what other commands have made below it.
    """
    away = output.resolve()
    if away == folder.resolve():
        raise OutputError(f"{str(output)!r} is the folder of the models; give another one for the results.")
    files = sorted(p for p in folder.rglob("*.onnx") if p.is_file())
    if folder.resolve() in away.parents:
        files = [p for p in files if away not in p.resolve().parents]
    made = {p: what for p in files if (what := _maker(p, folder))}
    notes = [f"left out: {n} .onnx that {what}" for what, n in sorted(Counter(made.values()).items())]
    files = [p for p in files if p not in made]
    if not files:
        more = f" ({'; '.join(notes)})" if notes else ""
        raise ModelError(
            f"{str(folder)!r} has no .onnx file in it{more}; give a folder of models, or a spec (.toml)."
        )
    return [
        {"path": str(p.absolute()), "name": "-".join(p.relative_to(folder).with_suffix("").parts)}
        for p in files
    ], notes


def _maker(path: Path, folder: Path) -> str:
    """Return what has made a model below a folder, by what lies beside it; nothing of a model of the user's."""
    for parent in path.parents:
        if parent == folder:
            break
        if _STATE.fullmatch(parent.name) and (parent / "search.json").is_file():
            return "'tune' keeps to go on from"
        if all((parent / name).is_file() for name in (TABLE, "fleet.csv")):
            return "another fleet has made"
    return ""


def _in_spec(source: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the common options and the models of a TOML file."""
    try:
        values = tomllib.loads(source.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ModelError(f"{str(source)!r} can't be read: {error.strerror or error}.") from error
    except ValueError as error:  # not UTF-8, or not TOML
        raise UsageError(
            f"{str(source)!r} is no TOML: {str(error).rstrip('.')}; give a folder of models, or a spec (.toml)."
        ) from error
    place = source.absolute().parent
    more = [name for name in values if name not in ("options", "model")]
    if more:
        raise UsageError(f"{str(source)!r} has {more[0]!r} in it; a spec has [options] and [[model]].")
    common, models = values.get("options", {}), values.get("model", [])
    if not isinstance(common, dict) or not isinstance(models, list) or not models:
        raise UsageError(f"{str(source)!r} names no model; give each a [[model]] with its path.")
    told = []
    for number, model in enumerate(models, 1):
        if not isinstance(model, dict) or not isinstance(model.get("path"), str):
            raise UsageError(f"Model {number} of {str(source)!r} has no path, or one that is no text.")
        if "\0" in model["path"]:
            raise UsageError(f"The path {model['path']!r} in {str(source)!r} is no name of a file.")
        path = place / model["path"]
        name = model.get("name", path.stem)
        if not isinstance(name, str) or name in ("", "..") or "\0" in name or Path(name).name != name:
            raise UsageError(f"The name {name!r} in {str(source)!r} is no name of a file.")
        told.append({**_placed(model, place), "path": str(path), "name": name})
    return _placed(common, place), told


def _placed(given: Mapping[str, Any], place: Path) -> dict[str, Any]:
    """Return options whose paths are absolute."""

    def placed(name: str, value: Any) -> Any:
        if name not in PATHS or not isinstance(value, str) or value == "synthetic" or _is_count(name, value):
            return value
        return os.path.join(place, value)

    return {name: placed(name, value) for name, value in given.items()}


def _is_count(name: str, value: str) -> bool:
    return name == "keep_tokens" and value.isascii() and value.isdigit()
