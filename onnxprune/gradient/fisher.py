"""The output side of the curvature: second moments of the gradients of a label-free loss, streamed over samples.

A layer's loss has the curvature ``A (x) G`` in K-FAC's approximation: ``A`` the second moment of the layer's input, and
``G`` that of the gradient of its output, which is what is measured here.

References
----------
Martens, Grosse, arXiv 1503.05671, equation 1; for convolutions Grosse, Martens, arXiv 1602.01407, equation 35.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxprune.calibration.samples import Samples
from onnxprune.errors import CalibrationError
from onnxprune.gradient.build import Reduce, Wanted, differentiable_output, gradient_model
from onnxprune.gradient.seeds import Seeds
from onnxprune.gradient.tape import NoGradient, Tape
from onnxprune.graph.analysis import Analysis
from onnxprune.runtime.session import RunError, Session

__all__ = ["Factor", "fisher", "reduced"]

Matrix = NDArray[np.float64]
#: Samples whose outputs are looked at for what the output is.
FIRST = 256


@dataclass
class Factor:
    """Second moment of the gradients of one tensor.

    Attributes
    ----------
    rows : int
        Positions over all samples and draws.
    samples : int
        Samples times draws.
    gram : float64[channels, channels]
        Sum of ``g g^T`` over them, ``g`` the gradient of one sample's loss at one position; not centred.
    """

    rows: int
    samples: int
    gram: Matrix

    @property
    def second(self) -> Matrix:
        """float64[channels, channels]: the mean of ``g g^T`` over positions and samples."""
        return self.gram / max(self.rows, 1)

    @property
    def diagonal(self) -> Matrix:
        """float64[channels]: the mean of ``g^2`` over positions and samples."""
        return np.asarray(self.gram.diagonal() / max(self.rows, 1))


def fisher(
    analysis: Analysis,
    samples: Samples,
    wanted: Mapping[str, int],
    *,
    draws: int = 1,
    seed: int = 0,
    output: str | None = None,
    say: Callable[[str], None] | None = None,
) -> dict[str, Factor]:
    """Measure the second moments of gradients over samples.

    Parameters
    ----------
    analysis : Analysis
    samples : Samples
    wanted : mapping
        Tensor -> its channel axis.
    draws : int
        Of the loss, for each batch.
    seed : int
    output : str, optional
        The first floating-point output by default.
    say : callable, optional
        Told of progress.

    Returns
    -------
    dict
        Tensor -> `Factor`; zero for a tensor that doesn't reach the output. The same seed and samples give the same
        bits.

    Raises
    ------
    CalibrationError
        If an op on the way has no gradient, or the model fails on the samples.
    """
    axes: dict[Wanted, int] = dict(wanted.items())

    def reduce(t: Tape, name: Wanted, grad: str) -> str:
        assert isinstance(name, str)
        rank = len(t.dims(name))
        axis = axes[name] % rank
        if axis == rank - 1:
            flat = t.reshape(grad, [-1, *t.static(name, [axis])])
            return t.op("Gemm", flat, flat, *t.no_bias(), transA=1)
        first = t.transpose(grad, [axis, *(i for i in range(rank) if i != axis)])
        flat = t.reshape(first, [*t.static(name, [axis]), -1])
        return t.op("Gemm", flat, flat, *t.no_bias(), transB=1)

    found: dict[str, Factor] = {}
    for name, axis in wanted.items():
        shape = analysis.tracer.types.get(name, (0, None))[1]
        if shape is None:
            raise CalibrationError(f"The shape of {name!r} is unknown, so its gradients can't be summed.")
        found[name] = Factor(0, 0, np.zeros((shape[axis], shape[axis])))
    for values, sizes, count in reduced(
        analysis, samples, list(axes), reduce, draws=draws, seed=seed, output=output, say=say
    ):
        for key, gram in values.items():
            factor = found[str(key)]
            factor.gram += gram
            factor.rows += sizes[key] // len(gram)
            factor.samples += count
    return found


def reduced(
    analysis: Analysis, samples: Samples, wanted: Sequence[Wanted], reduce: Reduce, *,
    draws: int = 1, seed: int = 0, output: str | None = None, say: Callable[[str], None] | None = None,
) -> Iterator[tuple[dict[Wanted, Matrix], dict[Wanted, int], int]]:  # fmt: skip
    """Yield what gradients are reduced to in the graph, batch by batch.

    Parameters
    ----------
    reduce : callable
        See `gradient_model`.

    Yields
    ------
    values : dict
        Tensor -> what its gradient was reduced to.
    sizes : dict
        Tensor -> elements that it has in this batch.
    count : int
        Samples in this batch.
    """
    output = output or differentiable_output(analysis)

    def both(t: Tape, name: Wanted, grad: str) -> str:
        sizes.append((name, t.op("Size", grad)))
        return reduce(t, name, grad)

    sizes: list[tuple[Wanted, str]] = []
    try:
        found = gradient_model(analysis, wanted, output, both, extra=lambda: [s for _, s in sizes])
        forward = samples.open(analysis.model, [output])
        backward = samples.open(found.model)
        seeds = Seeds.of(_first(forward, samples, output), seed)
        for n, (batch, count) in enumerate(zip(samples.batches, samples.counts, strict=True)):
            if say is not None:
                say(f"gradients {n + 1}/{len(samples.batches)}")
            y = np.asarray(forward.run(batch, [output])[output])
            for _ in range(draws):
                got = backward.run({**batch, found.seed: seeds.draw(y)})
                values = {w: np.asarray(got[o], np.float64) for w, o in found.gradients.items()}
                if not all(np.isfinite(v).all() for v in values.values()):
                    raise CalibrationError(
                        "A gradient is NaN or infinite on the samples; look for broken samples, or use a "
                        "criterion that needs no gradients."
                    )
                yield values, {name: int(got[s]) for name, s in sizes}, count
    except (RunError, NoGradient) as error:
        raise CalibrationError(f"The gradients fail on the samples: {error}.") from error


def _first(session: Session, samples: Samples, output: str) -> list[NDArray[np.float64]]:
    outputs, seen = [], 0
    for batch, count in zip(samples.batches, samples.counts, strict=True):
        outputs.append(np.asarray(session.run(batch, [output])[output]))
        seen += count
        if seen >= FIRST:
            break
    return outputs
