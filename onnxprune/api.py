"""The functions of the front door; ``import onnxprune`` offers them."""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from onnxprune.errors import UsageError
from onnxprune.journey import output as places
from onnxprune.model import Model
from onnxprune.options.pruning import OptionFields, Options, Shapes
from onnxprune.options.target import family_of
from onnxprune.pruning import journey as pipeline
from onnxprune.pruning.decision import options_of
from onnxprune.pruning.explanation import Explanation
from onnxprune.pruning.explanation import explain as explain_analysis
from onnxprune.pruning.inspection import Inspection, inspect_analysis
from onnxprune.pruning.journey import Job, Progress, Result, Source
from onnxprune.pruning.plan import Plan
from onnxprune.report.record import Record

if TYPE_CHECKING:
    from onnxprune.pruning.family import Sensitivity

__all__ = ["apply", "explain", "family", "inspect", "plan", "prune", "run", "sensitivity", "verify"]

Path_ = str | os.PathLike[str]


def prune(
    source: Source,
    output: Path_ | None = None,
    options: Options | None = None,
    *,
    progress: Progress | None = None,
    **fields: Unpack[OptionFields],
) -> Result:
    """Cut channels out of a model, prove that nothing else changed, and write it if an output is given.

    Parameters
    ----------
    source : path, ModelProto or Model
    output : path, optional
        Without it the result stays in memory, as ``Result.model``.
    options : Options, optional
    progress : callable, optional
        Is told the name of each stage.
    **fields
        The fields of `Options`, such as ``ratio=0.5``; they replace those of ``options``.

    Returns
    -------
    Result
        With the pruned ``model`` (a ModelProto), the ``plan`` and the ``report``.

    Raises
    ------
    OnnxPruneError
        See `onnxprune.errors`; nothing is written then.
    """
    settings = _settings(options, fields)
    if len(family_of(settings.target)) > 1:
        raise UsageError(
            "--target with several values makes several models; onnxprune.api.family returns them."
        )
    if settings.ratio is not None and (settings.min_agreement, settings.max_drop) != (None, None):
        raise UsageError("--min-agreement and --max-drop find out how much can go; leave --ratio out.")
    job = Job.open(source, settings, progress)
    if settings.calib is not None:
        from onnxprune.pruning import on_samples as calibrated

        return calibrated.prune(job, _path(output))
    return pipeline.prune(job, _path(output))


def family(
    source: Source,
    output: Path_ | None = None,
    options: Options | None = None,
    *,
    progress: Progress | None = None,
    each: Callable[[str, Result], None] | None = None,
    **fields: Unpack[OptionFields],
) -> dict[str, Result]:
    """Make one model for each value of a target such as ``("macs=0.7,0.5,0.3",)``, from one calibration.

    Parameters
    ----------
    source, output, options, progress, **fields
        As for `prune`; each file's name gets its target, in the place of ``{target}`` or at its end.
    each : callable, optional
        Is given each target and its result while its files are written; what it writes goes with them.

    Returns
    -------
    dict
        Target -> result.
    """
    from onnxprune.pruning import family as families

    job = Job.open(source, _settings(options, fields), progress)
    return families.prune(job, _path(output), each or (lambda target, result: None))


def sensitivity(
    source: Source,
    options: Options | None = None,
    *,
    progress: Progress | None = None,
    **fields: Unpack[OptionFields],
) -> Sensitivity:
    """Return the loss curve of each group on samples (``calib``), the most sensitive first."""
    from onnxprune.pruning import family as families

    settings = _settings(options, {"ratio": 0.5, **fields})
    if settings.calib is None:
        raise UsageError("'sensitivity' needs samples; give them with --calib.")
    return families.sensitivity(Job.open(source, settings, progress))


def plan(
    source: Source,
    options: Options | None = None,
    *,
    progress: Progress | None = None,
    **fields: Unpack[OptionFields],
) -> Plan:
    """Decide what to cut; writes nothing.

    Parameters
    ----------
    source, options, progress, **fields
        As for `prune`.

    Returns
    -------
    Plan
        For `apply` and `verify`; ``Plan.save`` writes it as JSON.
    """
    settings = _settings(options, fields)
    if settings.calib is not None:
        raise UsageError(
            "'plan' decides by the weights alone; with samples, 'prune' decides, and writes its plan with --plan."
        )
    job = Job.open(source, settings, progress)
    found = pipeline.make_plan(job)[0]
    for note in job.notes:
        warnings.warn(note, stacklevel=2)
    return found


def apply(
    source: Source,
    plan: Plan | Path_,
    output: Path_ | None = None,
    *,
    progress: Progress | None = None,
    **fields: Unpack[OptionFields],
) -> Result:
    """Cut what a plan says, prove it, and write the result if an output is given.

    Parameters
    ----------
    source : path, ModelProto or Model
        The model that the plan was made for.
    plan : Plan or path
    output, progress
        As for `prune`.
    **fields
        Fields of `Options` that don't belong to the decision: ``verify``, ``inputs``, ``rtol``, ``in_place``,
        ...

    Raises
    ------
    PlanError
        If the plan is another model's, or asks for a cut that isn't consistent.
    """
    found = plan if isinstance(plan, Plan) else Plan.load(plan)
    settings = options_of(found, fields)
    return pipeline.apply(Job.open(source, settings, progress), found, _path(output))


def verify(
    original: Source,
    pruned: Source,
    plan: Plan | Path_,
    *,
    progress: Progress | None = None,
    **fields: Unpack[OptionFields],
) -> dict[str, Any]:
    """Prove that a pruned model equals the masked original.

    Parameters
    ----------
    original, pruned : path, ModelProto or Model
    plan : Plan or path
        Says what was cut.
    progress, **fields
        As for `apply`.

    Returns
    -------
    dict
        ``max_relative_error``, ``inputs`` (how many were tried), ``checks``.

    Raises
    ------
    VerificationError
        If the two differ.
    """
    found = plan if isinstance(plan, Plan) else Plan.load(plan)
    settings = options_of(found, fields)
    return pipeline.verify(Job.open(original, settings, progress), Model.load(pruned), found)


def inspect(
    source: Source,
    *,
    input_shapes: Shapes | None = None,
    allow_inexact: bool = False,
    progress: Progress | None = None,
) -> Inspection:
    """Say what can be cut in a model, what is frozen and why, and how small it could get.

    Parameters
    ----------
    source : path, ModelProto or Model
    input_shapes : mapping, optional
        Input -> shape, for dynamic axes.
    allow_inexact : bool
        Open axes that only an average runs over.
    progress : callable, optional
    """
    shapes: Mapping[str, tuple[int, ...]] = input_shapes or {}
    job = Job.open(
        source, Options(ratio=0, input_shapes=shapes, allow_inexact=allow_inexact, verify=False), progress
    )
    return inspect_analysis(job.analyse(), places.size_in_bytes(job.model))


def explain(
    source: Source,
    tensor: str,
    axis: int | None = None,
    *,
    input_shapes: Shapes | None = None,
    allow_inexact: bool = False,
    progress: Progress | None = None,
) -> Explanation:
    """Say what is cut together with an axis of a tensor, through which nodes, or what freezes it.

    Parameters
    ----------
    source : path, ModelProto or Model
    tensor : str
        A tensor of the main graph, ``tensor:axis``, or a node for its first output.
    axis : int, optional
        All axes otherwise.
    input_shapes, allow_inexact, progress
        As for `inspect`.

    Raises
    ------
    UsageError
        If there is no such tensor or axis.
    """
    shapes: Mapping[str, tuple[int, ...]] = input_shapes or {}
    job = Job.open(
        source, Options(ratio=0, input_shapes=shapes, allow_inexact=allow_inexact, verify=False), progress
    )
    return explain_analysis(job.analyse(), tensor, axis)


def run(
    source: Source,
    passes: str,
    output: Path_ | None = None,
    *,
    in_place: bool = False,
    external_data_threshold: int | None = None,
    input_shapes: Shapes | None = None,
    progress: Progress | None = None,
    each: Callable[[str, Record | None], None] | None = None,
) -> Model:
    """Run passes by name, one after the other, and write the result if an output is given.

    Parameters
    ----------
    source : path, ModelProto or Model
    passes : str
        Such as ``"resolve_shapes,prune{ratio=0.5},shrink"``.
    output : path, optional
    in_place : bool
        Allow the output to be the input.
    external_data_threshold : int, optional
        Move weights of at least so many bytes to a file beside the output.
    input_shapes : mapping, optional
        Input -> shape, for the passes that take some.
    progress : callable, optional
    each : callable, optional
        Is given each pass as text when it is done, and its report if it gave one, as `prune` does.

    Returns
    -------
    Model
        Its ``to_proto()`` is a complete ModelProto.
    """
    from onnxprune.journey import passes as passlist

    steps = passlist.parse(passes)
    source = Model.load(source)
    places.refuse_overwrite(source, _path(output), in_place, external_data_threshold)
    model = passlist.apply(source, steps, progress, input_shapes=input_shapes, each=each)
    if output is not None:
        model.save(output, in_place=in_place, external_threshold=external_data_threshold)
    return model


def _path(output: Path_ | None) -> Path | None:
    return None if output is None else Path(output)


def _settings(options: Options | None, fields: OptionFields) -> Options:
    try:
        return Options(**fields) if options is None else dataclasses.replace(options, **fields)
    except TypeError as error:
        raise UsageError(f"{str(error).partition(') ')[2] or error}; see onnxprune.Options.") from error
