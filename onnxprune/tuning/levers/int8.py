"""Integers of eight bits, by onnxruntime's own quantiser: static Q/DQ with the samples, or dynamic.

Weights have seven bits where onnxruntime's sums would saturate otherwise (x86 without VNNI): accuracy falls by points
then, and nothing says why.
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx

from onnxprune.calibration.samples import Samples
from onnxprune.errors import OnnxPruneError
from onnxprune.files.holding import scratch
from onnxprune.model import Model
from onnxprune.runtime.saturation import saturates

__all__ = ["AIMS", "SETTINGS", "apply"]

AIMS = ("latency", "bytes")
SETTINGS = ("static", "dynamic")
#: Samples that ranges of activations are taken from.
MOST = 256
#: Levels of onnxruntime's log.
WARNING, FATAL = 2, 4
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
        ``static`` or ``dynamic``.
    samples : Samples
        For the ranges of activations.

    Raises
    ------
    OnnxPruneError
        If the quantiser doesn't take the model.
    """
    from onnxruntime import quantization as ort

    opset = next(
        (
            o.version
            for o in onnx.load(source, load_external_data=False).opset_import
            if o.domain in ("", "ai.onnx")
        ),
        0,
    )
    form = {
        "weight_type": ort.QuantType.QInt8,
        "per_channel": opset >= PER_CHANNEL,
        "reduce_range": saturates(),
    }
    with scratch() as place, _quiet():
        ready, made = place / "ready.onnx", place / "int8.onnx"
        try:
            ort.shape_inference.quant_pre_process(str(source), str(ready), skip_symbolic_shape=True)
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
        onnxruntime.set_default_logger_severity(
            WARNING
        )  # its own default: what was set before can't be asked
        logging.disable(before)
