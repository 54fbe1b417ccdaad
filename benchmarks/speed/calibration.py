"""What calibration costs beside plain forward passes, in one run.

    python benchmarks/speed/calibration.py MODEL SAMPLES.npz [--samples 1024] [--target macs=0.5] [--recover lstsq]

The floor is one pass of the samples through the original: onnxruntime, the same batches, the least of three. Then the
whole of ``prune --calib``, from its start to the pruned model. Both in seconds of the processor in user mode, which a
busy machine doesn't change much; their ratio is the number of passes. For each stage a line says its share by the
clock; ``--profile`` adds the functions that take most, and the seconds in onnxruntime and in the algebra (products,
inverses and solutions of matrices). Set OMP_NUM_THREADS=1: threads that wait count as work.
"""

from __future__ import annotations

import argparse
import cProfile
import os
import pstats
import resource
import tempfile
import time
from pathlib import Path

from onnxprune import Options
from onnxprune.calibration.agreement import outputs
from onnxprune.calibration.samples import samples_for
from onnxprune.journey.run import Run
from onnxprune.pruning.journey import analysis_of, prune

RUNTIME = ("onnxruntime_pybind11_state", "InferenceSession", "onnxruntime_inference_collection")
#: Where little is done but products, inverses and solutions of matrices; the operator ``@`` counts for its caller.
ALGEBRA = (
    "reconstruction/least_squares.py",
    "reconstruction/moments.py",
    "numpy/linalg",
    "einsum",
    "matmul",
)


def shares(profile: cProfile.Profile) -> tuple[float, float]:
    """Return seconds in onnxruntime and in the algebra."""
    runtime = algebra = 0.0
    for (file, _, name), (_, _, own, _, _) in pstats.Stats(profile).stats.items():  # type: ignore[attr-defined]
        place = f"{Path(file).as_posix()} {name}"
        if any(part in place for part in RUNTIME):
            runtime += own
        elif any(part in place for part in ALGEBRA):
            algebra += own
    return runtime, algebra


def user() -> float:
    """Return the seconds that the processor has worked for this process in user mode."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_utime


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("samples")
    parser.add_argument("--samples", dest="most", type=int)
    parser.add_argument("--target", default="macs=0.5")
    parser.add_argument("--recover", default="blocks")
    parser.add_argument("--profile", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as cache:
        os.environ["ONNXPRUNE_CACHE"] = cache  # curves are to be taken, not read
        options = Options(
            target=(args.target,),
            calib=args.samples,
            samples=args.most,
            recover=args.recover,
            align="none",
            verify=False,
        )
        run = Run.open(args.model, options)
        samples = samples_for(run.model.proto.graph, options, analysis_of(run).inputs)
        passes = []
        for _ in range(3):
            start = user()
            outputs(run.model, samples)
            passes.append(user() - start)
        floor = min(passes)
        print(f"{samples.count} samples; one pass of the original: {floor:.2f} s")
        run = Run.open(args.model, options)
        profile = cProfile.Profile(time.process_time)
        start = user()
        if args.profile:
            profile.runcall(prune, run, None)
        else:
            prune(run, None)
        whole = user() - start
    clock = sum(run.seconds.values())
    for name, seconds in run.seconds.items():
        if seconds > 0.01 * clock:
            print(f"{name:12} {seconds / clock:6.1%} by the clock")
    print(f"all of it: {whole:.1f} s, {whole / floor:.1f} passes")
    if args.profile:
        runtime, algebra = shares(profile)
        print(f"of that onnxruntime {runtime:.2f} s, algebra {algebra:.2f} s")
        pstats.Stats(profile).sort_stats("tottime").print_stats(25)


if __name__ == "__main__":
    main()
