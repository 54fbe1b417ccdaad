"""What the samples share: the held-out digits, true accuracy, the command line, a temporary folder."""

from __future__ import annotations

import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

HERE = Path(__file__).resolve().parent
CNN = HERE / "01_digits_cnn" / "digits_cnn.onnx"
TRANSFORMER = HERE / "02_digits_transformer" / "digits_transformer.onnx"


def held_out() -> tuple[np.ndarray, np.ndarray]:
    """Return the 450 images that no training has seen, float32 ``(450, 1, 8, 8)``, and their labels."""
    with np.load(HERE / "data" / "digits.npz") as data:
        return data["test_x"].astype(np.float32)[:, None] / 16, data["test_y"]


def accuracy(model: Path | onnx.ModelProto) -> float:
    """Return the share of held-out digits that a model gets right in onnxruntime."""
    images, labels = held_out()
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    session = ort.InferenceSession(source, providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {session.get_inputs()[0].name: images})
    return float((logits.argmax(1) == labels).mean())


def onnxprune(*args: str | Path, show: bool = True) -> str:
    """Run ``onnxprune`` as on a command line, show what it prints, and return it."""
    print("$", shlex.join(["onnxprune", *map(shown, args)]), flush=True)
    done = subprocess.run(
        [sys.executable, "-P", "-m", "onnxprune", *map(str, args)],
        stdout=subprocess.PIPE,
        encoding="utf-8",
        check=False,
    )
    if show:
        print(done.stdout, flush=True)
    if done.returncode:
        sys.exit(done.returncode)
    return done.stdout


def shown(arg: str | Path) -> str:
    """Return an argument without the folders above it, for people."""
    return arg.name if isinstance(arg, Path) else arg


@contextmanager
def folder() -> Iterator[Path]:
    """Give a folder for outputs: the one named on the command line, or a temporary one."""
    if len(sys.argv) > 1:
        chosen = Path(sys.argv[1])
        chosen.mkdir(parents=True, exist_ok=True)
        yield chosen
        return
    with tempfile.TemporaryDirectory() as made:
        yield Path(made)


def table(report: dict[str, Any], before: Path, after: Path) -> None:
    """Print what the cut changed, true accuracy included."""
    print(f"{'':12}{'before':>12}{'after':>12}{'left':>9}")
    for name in ("parameters", "macs", "bytes"):
        old, new = report[name]["before"], report[name]["after"]
        print(f"{name:12}{old:>12,}{new:>12,}{new / old:>9.1%}")
    print(f"{'accuracy':12}{accuracy(before):>12.2%}{accuracy(after):>12.2%}   (450 held-out digits)")
