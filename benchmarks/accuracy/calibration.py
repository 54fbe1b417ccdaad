"""What calibration costs beside plain forward passes, in one run.

    python benchmarks/accuracy/calibration.py MODEL SAMPLES.npz [--samples 1024] [--target macs=0.5]

The floor is onnxruntime on the original model over the same samples, in the same batches and with the same number of
threads, several times; then the whole of ``prune --calib``. For each stage a line says its seconds and how many forward
passes over the samples that is; for all of it, the seconds in onnxruntime (sessions made and run), in the algebra
(products, inverses and solutions of matrices), and in the rest: reading windows, Python.
"""

from __future__ import annotations

import argparse
import cProfile
import os
import pstats
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


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("samples")
    parser.add_argument("--samples", dest="most", type=int)
    parser.add_argument("--target", default="macs=0.5")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as cache:
        os.environ["ONNXPRUNE_CACHE"] = cache  # curves are to be taken, not read
        options = Options(
            target=(args.target,), calib=args.samples, samples=args.most, align="none", verify=False
        )
        run = Run.open(args.model, options)
        samples = samples_for(run.model.proto.graph, options, analysis_of(run).inputs)
        passes = []
        for _ in range(3):
            start = time.perf_counter()
            outputs(run.model, samples)
            passes.append(time.perf_counter() - start)
        floor = min(passes)
        print(f"{samples.count} samples; one pass of the original: {floor:.2f} s")
        run = Run.open(args.model, options)
        profile = cProfile.Profile()
        start = time.perf_counter()
        profile.runcall(prune, run, None)
        whole = time.perf_counter() - start
    for name, seconds in [*run.seconds.items(), ("all", whole)]:
        if seconds > 0.05 * floor:
            print(f"{name:12} {seconds:8.2f} s {seconds / floor:8.2f} passes")
    runtime, algebra = shares(profile)
    rest = whole - runtime - algebra
    print(f"of all: onnxruntime {runtime:.2f} s, algebra {algebra:.2f} s, rest {rest:.2f} s")
    print(f"without the algebra: {(whole - algebra) / floor:.2f} passes")


if __name__ == "__main__":
    main()
