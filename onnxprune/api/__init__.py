"""The functions of the front door; ``import onnxprune`` offers those that make one model."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from onnxprune.api.given import PathLike, Told, front
from onnxprune.api.several import calibrate as calibrate
from onnxprune.api.several import compress as compress
from onnxprune.api.several import decompress as decompress
from onnxprune.api.several import family as family
from onnxprune.api.several import fleet as fleet
from onnxprune.api.several import merge as merge
from onnxprune.api.several import profile as profile
from onnxprune.api.several import prune_folder as prune_folder
from onnxprune.api.several import sensitivity as sensitivity
from onnxprune.api.several import tune as tune
from onnxprune.errors import UsageError
from onnxprune.journey.output import refuse_overwrite, size_in_bytes
from onnxprune.journey.run import Progress, Run, Source
from onnxprune.journey.trees import check_config, with_folder
from onnxprune.model import Model
from onnxprune.options.declare import settings_of
from onnxprune.options.pruning import OptionFields, Options, Shapes
from onnxprune.options.sparsity import SparseFields, SparseOptions
from onnxprune.options.target import family_of
from onnxprune.pruning import journey
from onnxprune.pruning.journey import Result
from onnxprune.pruning.plan import Plan
from onnxprune.pruning.planned import planned

if TYPE_CHECKING:
    from onnxprune.journey.recipe import PassFields, PassRecipe
    from onnxprune.pruning.explanation import Explanation
    from onnxprune.pruning.inspection import Inspection
    from onnxprune.report.record import Record
    from onnxprune.sparsity.inspection import SparsityInspection
    from onnxprune.sparsity.journey import SparseResult

__all__ = [
    "apply",
    "calibrate",
    "compress",
    "decompress",
    "explain",
    "family",
    "fleet",
    "inspect",
    "inspect_sparsity",
    "merge",
    "plan",
    "profile",
    "prune",
    "prune_folder",
    "run",
    "sensitivity",
    "sparsify",
    "tune",
    "verify",
]


@front
def prune(
    source: Source,
    output: PathLike | None = None,
    options: Options | None = None,
    *,
    progress: Told = None,
    **fields: Unpack[OptionFields],
) -> Result:
    """Cut channels out of a model, prove that nothing else changed, and write it if an output is given.

    Parameters
    ----------
    source : path, ModelProto or Model
    output : path, optional
        Without it the result stays in memory, as ``Result.model``. Its folder is made. Where the source is a folder
        with one model in it, this may be one, too: all that is beside the model is copied.
    options : Options, optional
    progress : callable or False, optional
        Is told the name of each stage, and of steps in it. Without it long work draws a line in a terminal and in a
        notebook, and nothing elsewhere; False, and ``ONNXPRUNE_PROGRESS=0`` in the environment, leave that out.
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
    settings = settings_of(Options, options, fields)
    if len(family_of(settings.target)) > 1:
        raise UsageError(
            "--target with several values makes several models; onnxprune.api.family returns them."
        )
    if settings.ratio is not None and (settings.min_agreement, settings.max_drop) != (None, None):
        raise UsageError("--min-agreement and --max-drop find out how much can go; leave --ratio out.")
    with with_folder(source, _path(output)) as place:
        result = journey.prune(journey.open_run(source, settings, progress or None), place)
        check_config(source, _path(output), (change["name"] for change in result.report.interface or ()))
        return result


@front
def plan(
    source: Source,
    options: Options | None = None,
    *,
    progress: Told = None,
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
    settings = settings_of(Options, options, fields)
    if settings.fitted:
        raise UsageError(
            "'plan' decides by the weights alone; with samples, 'prune' decides, and writes its plan with --plan."
        )
    run_ = journey.open_run(source, settings, progress or None)
    made = journey.make_plan(run_)
    for note in run_.notes:
        warnings.warn(note, stacklevel=3)
    return made


@front
def apply(
    source: Source,
    plan: Plan | PathLike,
    output: PathLike | None = None,
    *,
    progress: Told = None,
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
    decision = plan if isinstance(plan, Plan) else Plan.load(plan)
    with planned(decision, fields) as settings:
        return journey.apply(journey.open_run(source, settings, progress or None), decision, _path(output))


@front
def verify(
    original: Source,
    pruned: Source,
    plan: Plan | PathLike,
    *,
    progress: Told = None,
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
    decision = plan if isinstance(plan, Plan) else Plan.load(plan)
    with planned(decision, fields) as settings:
        run_ = journey.open_run(original, settings, progress or None)
        return journey.verify(run_, Model.load(pruned), decision)


@front
def inspect(
    source: Source,
    *,
    input_shapes: Shapes | None = None,
    allow_inexact: bool = False,
    center_norms: bool = True,
    open_io: tuple[str, ...] = (),
    progress: Told = None,
) -> Inspection:
    """Say what can be cut in a model, what is frozen and why, and how small it could get.

    Parameters
    ----------
    source : path, ModelProto or Model
    input_shapes, allow_inexact, center_norms, open_io
        The fields of `Options`.
    progress : callable, optional
    """
    from onnxprune.pruning import inspection

    run_ = _looking(
        source,
        input_shapes,
        progress or None,
        allow_inexact=allow_inexact,
        center_norms=center_norms,
        open_io=open_io,
    )
    return inspection.inspect_analysis(journey.analysis_of(run_), size_in_bytes(run_.model))


@front
def explain(
    source: Source,
    tensor: str,
    axis: int | None = None,
    *,
    input_shapes: Shapes | None = None,
    allow_inexact: bool = False,
    center_norms: bool = True,
    open_io: tuple[str, ...] = (),
    progress: Told = None,
) -> Explanation:
    """Say what is cut together with an axis of a tensor, through which nodes, or what freezes it.

    Parameters
    ----------
    source : path, ModelProto or Model
    tensor : str
        A tensor of the main graph, ``tensor:axis``, or a node for its first output.
    axis : int, optional
        All axes otherwise.
    input_shapes, allow_inexact, center_norms, open_io, progress
        As for `inspect`.

    Raises
    ------
    UsageError
        If there is no such tensor or axis.
    """
    from onnxprune.pruning import explanation

    run_ = _looking(
        source,
        input_shapes,
        progress or None,
        allow_inexact=allow_inexact,
        center_norms=center_norms,
        open_io=open_io,
    )
    return explanation.explain(journey.analysis_of(run_), tensor, axis)


@front
def run(
    source: Source,
    passes: PathLike | PassRecipe,
    output: PathLike | None = None,
    *,
    in_place: bool = False,
    external_data_threshold: int | None = None,
    progress: Told = None,
    each: Callable[[str, Record | None], None] | None = None,
    **beside: Unpack[PassFields],
) -> Model:
    """Run passes by name, one after the other, and write the result if an output is given.

    Parameters
    ----------
    source : path, ModelProto or Model
    passes : str or Path
        Such as ``"resolve_shapes,prune{ratio=0.5},shrink"``, or the `Path` of a recipe (`onnxprune.journey.recipe`).
    output : path, optional
    in_place : bool
        Allow the output to be the input.
    external_data_threshold : int, optional
        Move weights of at least so many bytes to a file beside the output.
    progress : callable, optional
    each : callable, optional
        Is given each pass as text when it is done, and its report if it gave one, as `prune` does.
    **beside
        For the passes that take some: ``input_shapes``, and ``calib``, samples in any form that `prune` takes.

    Returns
    -------
    Model
        Its ``to_proto()`` is a complete ModelProto.
    """
    from onnxprune.journey import passes as passlist
    from onnxprune.journey.recipe import steps_of

    steps, source = steps_of(passes, **beside), Model.load(source)
    refuse_overwrite(source, _path(output), in_place, external_data_threshold)
    model = passlist.apply(source, steps, progress or None, each=each, **beside)
    if output is not None:
        model.save(output, in_place=in_place, external_threshold=external_data_threshold)
    return model


@front
def sparsify(
    source: Source,
    output: PathLike | None = None,
    options: SparseOptions | None = None,
    *,
    pattern: str | None = None,
    progress: Told = None,
    **fields: Unpack[SparseFields],
) -> SparseResult:
    """Put zeros into the weights of a model, in a pattern, and write it if an output is given.

    Parameters
    ----------
    source : path, ModelProto or Model
    output : path, optional
        Without it the result stays in memory, as ``SparseResult.model``.
    options : SparseOptions, optional
    pattern : str, optional
        Such as ``"2:4"``; replaces that of ``options``.
    progress : callable or False, optional
        Is told the name of each stage, and of steps in it. Without it long work draws a line in a terminal and in a
        notebook, and nothing elsewhere; False, and ``ONNXPRUNE_PROGRESS=0`` in the environment, leave that out.
    **fields
        The other fields of `SparseOptions`, such as ``sparsity=0.7``; they replace those of ``options``.

    Returns
    -------
    SparseResult
        With the ``model`` (a ModelProto) and the ``report``.

    Raises
    ------
    OnnxPruneError
        See `onnxprune.errors`; nothing is written then.
    """
    from onnxprune.sparsity import journey as zeros

    given = {**({} if pattern is None else {"pattern": pattern}), **fields}
    with with_folder(source, _path(output)) as place:
        run = Run.open(source, settings_of(SparseOptions, options, given), progress or None)
        return zeros.sparsify(run, place)


@front
def inspect_sparsity(source: Source) -> SparsityInspection:
    """Say which weights have zeros, in which patterns along which axis, and what runtimes make of them.

    Parameters
    ----------
    source : path, ModelProto or Model
    """
    from onnxprune.sparsity import inspection

    return inspection.inspect_sparsity(Model.load(source))


def _path(output: PathLike | None) -> Path | None:
    return None if output is None else Path(output)


def _looking(source: Source, shapes: Shapes | None, progress: Progress | None, **fields: Any) -> Run[Options]:
    """Open a model that is only looked at."""
    return journey.open_run(
        source,
        Options(ratio=0, input_shapes={} if shapes is None else shapes, verify=False, **fields),
        progress,
    )
