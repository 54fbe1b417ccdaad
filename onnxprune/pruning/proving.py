"""Law 1 in a journey: a proof that fails, or that says nothing, ends it with a sentence."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from onnxprune.cut.put_back import Failed
from onnxprune.errors import VerificationError
from onnxprune.graph.analysis import Analysis
from onnxprune.graph.kept import Kept, Masks
from onnxprune.journey.run import Run
from onnxprune.model import Model
from onnxprune.options.pruning import Options
from onnxprune.pruning.source import feeds_of
from onnxprune.runtime.binding import option
from onnxprune.runtime.session import Feeds, Unloadable

if TYPE_CHECKING:
    from onnxprune.proof.verify import Verification

__all__ = ["proved"]


def proved(
    run: Run[Options],
    analysis: Analysis,
    dead: Masks,
    pruned: Model | Path,
    masked: Model,
    more: Iterable[Feeds] = (),
    gone: Iterable[str] = (),
) -> Verification:
    """Verify on the run's inputs, on ``more`` and on random ones; ``gone``: inputs and outputs that went.

    Raises
    ------
    Failed
        If the two models differ.
    VerificationError
        If nothing could be said.
    """
    from onnxprune.proof.verify import verify

    given = [*feeds_of(run), *more]
    options, kept = run.options, Kept(analysis.coupling, dead, frozenset(gone))
    proof = verify(
        analysis, dead, pruned, masked=masked, inputs=given, seed=options.seed, rtol=options.rtol, kept=kept
    )
    if proof.status == "failed":
        raise Failed("; ".join(proof.failures))
    if proof.unloadable:
        raise VerificationError(
            f"Nothing could be verified on this machine: {proof.unloadable}; {Unloadable.advice}. With "
            "--no-verify the cut is made without this proof: compare the result where the model runs."
        )
    if not proof.passed:
        why = "; ".join(proof.notes) or "the outputs say nothing"
        shapes = option(analysis.inputs, run.model.proto.graph)
        sizes = f"sizes that it runs at with --input-shape, as in '{shapes}', " if shapes else ""
        raise VerificationError(
            f"Verification says nothing ({proof.status}: {why}); give inputs that exercise the model with "
            f"--inputs, {sizes}or skip it with --no-verify."
        )
    return proof
