"""The end of a journey: the result is written, and its report learns what is known only then."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import onnx

from onnxprune.journey.output import size_in_bytes, size_of_output
from onnxprune.journey.run import Run
from onnxprune.journey.staging import Staging
from onnxprune.model import Model
from onnxprune.report.record import Record, Shown

__all__ = ["Outcome", "save"]

R = TypeVar("R", bound=Record)


@dataclass(repr=False)
class Outcome(Shown, Generic[R]):
    """What a journey gives back.

    Attributes
    ----------
    changed : Model
        The result; its weights may still lie in the input's file.
    report : Record
        Of the journey's own kind.
    path : Path or None
        Where it was written.
    """

    changed: Model
    report: R
    path: Path | None = None
    _proto: onnx.ModelProto | None = field(default=None, repr=False, kw_only=True)

    def brief(self) -> str:
        """Return what the report says, in a few words."""
        return self.report.brief()

    def _repr_html_(self) -> str:
        return self.report._repr_html_()

    @property
    def model(self) -> onnx.ModelProto:
        """The result as a complete ModelProto, its weights included."""
        if self._proto is None:
            self._proto = self.changed.to_proto()
        return self._proto


def save(run: Run[Any], outcome: Outcome[Any], staging: Staging | None = None) -> tuple[int, int]:
    """Write a result where it has a path, and fill in the report names, hashes, options and seconds.

    Parameters
    ----------
    run : Run
    outcome : Outcome
    staging : Staging, optional
        Where the same model may lie as a file already.

    Returns
    -------
    tuple of int
        Bytes of the files before and after, external data included; of the model itself where it has no file.

    Raises
    ------
    OutputError
        If the file can't be written.
    """
    report, options, output = outcome.report, run.options, outcome.path
    before = size_in_bytes(run.source)  # while it is still there
    report.sha256["input"] = run.sha256()
    report.name_files(run.source.path, output)
    if output is not None:
        with run.stage("save"):
            if staging is not None and staging.model is outcome.changed:
                report.sha256["output"] = staging.commit()
            else:
                report.sha256["output"] = outcome.changed.save(
                    output, in_place=options.in_place, external_threshold=options.external_data_threshold
                )
    after = size_in_bytes(outcome.changed) if output is None else size_of_output(output)
    report.options, report.seconds = options.to_json(), run.seconds
    if options.reproducible:
        report.created, report.seconds = "", {}
    return before, after
