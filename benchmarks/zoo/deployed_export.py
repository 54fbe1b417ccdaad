"""Export transformers as they are deployed: by every exporter, in every form, from small random configurations.

    python benchmarks/zoo/deployed_export.py FOLDER --exporter NAME... [--only REGEX] [--timeout 240]

Exporters: torchscript, dynamo, dynamo23, dynamo24 (its opset), optimum (with past, merged decoders), genai-fp32,
genai-int4 (onnxruntime-genai's builder); forms of what these have written: fused (onnxruntime's optimizer of
transformers), fused-gpu (as for a GPU, fp16), fp16, int8 (dynamic), qdq, int4.

Needs torch, transformers, diffusers, onnxscript, onnx, onnxruntime; optimum-onnx and onnxruntime-genai want versions of
transformers that exclude each other, so each exporter runs with the python that has it. Nothing is downloaded. Writes
FOLDER/EXPORTER/ARCHITECTURE[/...].onnx and FOLDER/exports.json; what is there is skipped, also what failed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import re
import runpy
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.zoo import deployed_models, init

OPSET = {"dynamo": 18, "dynamo23": 23, "dynamo24": 24}
ATTENTIVE = ("bert", "llama", "qwen3", "gpt2", "t5", "vit", "whisper", "gemma2")
#: Models that transformers gives one kind of attention only.
EAGER = ("deberta_v2", "gemma2", "gpt_oss")
GENAI = (
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "gemma",
    "gemma2",
    "phi",
    "phi3",
    "gpt_oss",
    "qwen3_moe",
    "mixtral",
    "lfm2_moe",
)
#: form -> the files that it is made of.
FORMS = {
    "fused": ("torchscript/bert", "torchscript/bert_classifier", "torchscript/roberta", "torchscript/distilbert",
              "torchscript/minilm", "torchscript/gpt2", "torchscript/vit", "torchscript/clip", "dynamo/llama",
              "dynamo/phi", "torchscript/whisper", "torchscript/t5", "torchscript/unet", "optimum/t5/decoder_model",
              "optimum/whisper/encoder_model", "optimum/bert/model"),
    "fused-gpu": ("torchscript/bert", "torchscript/t5", "torchscript/unet", "optimum/whisper/decoder_model"),
    "fp16": ("dynamo/mixtral", "torchscript/bert", "dynamo/bert", "dynamo/llama", "dynamo/vit", "optimum/gpt2/model",
             "optimum/whisper/decoder_model_merged", "torchscript/t5", "dynamo/dit"),
    "int8": ("torchscript/bert", "dynamo/bert", "fused/torchscript-bert_classifier", "optimum/minilm/model",
             "optimum/gpt2/model", "optimum/llama/model", "dynamo/vit", "optimum/t5/encoder_model",
             "optimum/whisper/encoder_model", "optimum/whisper/decoder_model_merged", "optimum/modernbert/model",
             "optimum/gpt_oss/model", "optimum/qwen3_moe/model", "torchscript/mixtral"),
    "qdq": ("torchscript/bert", "dynamo/bert", "optimum/minilm/model", "dynamo/vit", "torchscript/clip",
            "optimum/gpt2/model", "dynamo/swin", "optimum/qwen3_moe/model", "torchscript/mixtral"),
    "int4": ("torchscript/bert", "dynamo/bert", "dynamo/llama", "optimum/llama/model", "optimum/qwen3/model",
             "optimum/t5/decoder_model_merged", "dynamo/vit", "optimum/qwen3_moe/model"),
    "int4-qdq": ("dynamo/llama", "optimum/qwen3/model", "dynamo/bert"),
}  # fmt: skip
MODEL_TYPES = {"gpt2": "gpt2", "vit": "vit", "clip": "clip", "whisper": "bart", "t5": "t5", "unet": "unet",
               "llama": "phi", "phi": "phi"}  # fmt: skip


def main() -> int:
    """Run the jobs that are asked for, each in a process of its own."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--exporter", nargs="+", required=True)
    parser.add_argument("--only", default="")
    parser.add_argument("--timeout", type=float, default=240)
    options = parser.parse_args()
    options.folder = options.folder.resolve()
    _preload()
    for exporter in options.exporter:
        for job in jobs(exporter):
            if re.search(options.only, job):
                _spawn(exporter, job, options.folder, options.timeout)
    return 0


def jobs(exporter: str) -> Iterator[str]:
    """Yield what an exporter writes: architectures, or the files that a form is made of."""
    every = deployed_models.ARCHITECTURES
    if exporter in FORMS:
        yield from FORMS[exporter]
    elif exporter.startswith("genai"):
        yield from GENAI
    elif exporter in ("dynamo23", "dynamo24"):
        yield from ATTENTIVE
    elif exporter == "optimum":
        yield from every
    else:
        yield from (n for n in every if n != "sam")


def _spawn(exporter: str, job: str, folder: Path, timeout: float) -> None:
    record = folder / "exports" / f"{exporter}-{job.replace('/', '-')}.json"
    if record.exists():
        return
    record.parent.mkdir(parents=True, exist_ok=True)
    log = record.with_suffix(".log")
    start = time.monotonic()
    child = multiprocessing.get_context("fork").Process(target=_child, args=(exporter, job, folder, log))
    child.start()
    child.join(timeout)
    if child.is_alive():
        child.kill()
        child.join()
    code = child.exitcode
    last = [line for line in log.read_text().splitlines() if line.strip()][-1:]
    entry: dict[str, Any] = {"exporter": exporter, "job": job, "exit": code}
    entry |= {"error": last[0][:300] if code and last else "", "seconds": round(time.monotonic() - start, 1)}
    record.write_text(json.dumps(entry) + "\n")
    print(exporter, job, code, entry["seconds"], entry["error"][:150], flush=True)


def _child(exporter: str, job: str, folder: Path, log: Path) -> None:
    with log.open("w") as stream:
        for descriptor in (1, 2):
            os.dup2(stream.fileno(), descriptor)
        _run(exporter, job, folder)
        sys.stdout.flush()


def _preload() -> None:
    """Import what is heavy once; children are forked from here."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    init.define_torchvision_operators()
    import onnx  # noqa: F401
    import onnxruntime  # noqa: F401
    import torch
    from transformers import BertModel, LlamaForCausalLM, T5Model, ViTModel  # noqa: F401

    torch.set_num_threads(1)  # threads don't survive a fork


def _run(exporter: str, job: str, folder: Path) -> None:
    try:
        if exporter in FORMS:
            _form(exporter, folder / f"{job}.onnx", folder / exporter / f"{job.replace('/', '-')}.onnx")
        elif exporter.startswith("genai"):
            _genai(job, folder, exporter.removeprefix("genai-"))
        elif exporter == "optimum":
            _optimum(job, folder)
        else:
            _torch(job, exporter, folder / exporter / f"{job}.onnx")
    except Exception as error:
        traceback.print_exc()
        print(f"{type(error).__name__}: {error}".replace("\n", " "), flush=True)
        raise SystemExit(1) from None


def _torch(name: str, exporter: str, path: Path) -> None:
    import torch

    script = exporter == "torchscript"
    model = deployed_models.build(name, "eager" if script or name in EAGER else "sdpa").eval()
    inputs, axes = deployed_models.INPUTS[deployed_models.ARCHITECTURES[name].reads]()
    path.parent.mkdir(parents=True, exist_ok=True)
    plain = _Plain(model, list(inputs))
    args = tuple(inputs.values())
    with torch.no_grad():
        if script:
            torch.onnx.export(
                plain, args, str(path), dynamo=False, opset_version=17, input_names=list(inputs),
                dynamic_axes=axes,
            )  # fmt: skip
            return
        shapes = tuple(dict.fromkeys(axes.get(n, {}), torch.export.Dim.DYNAMIC) for n in inputs)
        torch.onnx.export(
            plain, args, str(path), dynamo=True, external_data=False, opset_version=OPSET[exporter],
            input_names=list(inputs), dynamic_shapes=(shapes,),
        )  # fmt: skip


def _plain_class() -> Any:
    import torch

    class Plain(torch.nn.Module):
        """A model that takes tensors in a fixed order and returns a tuple of at most two."""

        def __init__(self, model: Any, names: list[str]) -> None:
            super().__init__()
            self.model, self.names = model, names
            self.more = {"use_cache": False} if hasattr(getattr(model, "config", None), "use_cache") else {}

        def forward(self, *args: Any) -> Any:
            rest = dict(zip(self.names[1:], args[1:], strict=True))
            found = self.model(args[0], **rest, **self.more, return_dict=False)
            return tuple(value for value in found if isinstance(value, torch.Tensor))[:2]

    return Plain


def _Plain(model: Any, names: list[str]) -> Any:  # torch is imported late
    return _plain_class()(model, names)


def _optimum(name: str, folder: Path) -> None:
    spec = deployed_models.ARCHITECTURES[name]
    from optimum.exporters.onnx import main_export, onnx_export_from_model

    target = folder / "optimum" / name
    if spec.config == "diffusers":
        raise SystemExit("optimum exports whole pipelines of diffusers")
    checkpoint = deployed_models.save_checkpoint(name, folder / "checkpoints-optimum")
    if name == "sam":
        onnx_export_from_model(deployed_models.build(name), target, task=spec.task, do_validation=False)
        return
    main_export(str(checkpoint), target, task=spec.task, do_validation=False)


def _genai(name: str, folder: Path, precision: str) -> None:
    checkpoint = deployed_models.save_checkpoint(name, folder / "checkpoints")
    target = folder / f"genai-{precision}" / name
    with contextlib.chdir(tempfile.mkdtemp()):
        sys.argv = ["builder", "-i", str(checkpoint), "-o", str(target), "-p", precision, "-e", "cpu", "-c", "cache",
                    "--extra_options", "int4_block_size=32"]  # fmt: skip
        runpy.run_module("onnxruntime_genai.models.builder", run_name="__main__")


def _form(form: str, source: Path, target: Path) -> None:
    import onnx

    target.parent.mkdir(parents=True, exist_ok=True)
    if form.startswith("fused"):
        _fuse(source, target, form == "fused-gpu")
    elif form == "fp16":
        from onnxruntime.transformers.float16 import convert_float_to_float16

        onnx.save(convert_float_to_float16(onnx.load(source), keep_io_types=False), target)
    elif form == "int8":
        from onnxruntime.quantization import quantize_dynamic

        quantize_dynamic(
            str(source), str(target), extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT}
        )
    elif form == "qdq":
        from onnxruntime.quantization import QuantFormat, quantize_static

        quantize_static(
            str(source), str(target), _Reader(source), quant_format=QuantFormat.QDQ, per_channel=True
        )
    else:
        from onnxruntime.quantization.matmul_nbits_quantizer import (
            DefaultWeightOnlyQuantConfig,
            MatMulNBitsQuantizer,
            QuantFormat,
        )  # fmt: skip

        kind = QuantFormat.QDQ if form == "int4-qdq" else QuantFormat.QOperator
        settings = DefaultWeightOnlyQuantConfig(block_size=32, is_symmetric=True, quant_format=kind)
        quantizer = MatMulNBitsQuantizer(onnx.load(source), algo_config=settings)
        quantizer.process()
        quantizer.model.save_model_to_file(str(target))


def _fuse(source: Path, target: Path, gpu: bool) -> None:
    from onnxruntime.transformers import optimizer

    name = next((n for n in MODEL_TYPES if n in str(source)), "bert")
    heads = 8 if "minilm" in str(source) else 4
    fused = optimizer.optimize_model(
        str(source), MODEL_TYPES.get(name, "bert"), num_heads=heads, hidden_size=64, opt_level=0, use_gpu=gpu
    )
    print(fused.get_fused_operator_statistics())
    if gpu:
        fused.convert_float_to_float16()
    fused.save_model_to_file(str(target))


class _Reader:
    """Random samples for a quantiser that asks for ranges."""

    def __init__(self, source: Path) -> None:
        import onnxruntime

        session = onnxruntime.InferenceSession(str(source), providers=["CPUExecutionProvider"])
        random = np.random.default_rng(0)
        self.samples = iter([_sample(session.get_inputs(), random) for _ in range(4)])

    def get_next(self) -> dict[str, Any] | None:
        """Return the next sample; None after the last."""
        return next(self.samples, None)

    def set_range(self, start_index: int, end_index: int) -> None:
        """Be asked for all samples only."""

    def __len__(self) -> int:
        return 4


def _sample(inputs: list[Any], random: np.random.Generator) -> dict[str, Any]:
    """Return random inputs: batch 2, 12 tokens, no past."""
    found = {}
    for value in inputs:
        sizes = [s if isinstance(s, int) else 0 if "past" in s and "+" not in s else 2 if "batch" in s or "image" in s
                 else 12 for s in value.shape]  # fmt: skip
        if "int" in value.type:
            mask = any(word in value.name for word in ("mask", "type"))
            found[value.name] = np.ones(sizes, np.int64) if mask else random.integers(3, 120, sizes)
        else:
            found[value.name] = random.standard_normal(sizes).astype(np.float32)
    return found


if __name__ == "__main__":
    sys.exit(main())
