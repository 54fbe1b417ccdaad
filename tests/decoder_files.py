"""A decoder as two files, for the first token and for the next ones, whose weights are called otherwise."""

from pathlib import Path

import numpy as np
import onnx
from deployed_models import WORDS, decoder
from onnx import numpy_helper
from onnxruntime import InferenceSession

FIRST, NEXT, OTHER = "decoder_model.onnx", "decoder_with_past_model.onnx", "encoder_model.onnx"


def renamed(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the same model with numbers for the names of its weights."""
    names = {t.name: f"onnx::{n}" for n, t in enumerate(model.graph.initializer)}
    for tensor in model.graph.initializer:
        tensor.name = names[tensor.name]
    for node in model.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
    return model


def one_block(place: Path) -> Path:
    """Write a decoder of one block, whose keys and values don't hang on what comes later."""
    place.mkdir()
    onnx.save(decoder(layers=1, first=True), place / FIRST)
    onnx.save(renamed(decoder(layers=1)), place / NEXT)
    return place


def logits(path: Path, ids: np.ndarray, past: list[np.ndarray] | None) -> list[np.ndarray]:
    session = InferenceSession(str(path))
    names = [i.name for i in session.get_inputs()[1:]]
    found: list[np.ndarray] = session.run(
        None, {"input_ids": ids, **dict(zip(names, past or [], strict=True))}
    )
    return found


def gap(folder: Path) -> float:
    """Return how far a token after three is from the same token in one run, relative; both say something."""
    ids = np.random.default_rng(0).integers(0, WORDS, (2, 4))
    whole = logits(folder / FIRST, ids, None)[0][:, 3:]
    first = logits(folder / FIRST, ids[:, :3], None)
    # without a mask the first three see no fourth, so what they keep is that of three: rows of one block only
    again = logits(folder / NEXT, ids[:, 3:], first[1:])[0]
    assert np.ptp(again) > 0.1
    return float(np.abs(again - whole).max() / np.abs(whole).max())


def weights(path: Path) -> dict[str, np.ndarray]:
    return {t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}
