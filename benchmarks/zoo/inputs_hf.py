"""Example inputs of transformers models, by kind, with how many outputs are looked at."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

VOCABULARY = 500


def _ids(batch: int = 2, length: int = 12) -> torch.Tensor:
    return torch.randint(3, VOCABULARY, (batch, length))


def _text(_: dict[str, Any]) -> tuple[dict[str, torch.Tensor], int]:
    ids = _ids()
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, 2


def _seq2seq(_: dict[str, Any]) -> tuple[dict[str, torch.Tensor], int]:
    ids = _ids()
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "decoder_input_ids": _ids(length=7)}, 1


def _whisper(_: dict[str, Any]) -> tuple[dict[str, torch.Tensor], int]:
    ids = _ids(1, 7)
    mask = torch.ones_like(
        ids
    )  # without it transformers looks for packed sequences by aten::diff, which does not export
    return {
        "input_features": torch.randn(1, 20, 100),
        "decoder_input_ids": ids,
        "decoder_attention_mask": mask,
    }, 1


def _audio(_: dict[str, Any]) -> tuple[dict[str, torch.Tensor], int]:
    return {"input_values": torch.randn(1, 8000)}, 1


def _image(arguments: dict[str, Any]) -> tuple[dict[str, torch.Tensor], int]:
    size = arguments.get("image_size", 64)
    size = size[0] if isinstance(size, list) else size
    return {"pixel_values": torch.randn(1, 3, size, size)}, 2


def _pictures(_: dict[str, Any]) -> tuple[dict[str, torch.Tensor], int]:
    return {
        "pixel_values": torch.randn(2, 3, 64, 96)
    }, 2  # sizes that differ, so that exporters keep both apart


def _whisper_batch(arguments: dict[str, Any]) -> tuple[dict[str, torch.Tensor], int]:
    ids = _ids(2, 7)
    return {
        "input_features": torch.randn(2, 20, 100),
        "decoder_input_ids": ids,
        "decoder_attention_mask": torch.ones_like(ids),
    }, 1


def _clip(arguments: dict[str, Any]) -> tuple[dict[str, torch.Tensor], int]:
    return _text(arguments)[0] | _image({})[0], 2


INPUTS: dict[str, Callable[[dict[str, Any]], tuple[dict[str, torch.Tensor], int]]] = {
    "text": _text,
    "seq2seq": _seq2seq,
    "whisper": _whisper,
    "whisper_batch": _whisper_batch,
    "interpolated": _pictures,
    "image_pair": _pictures,
    "audio": _audio,
    "image": _image,
    "clip": _clip,
}
