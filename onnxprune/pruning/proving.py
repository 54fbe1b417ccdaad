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
from onnxprune.runtime.binding import input_axes
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
        raise VerificationError(
            f"Verification says nothing ({proof.status}: {why}); {_advice(run, proof)}, or skip it with --no-verify."
        )
    return proof


def _advice(run: Run[Options], proof: Verification) -> str:
    """Return what would make a proof say something. Sizes are told by their names: those in use said nothing."""
    if proof.silent and set(proof.silent.values()) == {"empty"}:
        return (
            "on these inputs nothing gets as far as the outputs, as where no score passes a threshold of the model's "
            "own: give real samples with --inputs"
        )
    axes = input_axes(run.model.proto.graph)
    shapes = " ".join(
        f"--input-shape {name}:{','.join(map(str, sizes))}"
        for name, sizes in axes.items()
        if sizes and any(isinstance(size, str) for size in sizes)
    )
    sizes = f", or other sizes as in '{shapes}'" if shapes else ""
    return f"give inputs that exercise the model with --inputs{sizes}"
