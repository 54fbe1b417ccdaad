"""The folder in which the blocks of a page run: models of the kinds that the pages speak of, and samples."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from deployed_models import WORDS, decoder, detector, encoder

ROOT = Path(__file__).resolve().parents[2]


def digits(part: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    with np.load(ROOT / "samples" / "data" / "digits.npz") as data:
        images, labels = data[f"{part}_x"][:count], data[f"{part}_y"][:count]
    return images[:, None].astype(np.float32) / 16, labels


def samples(path: Path) -> None:
    np.savez(path, image=digits("train", 400)[0])


def labelled(path: Path) -> None:
    images, labels = digits("train", 1000)
    np.savez(path, image=images, y=labels)


def test(path: Path) -> None:
    images, labels = digits("test", 450)
    np.savez(path, image=images, y=labels)


def texts(path: Path) -> None:
    rng = np.random.default_rng(0)
    lengths = rng.integers(4, 16, 64)
    mask = (np.arange(16) < lengths[:, None]).astype(np.int64)
    np.savez(path, input_ids=rng.integers(0, WORDS, (64, 16)) * mask, attention_mask=mask)


def images(path: Path) -> None:
    np.savez(path, image=np.random.default_rng(0).standard_normal((48, 3, 32, 32)).astype(np.float32))


def words(path: Path) -> None:
    path.write_text("".join(f"{n}\n" for n in range(120)), encoding="utf-8")


def cnn(path: Path) -> None:
    shutil.copy(ROOT / "samples" / "01_digits_cnn" / "digits_cnn.onnx", path)


def transformer(path: Path) -> None:
    shutil.copy(ROOT / "samples" / "02_digits_transformer" / "digits_transformer.onnx", path)


def made(make: Callable[[], onnx.ModelProto]) -> Callable[[Path], None]:
    return lambda path: onnx.save(make(), path)


FILES: dict[str, Callable[[Path], None]] = {
    "digits_cnn.onnx": cnn,
    "digits_transformer.onnx": transformer,
    "encoder.onnx": made(encoder),
    "decoder.onnx": made(decoder),
    "decoder_int4.onnx": made(lambda: decoder(bits=4)),
    "detector.onnx": made(detector),
    "samples.npz": samples,
    "labelled.npz": labelled,
    "test.npz": test,
    "texts.npz": texts,
    "images.npz": images,
    "keep.txt": words,
}


def furnish(folder: Path, given: str) -> None:
    """Put ``NAME`` or ``NAME as OTHER``, with commas between, into a folder, and what a checkout has beside it."""
    for one in filter(None, (part.strip() for part in given.split(","))):
        name, _, other = one.partition(" as ")
        FILES[name](folder / (other or name))
    for name in ("samples", "recipes"):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    tools = folder / ".bin"
    tools.mkdir()
    for name, module in (("onnxprune", "-m onnxprune "), ("python", "")):
        tool = tools / name
        tool.write_text(f'#!/bin/sh\nexec "{sys.executable}" {module}"$@"\n', encoding="utf-8")
        tool.chmod(0o755)
