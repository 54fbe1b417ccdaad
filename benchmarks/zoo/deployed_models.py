"""Transformers as they are deployed, at small widths: architecture -> configuration, model and example inputs.

Hidden sizes are small (64) and vocabularies moderate, so that what is left of a model's weights says something;
all weights are random and no two vectors are equal by accident (:mod:`benchmarks.zoo.init`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.zoo import init

VOCABULARY = 1000
SMALL = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 256}
TEXT = SMALL | {"vocab_size": VOCABULARY, "max_position_embeddings": 128, "pad_token_id": 0}
ENDS = {"bos_token_id": 1, "eos_token_id": 2}
GQA = TEXT | ENDS | {"num_key_value_heads": 2, "head_dim": 16}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
#: Words that configurations have for the number of experts.
COUNTED = ("num_local_experts", "num_experts", "n_routed_experts")
VISION = SMALL | {"image_size": 64, "patch_size": 16}
PAIR = {"encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
        "encoder_ffn_dim": 256, "decoder_ffn_dim": 256, "d_model": 64}  # fmt: skip
T5 = {"d_model": 64, "d_kv": 16, "d_ff": 256, "num_layers": 2, "num_heads": 4, "vocab_size": VOCABULARY,
      "decoder_start_token_id": 0}  # fmt: skip


@dataclass(frozen=True)
class Architecture:
    """A model's class, its configuration's class and arguments, and what it reads.

    Attributes
    ----------
    model, config : str
        Classes of transformers.
    arguments : dict
        Of the configuration.
    reads : str
        A key of `INPUTS`.
    task : str
        What optimum calls the export.
    """

    model: str
    config: str
    arguments: dict[str, Any]
    reads: str = "text"
    task: str = "feature-extraction"


def _decoder(name: str, **arguments: Any) -> Architecture:
    return Architecture(
        f"{name}ForCausalLM", f"{name}Config", GQA | arguments, "text", "text-generation-with-past"
    )


ARCHITECTURES: dict[str, Architecture] = {
    "bert": Architecture("BertModel", "BertConfig", TEXT),
    "bert_classifier": Architecture(
        "BertForSequenceClassification", "BertConfig", TEXT, task="text-classification"
    ),
    "roberta": Architecture("RobertaModel", "RobertaConfig", TEXT),
    "distilbert": Architecture(
        "DistilBertModel", "DistilBertConfig",
        {"dim": 64, "n_layers": 2, "n_heads": 4, "hidden_dim": 256, "vocab_size": VOCABULARY,
         "max_position_embeddings": 128},
    ),
    "minilm": Architecture("BertModel", "BertConfig", TEXT | {"num_hidden_layers": 4, "num_attention_heads": 8}),
    "deberta_v2": Architecture(
        "DebertaV2Model", "DebertaV2Config",
        TEXT | {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 16,
                "norm_rel_ebd": "layer_norm", "share_att_key": True, "max_relative_positions": -1},
    ),
    "modernbert": Architecture(
        "ModernBertModel", "ModernBertConfig",
        TEXT | ENDS | {"cls_token_id": 1, "sep_token_id": 2, "num_hidden_layers": 3},
    ),
    "gpt2": Architecture(
        "GPT2LMHeadModel", "GPT2Config",
        {"n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": VOCABULARY, "n_positions": 128} | ENDS,
        task="text-generation-with-past",
    ),
    "llama": _decoder("Llama"),
    "mistral": _decoder("Mistral"),
    "qwen2": _decoder("Qwen2"),
    "qwen3": _decoder("Qwen3"),
    "gemma": _decoder("Gemma", num_key_value_heads=1),
    "gemma2": _decoder("Gemma2", query_pre_attn_scalar=16, sliding_window=32),
    "phi": _decoder("Phi", num_attention_heads=2, head_dim=32),
    "phi3": _decoder("Phi3"),
    "mixtral": _decoder("Mixtral", **EXPERTS),
    "qwen3_moe": _decoder("Qwen3Moe", num_experts=4, num_experts_per_tok=2, moe_intermediate_size=128),
    "olmoe": _decoder("Olmoe", num_experts=8, num_experts_per_tok=2, intermediate_size=128),
    "gpt_oss": _decoder("GptOss", **EXPERTS),
    "deepseek_v3": _decoder(
        "DeepseekV3", num_key_value_heads=4, q_lora_rank=24, kv_lora_rank=16, qk_rope_head_dim=8, qk_nope_head_dim=8,
        v_head_dim=16, head_dim=8, n_routed_experts=4, num_experts_per_tok=2, n_shared_experts=1, n_group=2,
        topk_group=1, first_k_dense_replace=1, moe_intermediate_size=96,
    ),
    "lfm2_moe": _decoder(
        "Lfm2Moe", num_experts=4, num_experts_per_tok=2, moe_intermediate_size=128, num_dense_layers=1,
        num_hidden_layers=3, layer_types=["conv", "full_attention", "conv"], norm_topk_prob=True,
    ),
    "t5": Architecture(
        "T5ForConditionalGeneration", "T5Config", T5, "seq2seq", "text2text-generation-with-past"
    ),
    "whisper": Architecture(
        "WhisperForConditionalGeneration", "WhisperConfig",
        PAIR | ENDS | {"vocab_size": VOCABULARY, "max_source_positions": 1500, "max_target_positions": 64,
                       "num_mel_bins": 16, "pad_token_id": 0, "decoder_start_token_id": 1},
        "whisper", "automatic-speech-recognition-with-past",
    ),
    "clip": Architecture(
        "CLIPModel", "CLIPConfig",
        {"text_config": TEXT | ENDS, "vision_config": VISION, "projection_dim": 48},
        "clip", "zero-shot-image-classification",
    ),
    "vit": Architecture(
        "ViTForImageClassification", "ViTConfig", VISION, "image", "image-classification"
    ),
    "swin": Architecture(
        "SwinForImageClassification", "SwinConfig",
        {"image_size": 64, "embed_dim": 32, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4},
        "image", "image-classification",
    ),
    "segformer": Architecture(
        "SegformerForSemanticSegmentation", "SegformerConfig",
        {"depths": [2, 1, 1, 1], "hidden_sizes": [16, 32, 48, 64], "num_attention_heads": [1, 2, 3, 4],
         "decoder_hidden_size": 48},
        "image", "semantic-segmentation",
    ),
    "detr": Architecture(
        "DetrForObjectDetection", "DetrConfig",
        PAIR | {"num_queries": 10, "use_timm_backbone": False, "use_pretrained_backbone": False,
                "backbone": None, "backbone_config": "resnet"},
        "image", "object-detection",
    ),
    "wav2vec2": Architecture(
        "Wav2Vec2ForCTC", "Wav2Vec2Config",
        SMALL | {"conv_dim": [32] * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4,
                 "vocab_size": 32},
        "audio", "automatic-speech-recognition",
    ),
    "sam": Architecture(
        "SamModel", "SamConfig",
        {"vision_config": VISION | {"image_size": 64, "output_channels": 32, "num_pos_feats": 16,
                                    "global_attn_indexes": [1], "window_size": 2, "mlp_dim": 256},
         "prompt_encoder_config": {"hidden_size": 32, "image_size": 64, "patch_size": 16, "mask_input_channels": 8},
         "mask_decoder_config": {"hidden_size": 32, "mlp_dim": 128, "num_attention_heads": 4,
                                 "iou_head_hidden_dim": 64}},
        "image", "mask-generation",
    ),
    "unet": Architecture(
        "UNet2DConditionModel", "diffusers",
        {"sample_size": 16, "in_channels": 4, "out_channels": 4, "layers_per_block": 1,
         "block_out_channels": (32, 64), "norm_num_groups": 8, "cross_attention_dim": 64, "attention_head_dim": 4,
         "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
         "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D")},
        "unet", "",
    ),
    "dit": Architecture(
        "DiTTransformer2DModel", "diffusers",
        {"num_attention_heads": 4, "attention_head_dim": 16, "in_channels": 4, "out_channels": 4, "num_layers": 2,
         "sample_size": 16, "patch_size": 2, "num_embeds_ada_norm": 100},
        "dit", "",
    ),
}  # fmt: skip

Axes = dict[str, dict[int, str]]
TOKENS = {0: "batch", 1: "sequence"}
PIXELS = {0: "batch", 2: "height", 3: "width"}


def _ids(batch: int = 2, length: int = 12) -> torch.Tensor:
    return torch.randint(3, VOCABULARY, (batch, length))


def _text() -> tuple[dict[str, torch.Tensor], Axes]:
    ids = _ids()
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, {
        "input_ids": TOKENS, "attention_mask": TOKENS,
    }  # fmt: skip


def _seq2seq() -> tuple[dict[str, torch.Tensor], Axes]:
    inputs, axes = _text()
    return inputs | {"decoder_input_ids": _ids(length=7)}, axes | {
        "decoder_input_ids": {0: "batch", 1: "target"}
    }


def _image() -> tuple[dict[str, torch.Tensor], Axes]:
    return {"pixel_values": torch.randn(2, 3, 64, 64)}, {"pixel_values": {0: "batch"}}


def _clip() -> tuple[dict[str, torch.Tensor], Axes]:
    (inputs, axes), (pixels, more) = _text(), _image()
    more = {"pixel_values": {0: "images"}}
    return inputs | {"pixel_values": torch.cat([pixels["pixel_values"]] * 2)[:3]}, axes | more


def _whisper() -> tuple[dict[str, torch.Tensor], Axes]:
    ids = _ids(2, 7)
    return {
        "input_features": torch.randn(2, 16, 3000), "decoder_input_ids": ids,
        "decoder_attention_mask": torch.ones_like(ids),
    }, {
        "input_features": {0: "batch"}, "decoder_input_ids": {0: "batch", 1: "target"},
        "decoder_attention_mask": {0: "batch", 1: "target"},
    }  # fmt: skip


def _audio() -> tuple[dict[str, torch.Tensor], Axes]:
    return {"input_values": torch.randn(2, 8000)}, {"input_values": {0: "batch", 1: "samples"}}


def _unet() -> tuple[dict[str, torch.Tensor], Axes]:
    return {
        "sample": torch.randn(2, 4, 16, 16), "timestep": torch.tensor([7, 9]),
        "encoder_hidden_states": torch.randn(2, 11, 64),
    }, {"sample": PIXELS, "timestep": {0: "batch"}, "encoder_hidden_states": TOKENS}  # fmt: skip


def _dit() -> tuple[dict[str, torch.Tensor], Axes]:
    return {
        "hidden_states": torch.randn(2, 4, 16, 16), "timestep": torch.tensor([7, 9]),
        "class_labels": torch.tensor([3, 5]),
    }, {"hidden_states": {0: "batch"}, "timestep": {0: "batch"}, "class_labels": {0: "batch"}}  # fmt: skip


INPUTS: dict[str, Callable[[], tuple[dict[str, torch.Tensor], Axes]]] = {
    "text": _text, "seq2seq": _seq2seq, "image": _image, "clip": _clip, "whisper": _whisper, "audio": _audio,
    "unet": _unet, "dit": _dit,
}  # fmt: skip


def build(name: str, attention: str = "eager") -> Any:
    """Return an architecture's model with random weights, in eval mode."""
    torch.manual_seed(0)
    spec = ARCHITECTURES[name]
    if spec.config == "diffusers":
        import diffusers

        return init.randomise(getattr(diffusers, spec.model)(**spec.arguments), ())
    import transformers

    arguments = dict(spec.arguments)
    if arguments.get("backbone_config") == "resnet":
        arguments["backbone_config"] = transformers.ResNetConfig(
            embedding_size=16, hidden_sizes=[32, 64, 96, 128], depths=[1, 1, 2, 1], out_features=["stage4"]
        )
    config = getattr(transformers, spec.config)(**arguments)
    config.architectures = [spec.model]
    kinds = {"attn_implementation": attention}
    if any(word in spec.arguments for word in COUNTED) and transformers.__version__ >= "5":
        kinds["experts_implementation"] = (
            "batched_mm"  # loops over experts and grouped products have no export
        )
    model = getattr(transformers, spec.model)._from_config(config, **kinds)
    inputs, _ = INPUTS[spec.reads]()
    norms = any("BatchNorm" in type(m).__name__ for m in model.modules())
    return init.randomise(model, tuple(inputs.values()) if norms else ())


def save_checkpoint(name: str, folder: Path) -> Path:
    """Save a model and a tokenizer of as many words, as exporters read them; return the folder."""
    import transformers
    from tokenizers import Tokenizer, models

    target = folder / name
    if not (target / "config.json").exists():
        build(name).save_pretrained(target)
        words = {f"w{n}": n for n in range(VOCABULARY)}
        plain = Tokenizer(models.WordLevel(words, unk_token="w0"))
        transformers.PreTrainedTokenizerFast(
            tokenizer_object=plain, pad_token="w0", bos_token="w1", eos_token="w2"
        ).save_pretrained(target)
        if name == "gpt_oss":
            _add_blocks(target / "model.safetensors")
    return target


def _add_blocks(path: Path) -> None:
    """Add the experts once more in blocks of 4 bits (MXFP4), as gpt-oss is published and its exporter wants it."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(path)
    for name in [n for n in tensors if n.endswith("_proj") and "experts" in n]:
        experts, inputs, outputs = tensors[name].shape
        blocks = (experts, outputs, inputs // 32)
        tensors[f"{name}_blocks"] = torch.randint(0, 256, (*blocks, 16), dtype=torch.uint8)
        tensors[f"{name}_scales"] = torch.randint(121, 124, blocks, dtype=torch.uint8)
    save_file(tensors, path, metadata={"format": "pt"})
