"""Shards of a calibration: bytes, processor time, memory of a worker and what travels, by the number of shards.

    python benchmarks/speed/shards.py MODEL.onnx SAMPLES.npz 1 2 4 8

Each shard is one process, one after the other, with one thread of numpy; times are of the processor. So many machines
take the time of the slowest shard and that of the merge.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

CODE = """
import resource, sys
from onnxprune.cli import main
code = main(sys.argv[1:])
used = resource.getrusage(resource.RUSAGE_SELF)
print(used.ru_utime + used.ru_stime, used.ru_maxrss * 1024, file=sys.stderr)
sys.exit(code)
"""


def run(*words: str) -> tuple[float, float]:
    """Return seconds of the processor, and the most bytes that were held, of a command."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", CODE, *words, "-q"],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    seconds, held = done.stderr.split()[-2:]
    return float(seconds), float(held)


def main() -> None:
    """Print the table."""
    model, samples, *numbers = sys.argv[1:]
    print(
        "| shards | bytes | slowest shard | all shards | merge | a worker holds | a shard's file | merged |"
    )
    print("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as place:
        folder, first = Path(place), ""
        for of in map(int, numbers):
            parts = [folder / f"{n}-{of}.npz" for n in range(1, of + 1)]
            told = [
                run("calibrate", model, "--calib", samples, "--shard", f"{n}/{of}", "-o", str(part))
                for n, part in enumerate(parts, 1)
            ]
            merged = folder / "merged.npz"
            merging, _ = run("merge", *map(str, parts), "-o", str(merged))
            digest = hashlib.sha256(merged.read_bytes()).hexdigest()
            first = first or digest
            seconds, held = zip(*told, strict=True)
            sizes = [part.stat().st_size for part in parts]
            print(
                f"| {of} | {'same' if digest == first else 'OTHER'} | {max(seconds):.1f} s | {sum(seconds):.1f} s | "
                f"{merging:.1f} s | {max(held) / 1e6:.0f} MB | {max(sizes) / 1e6:.1f} MB | "
                f"{merged.stat().st_size / 1e6:.1f} MB |",
                flush=True,
            )
            for part in parts:
                part.unlink()


if __name__ == "__main__":
    main()
