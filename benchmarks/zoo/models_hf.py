"""Transformers models of the zoo: the library's real code at small widths, few layers, random weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from benchmarks.zoo.entry import Axes, Built, Entry
from benchmarks.zoo.inputs_hf import INPUTS, VOCABULARY

SMALL = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 144}
TEXT = SMALL | {"vocab_size": VOCABULARY, "max_position_embeddings": 64}
ViT = SMALL | {"image_size": 64, "patch_size": 16}
GQA = TEXT | {"num_key_value_heads": 2, "pad_token_id": 0}
T5 = {
    "d_model": 64,
    "d_kv": 16,
    "d_ff": 144,
    "num_layers": 2,
    "num_heads": 4,
    "vocab_size": VOCABULARY,
    "decoder_start_token_id": 0,
}
WHISPER = {
    "d_model": 64,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 144,
    "decoder_ffn_dim": 144,
    "vocab_size": VOCABULARY,
    "max_source_positions": 50,
    "max_target_positions": 32,
    "num_mel_bins": 20,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
}
TOKENS: Axes = {"input_ids": {0: "batch", 1: "sequence"}, "attention_mask": {0: "batch", 1: "sequence"}}
PIXELS: Axes = {"pixel_values": {0: "batch", 2: "height", 3: "width"}}

# name -> (model class, configuration class, its arguments, kind of input, symbolic axes)
Spec = tuple[str, str, dict[str, Any], str, Axes]
SPECS: dict[str, Spec] = {
    "bert": ("BertModel", "BertConfig", TEXT, "text", TOKENS),
    "bert_classifier": ("BertForSequenceClassification", "BertConfig", TEXT, "text", {}),
    "roberta": ("RobertaModel", "RobertaConfig", TEXT, "text", TOKENS),
    "distilbert": (
        "DistilBertModel",
        "DistilBertConfig",
        {"dim": 64, "n_layers": 2, "n_heads": 4, "hidden_dim": 144, "vocab_size": VOCABULARY},
        "text",
        TOKENS,
    ),
    "albert": ("AlbertModel", "AlbertConfig", TEXT | {"embedding_size": 32}, "text", {}),
    "electra": ("ElectraModel", "ElectraConfig", TEXT | {"embedding_size": 32}, "text", {}),
    "mpnet": ("MPNetModel", "MPNetConfig", TEXT, "text", {}),
    "mobilebert": (
        "MobileBertModel",
        "MobileBertConfig",
        TEXT | {"embedding_size": 32, "intra_bottleneck_size": 32, "true_hidden_size": 32},
        "text",
        {},
    ),
    "squeezebert": ("SqueezeBertModel", "SqueezeBertConfig", TEXT | {"embedding_size": 64}, "text", {}),
    "deberta_v2": ("DebertaV2Model", "DebertaV2Config", TEXT | {"type_vocab_size": 0}, "text", {}),
    "modernbert": (
        "ModernBertModel",
        "ModernBertConfig",
        TEXT
        | {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2},
        "text",
        {},
    ),
    "gpt2": (
        "GPT2LMHeadModel",
        "GPT2Config",
        {
            "n_embd": 64,
            "n_layer": 2,
            "n_head": 4,
            "vocab_size": VOCABULARY,
            "n_positions": 64,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
        "text",
        TOKENS,
    ),
    "gpt_neox": ("GPTNeoXForCausalLM", "GPTNeoXConfig", TEXT, "text", {}),
    "opt": (
        "OPTForCausalLM",
        "OPTConfig",
        TEXT | {"ffn_dim": 144, "word_embed_proj_dim": 64, "pad_token_id": 0},
        "text",
        {},
    ),
    "bloom": (
        "BloomForCausalLM",
        "BloomConfig",
        {"hidden_size": 64, "n_layer": 2, "n_head": 4, "vocab_size": VOCABULARY},
        "text",
        {},
    ),
    "llama": ("LlamaForCausalLM", "LlamaConfig", GQA, "text", TOKENS),
    "llama_static": ("LlamaForCausalLM", "LlamaConfig", GQA, "text", {}),
    "mistral": ("MistralForCausalLM", "MistralConfig", GQA, "text", {}),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", GQA, "text", TOKENS),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", GQA | {"head_dim": 16}, "text", {}),
    "gemma": ("GemmaForCausalLM", "GemmaConfig", GQA | {"head_dim": 16}, "text", {}),
    "gemma2": (
        "Gemma2ForCausalLM",
        "Gemma2Config",
        GQA | {"head_dim": 16, "query_pre_attn_scalar": 16},
        "text",
        {},
    ),
    "phi": ("PhiForCausalLM", "PhiConfig", TEXT | {"pad_token_id": 0}, "text", {}),
    "phi3": ("Phi3ForCausalLM", "Phi3Config", GQA, "text", {}),
    "olmo2": ("Olmo2ForCausalLM", "Olmo2Config", GQA, "text", {}),
    "t5": (
        "T5ForConditionalGeneration",
        "T5Config",
        T5,
        "seq2seq",
        {},
    ),
    "t5_gated": (
        "T5ForConditionalGeneration",
        "T5Config",
        {
            "d_model": 64,
            "d_kv": 16,
            "d_ff": 144,
            "num_layers": 2,
            "num_heads": 4,
            "vocab_size": VOCABULARY,
            "feed_forward_proj": "gated-gelu",
            "tie_word_embeddings": False,
            "decoder_start_token_id": 0,
        },
        "seq2seq",
        {},
    ),
    "bart": (
        "BartModel",
        "BartConfig",
        {
            "d_model": 64,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "encoder_ffn_dim": 144,
            "decoder_ffn_dim": 144,
            "vocab_size": VOCABULARY,
            "max_position_embeddings": 64,
        },
        "seq2seq",
        {},
    ),
    "whisper": (
        "WhisperForConditionalGeneration",
        "WhisperConfig",
        WHISPER,
        "whisper",
        {},
    ),
    "wav2vec2": (
        "Wav2Vec2Model",
        "Wav2Vec2Config",
        SMALL | {"conv_dim": [32] * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4},
        "audio",
        {},
    ),
    "hubert": (
        "HubertModel",
        "HubertConfig",
        SMALL
        | {
            "conv_dim": [32] * 7,
            "num_conv_pos_embeddings": 16,
            "num_conv_pos_embedding_groups": 4,
            "feat_extract_norm": "layer",
        },
        "audio",
        {},
    ),
    "vit": ("ViTForImageClassification", "ViTConfig", ViT, "image", {"pixel_values": {0: "batch"}}),
    "dinov2": (
        "Dinov2Model",
        "Dinov2Config",
        {k: v for k, v in ViT.items() if k != "intermediate_size"},
        "image",
        {},
    ),
    "beit": ("BeitModel", "BeitConfig", ViT | {"use_relative_position_bias": True}, "image", {}),
    "segformer": (
        "SegformerForSemanticSegmentation",
        "SegformerConfig",
        {
            "depths": [2, 1, 1, 1],
            "hidden_sizes": [16, 32, 48, 64],
            "num_attention_heads": [1, 2, 3, 4],
            "decoder_hidden_size": 48,
        },
        "image",
        {},
    ),
    "detr": (
        "DetrForObjectDetection",
        "DetrConfig",
        {
            "d_model": 64,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "encoder_ffn_dim": 144,
            "decoder_ffn_dim": 144,
            "num_queries": 10,
            "use_timm_backbone": False,
            "use_pretrained_backbone": False,
            "backbone": None,
            "backbone_config": "resnet",
        },
        "image",
        {},
    ),
    "yolos": (
        "YolosForObjectDetection",
        "YolosConfig",
        ViT | {"image_size": [64, 64], "num_detection_tokens": 10},
        "image",
        {},
    ),
    "clip": (
        "CLIPModel",
        "CLIPConfig",
        {
            "text_config": TEXT | {"bos_token_id": 1, "eos_token_id": 2},
            "vision_config": ViT,
            "projection_dim": 48,
        },
        "clip",
        {},
    ),
    "siglip_vision": ("SiglipVisionModel", "SiglipVisionConfig", ViT, "image", {}),
    "resnet": (
        "ResNetForImageClassification",
        "ResNetConfig",
        {"embedding_size": 16, "hidden_sizes": [32, 64, 96, 128], "depths": [1, 1, 2, 1]},
        "image",
        {},
    ),
    "cvt": (
        "CvtForImageClassification",
        "CvtConfig",
        {"embed_dim": [32, 48, 96], "num_heads": [1, 3, 6], "depth": [1, 2, 10]},
        "image",
        {},
    ),
    "dpt": (
        "DPTForDepthEstimation",
        "DPTConfig",
        ViT
        | {
            "num_hidden_layers": 4,
            "backbone_out_indices": [0, 1, 2, 3],
            "neck_hidden_sizes": [16, 32, 48, 64],
            "fusion_hidden_size": 32,
            "is_hybrid": False,
        },
        "image",
        {},
    ),
    "t5_lengths": (
        "T5ForConditionalGeneration",
        "T5Config",
        T5,
        "seq2seq",
        TOKENS | {"decoder_input_ids": {0: "batch", 1: "target"}},
    ),
    "whisper_lengths": (
        "WhisperForConditionalGeneration",
        "WhisperConfig",
        WHISPER | {"max_target_positions": 64},
        "whisper_batch",
        {
            "input_features": {0: "batch"},
            "decoder_input_ids": {0: "batch", 1: "target"},
            "decoder_attention_mask": {0: "batch", 1: "target"},
        },
    ),
    "vit_lengths": ("ViTModel", "ViTConfig", ViT, "interpolated", PIXELS),
    "swin_lengths": (
        "SwinModel",
        "SwinConfig",
        {"image_size": 64, "embed_dim": 24, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4},
        "image_pair",
        PIXELS,
    ),
    "swin2sr": (
        "Swin2SRForImageSuperResolution",
        "Swin2SRConfig",
        {
            "image_size": 32,
            "embed_dim": 24,
            "depths": [2, 2],
            "num_heads": [2, 2],
            "window_size": 8,
            "upscale": 2,
        },
        "image",
        {},
    ),
}


def transformers_entries() -> list[Entry]:
    """Return the transformers models, in the order of SPECS."""

    def entry(name: str) -> Entry:
        return Entry(f"hf_{name}", lambda: _build(*SPECS[name]), 0.5)

    return [entry(name) for name in SPECS]


class Plain(nn.Module):
    """A transformers model that takes tensors in a fixed order and returns a tuple of tensors."""

    def __init__(self, model: nn.Module, names: list[str], outputs: int, **constants: Any) -> None:
        super().__init__()
        self.model = model
        self.names = names
        self.outputs = outputs
        self.constants = constants

    def forward(self, *args: torch.Tensor) -> tuple[torch.Tensor, ...]:
        given = dict(zip(self.names, args, strict=True))
        found = self.model(**given, **self.constants, return_dict=False)
        tensors = [value for value in found if isinstance(value, torch.Tensor)]
        return tuple(tensors[: self.outputs])


def _build(model: str, config: str, arguments: dict[str, Any], kind: str, axes: Axes) -> Built:
    import transformers

    arguments = dict(arguments)
    if arguments.get("backbone_config") == "resnet":
        arguments["backbone_config"] = transformers.ResNetConfig(
            embedding_size=16, hidden_sizes=[32, 64, 96, 128], depths=[1, 1, 2, 1], out_features=["stage4"]
        )
    configuration = getattr(transformers, config)(**arguments)
    for part in (
        configuration,
        getattr(configuration, "text_config", None),
        getattr(configuration, "vision_config", None),
    ):
        if part is not None:
            part._attn_implementation = "eager"
            part.use_cache = False
    inputs, outputs = INPUTS[kind](arguments)
    constants = {"interpolate_pos_encoding": True} if kind == "interpolated" else {}
    plain = Plain(getattr(transformers, model)(configuration), list(inputs), outputs, **constants)
    return Built(plain, inputs, axes)
