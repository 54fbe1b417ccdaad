"""Integers of eight bits, by onnxruntime's own quantiser: static Q/DQ with the samples, of all that it quantises or of
products and convolutions alone, or dynamic.

All of a net of convolutions in integers is the fastest; the states of a transformer keep what they tell only where
nothing but its products is (an encoder of sentences: 40 points and 80, of 82). Before opset 13 a weight has one scale
for all channels, which loses most of them (a reader of text lines: 16 points instead of 1), so older models are
converted first.

Weights have seven bits where onnxruntime's sums would saturate otherwise (x86 without VNNI): accuracy falls by points
then, and nothing says why.
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.version_converter

from onnxprune.calibration.samples import Samples
from onnxprune.errors import OnnxPruneError
from onnxprune.files.holding import scratch
from onnxprune.model import Model
from onnxprune.ops import Trait, traits_of
from onnxprune.runtime.binding import real_inputs
from onnxprune.runtime.saturation import saturates
from onnxprune.runtime.session import open_session

__all__ = ["AIMS", "ENDS", "SETTINGS", "apply"]

_log = logging.getLogger("onnxprune.tuning")

AIMS = ("latency", "bytes")
SETTINGS = ("static", "layers", "dynamic")
ENDS = True
#: Samples that ranges of activations are taken from.
MOST = 256
#: Levels of onnxruntime's log.
WARNING, FATAL = 2, 4
#: From this version of the format on weights need not be inputs.
WEIGHTS_APART = 4
#: From this opset on a weight may have a scale for each channel.
PER_CHANNEL = 13


class _Batches:
    """Gives batches as onnxruntime's quantiser asks for them."""

    def __init__(self, samples: Samples) -> None:
        self.batches = iter(samples.few(MOST).batches)

    def get_next(self) -> dict[str, Any] | None:
        """Return the next batch, None at the end."""
        return next(self.batches, None)


def apply(source: Path, output: Path, setting: str, samples: Samples) -> None:
    """Write a quantised model.

    Parameters
    ----------
    source, output : Path
    setting : str
        ``static``, ``layers`` or ``dynamic``.
    samples : Samples
        For the ranges of activations.

    Raises
    ------
    OnnxPruneError
        If the quantiser doesn't take the model.
    """
    from onnxruntime import quantization as ort

    form: dict[str, Any] = {"weight_type": ort.QuantType.QInt8, "reduce_range": saturates()}
    with scratch() as place, _quiet():
        ready, made = place / "ready.onnx", place / "int8.onnx"
        closed = _without_defaults(source, place / "closed.onnx")
        recent = _recent(closed, place / "recent.onnx", samples.batches[0])
        try:
            ort.shape_inference.quant_pre_process(str(recent), str(ready), skip_symbolic_shape=True)
            plain = onnx.load(ready, load_external_data=False)
            if _flat_biases(plain):
                onnx.save(plain, ready)
            form["per_channel"] = _opset(plain) >= PER_CHANNEL
            if setting == "layers":
                layers = {n.op_type for n in plain.graph.node if Trait.GEMM in traits_of(n.op_type, n.domain)}
                form["op_types_to_quantize"] = sorted(layers)
            if setting == "dynamic":
                ort.quantize_dynamic(str(ready), str(made), **form)
            else:
                ort.quantize_static(
                    str(ready), str(made), _Batches(samples), quant_format=ort.QuantFormat.QDQ,
                    activation_type=ort.QuantType.QUInt8, **form,
                )  # fmt: skip
        except Exception as error:  # a library of Python, which fails in its own ways
            why = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            raise OnnxPruneError(f"onnxruntime's quantiser doesn't take the model ({why}).") from error
        Model.load(made).save(output)


def _opset(model: onnx.ModelProto) -> int:
    return next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0)


def _flat_biases(model: onnx.ModelProto) -> bool:
    """Make biases [1, N] of Gemm, which MatMul and Add become, [N]: the quantiser counts their channels along the first
    axis. Returns whether there were any.
    """
    found = False
    layers = [n for n in model.graph.node if Trait.GEMM in traits_of(n.op_type, n.domain)]
    biases = {n.input[2] for n in layers if len(n.input) > 2}
    times = Counter(name for n in model.graph.node for name in n.input)
    for tensor in model.graph.initializer:
        if tensor.name in biases and times[tensor.name] == 1 and [*tensor.dims[:-1]] == [1]:
            del tensor.dims[0]
            found = True
    return found


def _without_defaults(source: Path, place: Path) -> Path:
    """Return a file whose weights are no inputs, as which the quantiser's own runs ask for them; the given one if it is
    that.
    """
    model = onnx.load(source, load_external_data=False)
    if len(inputs := real_inputs(model.graph)) == len(model.graph.input):
        return source
    onnx.load_external_data_for_model(model, str(source.parent))
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    model.ir_version = max(model.ir_version, WEIGHTS_APART)
    onnx.save(model, place)
    return place


def _recent(source: Path, place: Path, batch: dict[str, Any]) -> Path:
    """Return a file whose weights may have a scale for each channel: the given one where it is that, or can't be
    converted, or gives something else then.
    """
    if _opset(onnx.load(source, load_external_data=False)) >= PER_CHANNEL:
        return source
    try:
        onnx.save(onnx.version_converter.convert_version(onnx.load(source), PER_CHANNEL), place)
        before, after = (open_session(Model.load(path)).run(batch) for path in (source, place))
    except Exception as error:  # libraries of C++, which fail in their own ways
        _log.info("not converted to opset %d: %s", PER_CHANNEL, error)
        return source
    same = all(np.allclose(before[n], after[n], rtol=1e-3, atol=1e-3) for n in before)
    return place if same else source


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what the quantiser, and the sessions that it opens, print and warn of to themselves."""
    import onnxruntime

    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    onnxruntime.set_default_logger_severity(FATAL)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        # its own default: what was set before can't be asked
        onnxruntime.set_default_logger_severity(WARNING)
        logging.disable(before)
