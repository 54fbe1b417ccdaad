"""Accuracy of quantised models without training: int8 and int4 forms of real models, cut with samples, and scored.

    python benchmarks/accuracy/quantised.py --data FOLDER --work FOLDER [--share 0.6667] NAME...

FOLDER is that of `pruning.py` beside this file. Each model is quantised by onnxruntime's own tools, from its samples:

=============  ========================================================================================================
``qdq``        QuantizeLinear and DequantizeLinear around everything, weights by channel
``weights``    the same around MatMul and Gather alone, as transformers want it
``qoperator``  QLinearConv and its kin
``dynamic``    DynamicQuantizeLinear and MatMulInteger
``int4``       MatMul with weights of 4 bits in blocks of 32 behind DequantizeLinear; needs onnx-ir
=============  ========================================================================================================

The rows of a form: ``dense``, the form as it is; ``none``, cut to the share of MACs with samples that only choose;
``lstsq``, fitted too. ``bytes`` are those of the file, ``layers`` the same without tables that are looked up. Rows go
to standard output as they come, all figures to WORK/quantised.json; ``--rows REGEX`` picks some (``dynamic lstsq``).
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.shared import Data, Row, Store, command, scores, table_parser
from onnxprune.model import Model

FORMS = ("qdq", "weights", "qoperator", "dynamic", "int4")
BATCH, SAMPLES = 8, 128


class Reader:
    """Gives samples to onnxruntime's quantiser."""

    def __init__(self, path: Path) -> None:
        data = dict(np.load(path))
        count = min(len(next(iter(data.values()))), SAMPLES)
        batches = range(0, count, BATCH)
        self.batches = iter([{n: a[i : i + BATCH] for n, a in data.items()} for i in batches])

    def get_next(self) -> dict[str, Any] | None:
        return next(self.batches, None)


def quantise(form: str, source: Path, samples: Path, out: Path) -> None:
    """Write a form of a float model."""
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_dynamic, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    plain = out.with_name(f"{out.stem}.plain.onnx")
    quant_pre_process(source, plain, skip_symbolic_shape=True)
    if form == "dynamic":
        quantize_dynamic(plain, out, weight_type=QuantType.QInt8)
    elif form == "int4":
        from onnxruntime.quantization.matmul_nbits_quantizer import (
            DefaultWeightOnlyQuantConfig,
            MatMulNBitsQuantizer,
        )

        config = DefaultWeightOnlyQuantConfig(block_size=32, is_symmetric=True, quant_format=QuantFormat.QDQ)
        quantiser = MatMulNBitsQuantizer(str(plain), algo_config=config)
        quantiser.process()
        quantiser.model.save_model_to_file(str(out))
    else:
        more: dict[str, Any] = {}
        if form == "weights":
            ops = ["MatMul", "Gather"]
            extra = {"MatMulConstBOnly": True, "OpTypesToExcludeOutputQuantization": ops}
            more = {"op_types_to_quantize": ops, "extra_options": extra}
        kind = QuantFormat.QOperator if form == "qoperator" else QuantFormat.QDQ
        quantize_static(
            plain, out, Reader(samples), quant_format=kind, per_channel=True,
            activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8, **more,
        )  # fmt: skip
    plain.unlink()


def tables(path: Path) -> int:
    """Return the bytes of the tables that a model looks rows up in."""
    model = Model.load(path)
    looked_up = {n.input[0] for n in model.proto.graph.node if n.op_type == "Gather"}
    infos = [model.info(name) for name in model.names() if name in looked_up]
    return sum(info.nbytes for info in infos if len(info.dims) > 1)


class Bench(Data):
    def __init__(self, args: argparse.Namespace) -> None:
        super().__init__(args.data, args.work, args.python)
        self.share, self.most = args.share, args.samples

    def original(self, name: str, form: str) -> Path:
        path = self.work / f"{name}.{form}.onnx"
        if not path.exists():
            own = self.work / "models" / f"{name}.onnx"
            source = own if own.exists() else self.data / "models" / f"{name}.onnx"
            quantise(form, source, self.samples(name), path)
        return path

    def dense(self, name: str, form: str) -> Row:
        return {
            "macs": 1.0,
            "bytes": 1.0,
            "layers": 1.0,
            "score": self.score(name, self.original(name, form)),
        }

    def cut(self, name: str, form: str, recover: str) -> Row:
        folder = self.work / f"{form}_{recover}_{self.share:g}"
        folder.mkdir(exist_ok=True)
        source, out = self.original(name, form), folder / f"{name}.onnx"
        command(
            sys.executable, "-m", "onnxprune", "prune", source, out, "--align", "none", "-q", "--target",
            f"macs={self.share:g}", "--calib", self.samples(name), "--samples", self.most, "--recover", recover,
            "--report", out.with_suffix(".json"),
        )  # fmt: skip
        report = json.loads(out.with_suffix(".json").read_text())
        before, after = source.stat().st_size, out.stat().st_size
        return {
            "macs": report["macs"]["after"] / report["macs"]["before"],
            "bytes": after / before,
            "layers": (after - tables(out)) / (before - tables(source)),
            "score": self.score(name, out),
            "held_out": report["calibration"]["original"],
        }

    def rows(self, name: str) -> Iterator[tuple[str, partial[Row]]]:
        for form in FORMS:
            yield f"{form} dense", partial(self.dense, name, form)
            for recover in ("none", "lstsq"):
                yield f"{form} {recover} {self.share:g}", partial(self.cut, name, form, recover)


def line(key: str, row: Row) -> str:
    name, label = key.split("|")
    if "error" in row:
        return f"| {name} | {label} | | | | {row['error']} |"
    shares = " | ".join(f"{row[part]:.1%}" for part in ("macs", "bytes", "layers"))
    return f"| {name} | {label} | {shares} | {scores(row)} |"


def main() -> None:
    parser = table_parser(__doc__)
    parser.add_argument("--share", type=float, default=0.6667)
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--again", action="store_true", help="also those that have been measured")
    args = parser.parse_args()
    bench = Bench(args)
    store = Store(bench.work / "quantised.json")
    print("| model | what | MACs left | bytes | layers | score |\n|---|---|---|---|---|---|", flush=True)
    if args.table:
        for key, row in store.read().items():
            print(line(key, row))
    for name in args.names:
        for label, measure in bench.rows(name):
            if re.search(args.rows, label):
                store.fill(f"{name}|{label}", measure, again=args.again)
                print(line(f"{name}|{label}", store.read()[f"{name}|{label}"]), flush=True)


if __name__ == "__main__":
    main()
