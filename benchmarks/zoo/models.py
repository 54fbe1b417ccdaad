"""What the zoo holds: one `Entry` a model, by name, with a function that builds it and its example inputs.

Names are those of the libraries; timm models are prefixed `timm_`, transformers models `hf_`, models
written here `own_`. Nothing is ever downloaded: all weights are random.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.zoo.entry import Axes, Built, Entry

RIVALS = Path(__file__).with_name("rivals.json")

# Small enough for a minute each, and together every wiring that these libraries know.
TIMM = [
    "convnext_atto",
    "convnextv2_atto",
    "swinv2_cr_tiny_ns_224",
    "deit_tiny_patch16_224",
    "deit3_small_patch16_224",
    "mixer_s32_224",
    "coatnet_nano_rw_224",
    "coatnext_nano_rw_224",
    "efficientformer_l1",
    "efficientformerv2_s0",
    "hrnet_w18_small",
    "res2net50_26w_4s",
    "res2next50",
    "dla34",
    "dla46_c",
    "dla60_res2net",
    "ese_vovnet19b_dw",
    "vovnet39a",
    "ghostnet_100",
    "ghostnetv2_100",
    "ghostnetv3_100",
    "repvgg_a0",
    "nf_regnet_b0",
    "nf_resnet26",
    "eca_nfnet_l0",
    "mobilevit_xxs",
    "mobilevitv2_050",
    "resmlp_12_224",
    "gmlp_s16_224",
    "xcit_nano_12_p16_224",
    "cait_xxs24_224",
    "crossvit_tiny_240",
    "pit_ti_224",
    "levit_128s",
    "tnt_s_patch16_224",
    "twins_svt_small",
    "poolformer_s12",
    "poolformerv2_s12",
    "pvt_v2_b0",
    "edgenext_xx_small",
    "mobileone_s0",
    "fastvit_t8",
    "inception_v4",
    "xception41",
    "selecsls42",
    "skresnet18",
    "resnest14d",
    "legacy_seresnet18",
    "cspresnet50",
    "cspdarknet53",
    "hardcorenas_a",
    "tinynet_e",
    "lcnet_050",
    "mobilenetv4_conv_small",
    "mobilenetv4_hybrid_medium",
    "efficientvit_b0",
    "efficientvit_m0",
    "repvit_m0_9",
    "rexnet_100",
    "dpn68",
    "halonet26t",
    "lambda_resnet26t",
    "botnet26t_256",
    "sebotnet33ts_256",
    "convmixer_1024_20_ks9_p14",
    "focalnet_tiny_srf",
    "davit_tiny",
    "nest_tiny",
    "volo_d1_224",
    "visformer_tiny",
    "sequencer2d_s",
    "tresnet_m",
    "starnet_s1",
    "hgnetv2_b0",
    "mambaout_femto",
    "vit_tiny_patch16_224",
    "eva02_tiny_patch14_224",
    "vit_tiny_r_s16_p8_224",
    "resnetv2_18",
    "hiera_tiny_224",
    "tiny_vit_5m_224",
    "nextvit_small",
    "regnetz_b16",
    "gcvit_xxtiny",
    "inception_next_atto",
    "swiftformer_xs",
    "shvit_s1",
    "rdnet_tiny",
    "coat_lite_tiny",
    "caformer_s18",
    "fasternet_t0",
    "mixnet_s",
    "fbnetc_100",
    "gcresnet33ts",
    "seresnext26t_32x4d",
    "mobilenetv1_100",
    "vit_relpos_small_patch16_224",
    "convit_tiny",
    "repghostnet_050",
    "gernet_s",
]

# Symbolic batch for some, so that the zoo has both kinds of graph.
TIMM_DYNAMIC = {
    "convnext_atto",
    "deit_tiny_patch16_224",
    "ghostnet_100",
    "hrnet_w18_small",
    "repvgg_a0",
    "mobilevit_xxs",
    "pvt_v2_b0",
    "xcit_nano_12_p16_224",
    "vit_tiny_patch16_224",
    "levit_128s",
    "skresnet18",
    "dla34",
}

# Exported with dynamic lengths, heights and widths: tables that are indexed by them must stay whole.
LENGTHS = [
    "hf_bert",
    "hf_roberta",
    "hf_gpt2",
    "hf_llama",
    "hf_t5_lengths",
    "hf_whisper_lengths",
    "hf_vit_lengths",
    "hf_swin_lengths",
]

# Exported with the library's own initialisation and equal initializers shared.
DEDUP = [
    "resnet18",
    "resnet50",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "efficientnet_b0",
    "densenet121",
    "shufflenet_v2_x1_0",
    "googlenet",
    "inception_v3",
    "regnet_y_400mf",
    "mnasnet1_0",
    "squeezenet1_1",
    "convnext_tiny",
    "swin_t",
    "vit_b_32",
    "efficientnet_v2_s",
    "timm_ghostnet_100",
    "hf_bert",
    "hf_gpt2",
]


def torchvision_entries() -> list[Entry]:
    """Return the classifiers of rivals.json, smallest first."""
    rows = json.loads(RIVALS.read_text())["models"]

    def entry(name: str) -> Entry:
        return Entry(name, lambda: _torchvision(name), float(rows[name]["mparams"]))

    return sorted(map(entry, rows), key=lambda e: (e.mparams, e.name))


def _torchvision(name: str) -> Built:
    import torch
    import torchvision

    extra: dict[str, Any] = {}
    if name in ("googlenet", "inception_v3"):
        extra = {"aux_logits": False, "transform_input": False, "init_weights": False}
    size = 299 if name == "inception_v3" else 224
    if name.startswith("efficientnet_b"):
        size = {"0": 224, "1": 240, "2": 288, "3": 300}.get(name[-1], 320)
    model = torchvision.models.get_model(name, weights=None, **extra)
    return Built(model, {"input": torch.randn(1, 3, size, size)})


def timm_entries() -> list[Entry]:
    """Return the timm models, in the order of TIMM."""
    return [Entry(f"timm_{name}", lambda name=name: _timm(name)) for name in TIMM]  # type: ignore[misc]


def _timm(name: str) -> Built:
    import timm
    import torch

    model = timm.create_model(name, pretrained=False, exportable=True)
    channels, height, width = model.default_cfg["input_size"]
    axes: Axes = {"input": {0: "batch"}} if name in TIMM_DYNAMIC else {}
    return Built(model, {"input": torch.randn(2 if axes else 1, channels, height, width)}, axes)


def catalogue() -> dict[str, Entry]:
    """Return every entry by name."""
    from benchmarks.zoo.models_hf import transformers_entries
    from benchmarks.zoo.models_own import own_entries

    entries = [*torchvision_entries(), *own_entries(), *transformers_entries(), *timm_entries()]
    return {entry.name: entry for entry in entries}
