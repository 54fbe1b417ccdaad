"""Functions of the front door that make or weigh many models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

from onnxprune.api.given import PathLike, Told, front, is_path
from onnxprune.errors import UsageError
from onnxprune.files.foreign import path_of
from onnxprune.graph.select import pick
from onnxprune.journey.run import Run, Source
from onnxprune.journey.trees import check_config, several_in, with_models
from onnxprune.options.declare import settings_of
from onnxprune.options.pruning import OptionFields, Options
from onnxprune.pruning import journey
from onnxprune.pruning.journey import Result

if TYPE_CHECKING:
    from onnxprune.compression.journey import CompressResult
    from onnxprune.compression.report import Unpacked
    from onnxprune.fleet.table import FleetTable
    from onnxprune.options.calibration import CalibrateFields, CalibrateOptions
    from onnxprune.options.compression import CompressFields, CompressOptions
    from onnxprune.options.fleet import FleetFields, FleetOptions
    from onnxprune.options.tuning import TuneFields, TuneOptions
    from onnxprune.pruning.family import Sensitivity
    from onnxprune.pruning.layer_times import LayerTimes
    from onnxprune.pruning.sharded import MomentFacts
    from onnxprune.tuning.report import TuneReport

__all__ = [
    "calibrate",
    "compress",
    "decompress",
    "family",
    "fleet",
    "merge",
    "profile",
    "prune_folder",
    "sensitivity",
    "tune",
]


@front
def family(
    source: Source,
    output: PathLike | None = None,
    options: Options | None = None,
    *,
    progress: Told = None,
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

    run_ = journey.open_run(source, settings_of(Options, options, fields), progress or None)
    return families.prune(
        run_, None if output is None else Path(output), each or (lambda target, result: None)
    )


@front
def prune_folder(
    source: PathLike,
    output: PathLike,
    options: Options | None = None,
    *,
    progress: Told = None,
    each: Callable[[str, Result], None] | None = None,
    **fields: Unpack[OptionFields],
) -> dict[str, Result]:
    """Prune all models of a folder, such as an encoder and its decoders, so that they still fit each other.

    Parameters
    ----------
    source, output : path
        A folder with models, and one for the results; what lies beside the models is copied.
    options, progress, **fields
        As for `prune`. Samples (``calib``) are given by model, ``{"encoder_model": "enc.npz"}``, or are of one
        source, of which each model gets its own inputs (`onnxprune.calibration.dealt`); a model without any is cut by
        its weights alone.
    each : callable, optional
        Is given each model's name in the folder and its result while its files are written; what it writes goes with
        them.

    Returns
    -------
    dict
        Name -> result.

    Raises
    ------
    OnnxPruneError
        See `onnxprune.errors`; nothing is written then. See `onnxprune.pruning.folder` on what belongs together.
    """
    from onnxprune.pruning.folder import prune_models

    root, place = Path(source), Path(output)
    settings = settings_of(Options, options, fields)
    models = several_in(root, place) or {path_of(root).relative_to(root).as_posix(): path_of(root)}
    with with_models(root, models.values(), place):
        results = prune_models(models, {n: place / n for n in models}, settings, progress or None)
        opened = [change for result in results.values() for change in result.report.interface or ()]
        check_config(root, place, (change["name"] for change in opened))
        for name, result in results.items():
            if each is not None:
                each(name, result)
    return results


@front
def sensitivity(
    source: Source,
    options: Options | None = None,
    *,
    progress: Told = None,
    **fields: Unpack[OptionFields],
) -> Sensitivity:
    """Return the loss curve of each group on samples (``calib``), the most sensitive first."""
    from onnxprune.pruning import family as families

    settings = settings_of(Options, options, {"ratio": 0.5, **fields})
    if not settings.fitted:
        raise UsageError(
            "'sensitivity' needs samples; give them with --calib, or their moments with --moments."
        )
    return families.sensitivity(journey.open_run(source, settings, progress or None))


@front
def profile(source: Source, *, progress: Told = None, **fields: Unpack[OptionFields]) -> LayerTimes:
    """Measure where the time of a run goes, layer by layer and group by group, and what no cut can reach.

    Parameters
    ----------
    source : path, ModelProto or Model
    progress : callable, optional
    **fields
        The fields of `Options` that say what is looked at and how it is timed: ``input_shapes``, ``allow_inexact``,
        ``center_norms``, ``provider``, ``batch``, ``threads``.
    """
    from onnxprune.latency.clock import bench_of
    from onnxprune.pruning.layer_times import layer_times

    run = journey.open_run(
        source, settings_of(Options, None, {"ratio": 0.5, "check_speed": True, **fields}), progress or None
    )
    options, analysis = run.options, journey.analysis_of(run)
    bench = bench_of(run.model, analysis, options.provider, options.batch, options.threads, options.seed)
    with run.stage("time"):
        return layer_times(analysis, pick(analysis.grouping, (), ()), bench)


@front
def calibrate(
    source: Source,
    output: PathLike,
    options: CalibrateOptions | None = None,
    *,
    progress: Told = None,
    **fields: Unpack[CalibrateFields],
) -> MomentFacts:
    """Take the moments of a model's layers over samples, or over a share of them, and write them.

    Parameters
    ----------
    source, options, progress
        As for `prune`.
    output : path
        An ``.npz``: for ``moments`` of `prune`, or, where it is of a share (``shard="2/8"``, ``layers="1/4"``), for
        `merge`.
    **fields
        The fields of `CalibrateOptions`.

    Returns
    -------
    MomentFacts
        What the file holds.
    """
    from onnxprune.options.calibration import CalibrateOptions
    from onnxprune.pruning import sharded

    settings = settings_of(CalibrateOptions, options, fields)
    return sharded.calibrate(
        journey.open_run(source, settings.as_pruning(), progress or None),
        Path(output),
        settings.shard,
        settings.layers,
    )


@front
def merge(parts: Sequence[PathLike], output: PathLike, *, progress: Told = None) -> MomentFacts:
    """Put shards of moments together, which then have the bytes of one run over all samples.

    Parameters
    ----------
    parts : sequence of path
        What `calibrate` wrote for each shard, in any order.
    output : path
    progress : callable, optional
        Told of each layer.

    Raises
    ------
    CalibrationError
        If a shard is missing or there twice, or they are of different models, samples or options; nothing is written.
    """
    from onnxprune.pruning import sharded

    return sharded.merge([Path(part) for part in parts], Path(output), progress or None)


@front
def tune(
    source: PathLike,
    output: PathLike,
    options: TuneOptions | None = None,
    *,
    progress: Told = None,
    **fields: Unpack[TuneFields],
) -> TuneReport:
    """Find the fastest or smallest model that loses no more of a metric than it may, and write it.

    Parameters are as for `prune`; ``**fields`` are those of `TuneOptions`.

    Raises
    ------
    NotFaster
        If nothing is better than the input; what was tried is kept, and a later search goes on from there.
    """
    from onnxprune.options.tuning import TuneOptions
    from onnxprune.tuning.journey import find

    return find(Run.open(source, settings_of(TuneOptions, options, fields), progress or None), Path(output))


@front
def compress(
    source: Source,
    output: PathLike | None = None,
    options: CompressOptions | None = None,
    *,
    progress: Told = None,
    **fields: Unpack[CompressFields],
) -> CompressResult:
    """Make a model's file small: weights on coarse grids within a budget of bytes, entropy coded where that is wanted.

    Parameters
    ----------
    source : path, ModelProto or Model
    output : path, optional
        Where its name ends in ``.zst``, or with ``to="zst"``, a packed file is written. Without it the result stays in
        memory, as ``CompressResult.model``.
    options : CompressOptions, optional
    progress : callable, optional
        Is told the name of each stage.
    **fields
        The fields of `CompressOptions`, such as ``target="bytes=0.1"``; they replace those of ``options``.

    Returns
    -------
    CompressResult
        With the ``model`` (a ModelProto) and the ``report``.

    Raises
    ------
    OnnxPruneError
        See `onnxprune.errors`; nothing is written then.
    """
    from onnxprune.compression import journey as compression
    from onnxprune.options.compression import CompressOptions

    settings = settings_of(CompressOptions, options, fields)
    return compression.compress(
        Run.open(source, settings, progress or None), None if output is None else Path(output)
    )


@front
def decompress(source: PathLike, output: PathLike, *, progress: Told = None) -> Unpacked:
    """Unpack what `compress` has packed, and check that it is what was packed, to the byte.

    Parameters
    ----------
    source, output : path
    progress : callable, optional

    Returns
    -------
    Unpacked
        Names, sizes and hashes of the files.

    Raises
    ------
    ModelError
        If the file is damaged, not whole, or none of ours, or holds no model; nothing is written then.
    """
    from onnxprune.compression.coder import unpack
    from onnxprune.compression.report import Unpacked
    from onnxprune.files.opening import is_model

    if progress:
        progress("unpack")
    members = unpack(Path(source), Path(output), is_model).members
    names = [Path(output).name, *(member.name for member in members[1:])]
    return Unpacked(
        [{"name": n, "bytes": m.nbytes, "sha256": m.sha256} for n, m in zip(names, members, strict=True)]
    )


@front
def fleet(
    source: PathLike,
    output: PathLike,
    options: FleetOptions | None = None,
    *,
    executor: Executor | None = None,
    progress: Told = None,
    **fields: Unpack[FleetFields],
) -> FleetTable:
    """Make many models, and a table of what came of each; what is done already stays.

    Parameters
    ----------
    source : path
        A folder of models, or a spec, see `onnxprune.fleet.spec`.
    output : path
        Folder of the results, which is made.
    options : FleetOptions, optional
    executor : concurrent.futures.Executor, optional
        Does the jobs instead of ``jobs`` processes: that of joblib, dask (``client.get_executor()``) or ray, say. Its
        workers must see the same files; what is sent are paths and options. It stays open.
    progress : callable, optional
    **fields
        The fields of `FleetOptions`; they replace those of ``options``.

    Returns
    -------
    FleetTable
        Whose ``failed`` are the rows of jobs that could not be done.

    Raises
    ------
    OnnxPruneError
        If the spec isn't one, or the folder can't be had; jobs that fail raise nothing.
    """
    from onnxprune.fleet import journey as fleets
    from onnxprune.options.fleet import FleetOptions

    if not is_path(source):
        raise UsageError(f"'fleet' takes the path of a folder or of a spec; got {type(source).__name__}.")
    settings = settings_of(FleetOptions, options, fields)
    return fleets.sail(Path(source), Path(output), settings, executor, progress or None)
