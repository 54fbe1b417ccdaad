"""Give attention heads and linear bottlenecks another basis, without loss: ``rotate{calib=samples.npz}``.

Rules:

1. What is turned: the values of attention heads, residual sums of linear bottlenecks, and queries with their keys,
   where only movement, means and sums lie between the layers (`onnxprune.rotation.linear` has the rules).
2. The basis is the one in which the first axes hold most of what is read on the samples, so that later the last ones
   cost least to cut (`onnxprune.rotation.basis` has the equations).
3. No layer is added, and none gets a bias that had none: matrices are multiplied into the weights at both ends.
4. The result is compared with the model in onnxruntime, on samples and at other sizes of the dynamic axes; a group that
   differs by more than rounding is put back, and named.
5. Model-local functions are inlined if anything is turned; weights that nothing turned keep their bytes.
"""

from __future__ import annotations

from onnxprune.journey.passes import Passed
from onnxprune.journey.run import Run
from onnxprune.model import Model
from onnxprune.options.pruning import Options, Shapes
from onnxprune.rotation import journey

__all__ = ["run"]


def run(
    model: Model,
    *,
    calib: str,
    samples: int | None = None,
    calib_provider: str = "cpu",
    ignore: tuple[str, ...] = (),
    only: tuple[str, ...] = (),
    seed: int = 0,
    input_shapes: Shapes | None = None,
) -> Passed:
    """Return a model whose mixable groups stand in another basis, and the report.

    Parameters
    ----------
    model : Model
    calib : path, dict of arrays, or "synthetic"
        Samples, as for `onnxprune.prune`.
    samples, calib_provider, ignore, only, seed, input_shapes
        As in `onnxprune.Options`.

    Raises
    ------
    OnnxPruneError
        See `onnxprune.errors`.
    """
    options = Options(
        ratio=0,
        calib=calib,
        samples=samples,
        calib_provider=calib_provider,
        ignore=ignore,
        only=only,
        seed=seed,
        input_shapes=input_shapes or {},
    )
    outcome = journey.turn(Run.open(model, options))
    return Passed(outcome.changed, outcome.report)
