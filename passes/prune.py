"""Cut channels, exactly: ``prune{ratio=0.5}``.

The options are those of ``onnxprune prune``: a tuple such as ``ignore`` is written with bars,
``ignore=conv1|head``.
"""

from __future__ import annotations

from onnxprune import api
from onnxprune.model import Model

__all__ = ["run"]


def run(
    model: Model,
    *,
    ratio: float,
    criterion: str = "l2",
    align: int | str = "auto",
    scope: str = "local",
    ignore: tuple[str, ...] = (),
    only: tuple[str, ...] = (),
    allow_inexact: bool = False,
    seed: int = 0,
    verify: bool = True,
) -> Model:
    """Return a pruned model.

    Parameters
    ----------
    model : Model
    ratio : float
        Share of the units of every group to remove, ``0 <= ratio < 1``.
    criterion, align, scope, ignore, only, allow_inexact, seed, verify
        See `onnxprune.Options`.

    Raises
    ------
    OnnxPruneError
        As `onnxprune.prune`.
    """
    result = api.prune(
        model,
        ratio=ratio,
        criterion=criterion,
        align=align,
        scope=scope,
        ignore=ignore,
        only=only,
        allow_inexact=allow_inexact,
        seed=seed,
        verify=verify,
    )
    return result.pruned
