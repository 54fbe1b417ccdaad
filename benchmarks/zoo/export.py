"""Export a zoo of randomly initialised models to ONNX: torchvision, timm, transformers and some written here.

    python benchmarks/zoo/export.py FOLDER [--set NAME]... [--only REGEX] [--timeout 120] [--retry]

Needs torch, torchvision, timm, transformers, onnx, onnxscript and onnxruntime; never downloads weights.
Writes FOLDER/torchscript/NAME.onnx (opset 17), FOLDER/dynamo/NAME.onnx (opset 18),
FOLDER/dedup-torchscript/ and FOLDER/dedup-dynamo/ (default initialisation, equal initializers shared) and
FOLDER/manifest.json. Every model is exported in a process of its own, one at a time, is run once in
onnxruntime against PyTorch, and is skipped when it is already there.
"""

from __future__ import annotations

import argparse
import contextlib
import inspect
import json
import multiprocessing
import os
import re
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.zoo import models

GIANT = 60.0  # millions of parameters: these come last
OPSET = {"torchscript": 17, "dynamo": 18}
MAX_IR, MAX_OPSET = 13, 26  # the newest that onnxruntime 1.31 takes
SETS = ("torchscript", "extra", "dedup", "giants", "dynamo", "giants-dynamo", "lengths")


@dataclass(frozen=True)
class Job:
    """One file to write: a model, by one exporter, with distinct or with shared initializers."""

    name: str
    exporter: str
    dedup: bool = False

    @property
    def file(self) -> str:
        return f"{'dedup-' if self.dedup else ''}{self.exporter}/{self.name}.onnx"


def main(argv: list[str] | None = None) -> int:
    """Export what is missing and return 0 (failures are in the manifest)."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--set", dest="sets", action="append", choices=SETS, help="default: all, in this order"
    )
    parser.add_argument("--only", default="", help="regular expression on FOLDER's relative file names")
    parser.add_argument("--timeout", type=float, default=120.0, metavar="SECONDS")
    parser.add_argument("--retry", action="store_true", help="try those again that failed before")
    args = parser.parse_args(argv)
    args.folder.mkdir(parents=True, exist_ok=True)
    _preload()
    manifest = args.folder / "manifest.json"
    for job in jobs(args.sets or list(SETS)):
        if not re.search(args.only, job.file):
            continue
        done = read_manifest(manifest).get(job.file)
        if done and (
            (done["status"] == "ok" and (args.folder / job.file).exists())
            or (done["status"] != "ok" and not args.retry)
        ):
            continue
        entry = run_job(job, args.folder, args.timeout)
        when = time.strftime("%H:%M:%S")
        text = f"{when} {entry['status']:8} {entry['seconds']:6.1f} s  {job.file}  {entry['error'][:150]}"
        print(text, flush=True)
        everything = read_manifest(manifest) | {job.file: entry}
        temporary = manifest.with_suffix(".tmp")
        temporary.write_text(json.dumps(everything, indent=1))
        temporary.replace(manifest)
    return 0


def jobs(sets: list[str]) -> Iterator[Job]:
    """Yield the jobs of the named sets; models over 60 M parameters are sets of their own."""
    entries = list(models.catalogue().values())
    vision = [e.name for e in models.torchvision_entries()]
    small = [e.name for e in entries if e.mparams <= GIANT]
    large = [e.name for e in sorted(entries, key=lambda e: e.mparams) if e.mparams > GIANT]
    plans = {
        "torchscript": [Job(n, "torchscript") for n in small if n in vision],
        "extra": [Job(n, "torchscript") for n in small if n not in vision],
        "dedup": [Job(n, exporter, dedup=True) for n in models.DEDUP for exporter in OPSET],
        "dynamo": [Job(n, "dynamo") for n in small],
        "giants": [Job(n, "torchscript") for n in large],
        "giants-dynamo": [Job(n, "dynamo") for n in large],
        "lengths": [Job(n, exporter) for n in models.LENGTHS for exporter in OPSET],
    }
    for key in sets:
        yield from plans[key]


def read_manifest(path: Path) -> dict[str, dict[str, Any]]:
    """Return file -> entry, empty where there is no manifest yet."""
    return dict(json.loads(path.read_text())) if path.exists() else {}


def run_job(job: Job, folder: Path, timeout: float) -> dict[str, Any]:
    """Export in a child process and return the manifest's entry."""
    context: Any = multiprocessing.get_context(
        "fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn"
    )
    receive, send = context.Pipe(duplex=False)
    child = context.Process(target=_child, args=(job, folder, send))
    start = time.monotonic()
    child.start()
    send.close()
    entry: dict[str, Any] = {
        "name": job.name,
        "exporter": job.exporter,
        "dedup": job.dedup,
        "status": "failed",
        "error": "",
    }
    try:
        if receive.poll(timeout):
            entry |= receive.recv()
        else:
            entry |= {"status": "timeout", "error": f"over {timeout:.0f} s"}
    except EOFError:
        entry["error"] = "the process died (memory?)"
    if child.is_alive() and entry["status"] == "timeout":
        child.kill()
    child.join()
    return entry | {"seconds": round(time.monotonic() - start, 1)}


def _child(job: Job, folder: Path, send: Any) -> None:
    target = folder / job.file
    target.parent.mkdir(parents=True, exist_ok=True)
    log = folder / "logs" / (job.file.replace("/", "-") + ".log")
    log.parent.mkdir(exist_ok=True)
    partial = target.with_suffix(".partial")
    with log.open("w") as stream, contextlib.redirect_stdout(stream), contextlib.redirect_stderr(stream):
        for descriptor in (1, 2):  # PyTorch's C++ part prints whole graphs
            os.dup2(stream.fileno(), descriptor)
        try:
            result = _export(job, partial)
            os.replace(partial, target)
            result |= {"status": "ok"}
        except BaseException as error:  # an export may fail in any way; the manifest says how
            traceback.print_exc()
            partial.unlink(missing_ok=True)
            result = {
                "status": "failed",
                "error": f"{type(error).__name__}: {error}".replace("\n", " ")[:300],
            }
    send.send(result)
    send.close()


def _preload() -> None:
    """Import the heavy libraries once; forked children then start at once."""
    import onnxscript  # noqa: F401
    import torch

    from benchmarks.zoo import init

    init.define_torchvision_operators()
    torch.set_num_threads(1)  # threads do not survive a fork
    torch.backends.mha.set_fastpath_enabled(False)  # its fused operator does not export
    import timm  # noqa: F401
    import torchvision  # noqa: F401
    import transformers  # noqa: F401


def _export(job: Job, path: Path) -> dict[str, Any]:
    import torch

    from benchmarks.zoo import init

    _preload()
    torch.manual_seed(0)
    built = models.catalogue()[job.name].build()
    inputs = tuple(built.inputs.values())
    model = built.model.eval() if job.dedup else init.randomise(built.model, inputs)
    with torch.no_grad():
        expected = model(*inputs)
        _torch_export(job, model, built, path)
    if job.dedup:
        merged = _share_equal_initializers(path)
    outputs = [expected] if isinstance(expected, torch.Tensor) else list(expected)
    found = _check(path, built, [o.detach().numpy() for o in outputs])
    found |= {"merged": merged} if job.dedup else {}
    return found | {
        "params": sum(p.numel() for p in model.parameters()),
        "inputs": {name: list(value.shape) for name, value in built.inputs.items()},
        "dynamic": {name: {str(axis): s for axis, s in axes.items()} for name, axes in built.dynamic.items()},
        "bytes": path.stat().st_size,
    }


def _torch_export(job: Job, model: Any, built: models.Built, path: Path) -> None:
    import torch

    names, args = list(built.inputs), tuple(built.inputs.values())
    common: dict[str, Any] = {"input_names": names, "opset_version": OPSET[job.exporter]}
    if job.exporter == "dynamo":
        shapes = tuple(dict.fromkeys(built.dynamic.get(n, {}), torch.export.Dim.DYNAMIC) for n in names)
        variadic = any(
            p.kind is p.VAR_POSITIONAL for p in inspect.signature(model.forward).parameters.values()
        )
        common["dynamic_shapes"] = ((shapes,) if variadic else shapes) if built.dynamic else None
        common["optimize"] = not job.dedup  # folding would remove the equal vectors that are to be shared
        torch.onnx.export(model, args, str(path), dynamo=True, external_data=False, **common)
        return
    extra: dict[str, Any] = {}
    if job.dedup:  # keep BatchNorm nodes apart, so that their equal vectors are there to be shared
        extra = {"training": torch.onnx.TrainingMode.PRESERVE, "do_constant_folding": False}
    torch.onnx.export(
        model, args, str(path), dynamo=False, dynamic_axes=built.dynamic or None, **common, **extra
    )


def _share_equal_initializers(path: Path) -> int:
    """Merge initializers of equal type, shape and bytes, as exporters do; return how many went."""
    import onnx

    proto = onnx.load(path)
    kept: dict[tuple[Any, ...], str] = {}
    rename: dict[str, str] = {}
    for tensor in proto.graph.initializer:
        key = (tensor.data_type, tuple(tensor.dims), onnx.numpy_helper.to_array(tensor).tobytes())
        rename[tensor.name] = kept.setdefault(key, tensor.name)
    unique = [t for t in proto.graph.initializer if rename[t.name] == t.name]
    merged = len(proto.graph.initializer) - len(unique)
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(unique)
    for node in proto.graph.node:
        for slot, name in enumerate(node.input):
            node.input[slot] = rename.get(name, name)
    onnx.save(proto, path)
    return merged


def _check(path: Path, built: models.Built, expected: list[Any]) -> dict[str, Any]:
    """Run the file in onnxruntime; raise unless it loads and its finite outputs are those of PyTorch."""
    import numpy as np
    import onnx
    import onnxruntime

    proto = onnx.load(path)
    opset = max(o.version for o in proto.opset_import if o.domain in ("", "ai.onnx"))
    if proto.ir_version > MAX_IR or opset > MAX_OPSET:
        raise ValueError(f"IR {proto.ir_version}, opset {opset} are too new for onnxruntime")
    nodes = len(proto.graph.node)
    del proto
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    feeds = {i.name: built.inputs[i.name].numpy() for i in session.get_inputs()}
    found = session.run(None, feeds)
    scale = max(float(np.abs(e).max()) for e in expected)
    error = max(
        float(np.abs(a - e).max()) / max(float(np.abs(e).max()), 1e-30)
        for a, e in zip(found, expected, strict=False)
    )
    if not np.isfinite(scale) or not error < 0.02:
        raise ValueError(f"onnxruntime differs from PyTorch by {error:.2g} (largest output {scale:.3g})")
    return {
        "ir": proto_version(path),
        "opset": opset,
        "nodes": nodes,
        "error": "",
        "relative_error": error,
        "largest_output": scale,
    }


def proto_version(path: Path) -> int:
    """Return the IR version, which is the first field of the file."""
    with path.open("rb") as stream:
        head = stream.read(2)
    return head[1] if head[0] == 8 else 0


if __name__ == "__main__":
    sys.exit(main())
