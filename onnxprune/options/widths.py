"""Which width step suits this machine's onnxruntime.

onnxruntime's blocked layout (NCHWc) handles channels in blocks of one vector register: 16 floats with AVX-512, 8 on
any other x86-64. The cost of a layer is a staircase with steps of that block, and off the steps it can rise above
that of the layer before the cut. On ARM64 the block, in builds that have it, and the packing of matrix products
both take 16. Anything else gets 8, on which a wider step's steps lie too.
"""

from __future__ import annotations

import ctypes
import platform
import subprocess
import sys
from functools import cache
from pathlib import Path

__all__ = ["PRESETS", "align_step", "step_of", "vector_unit"]

#: Vector unit -> channels. Where onnxruntime's own choice isn't known, 8 does little harm.
STEPS = {"avx512": 16, "avx2": 8, "arm64": 16, "other": 8}

#: Name of a target -> channels: what --align takes instead of a number.
PRESETS = {
    "ort-avx512": 16,
    "ort-avx2": 8,
    "trt-fp16": 8,
    "trt-fp16-2:4": 16,
    "trt-int8": 32,
    "qualcomm-htp": 32,
    "coreml": 16,
    "openvino-sparse": 64,
}

#: PF_AVX512F_INSTRUCTIONS_AVAILABLE and PF_AVX2_INSTRUCTIONS_AVAILABLE of winnt.h.
_WINDOWS_AVX512, _WINDOWS_AVX2 = 41, 40


def align_step() -> int:
    """Return the step of widths for this machine, in channels."""
    return STEPS[vector_unit()]


def step_of(align: str | int | None) -> int:
    """Return the step of widths that ``--align`` asks for, in channels."""
    return align_step() if align == "auto" else int(align or 1)


@cache
def vector_unit() -> str:
    """Return ``avx512``, ``avx2``, ``arm64`` or ``other``: what onnxruntime's kernels will run on here."""
    machine = platform.machine().lower()
    if machine in ("arm64", "aarch64"):
        return "arm64"
    if machine not in ("x86_64", "amd64"):
        return "other"
    if sys.platform == "win32":
        return _windows()
    return unit_of(_darwin() if sys.platform == "darwin" else _linux())


def unit_of(flags: str) -> str:
    """Read the names that a kernel gives a processor's features.

    Examples
    --------
    >>> unit_of("fpu sse4_2 avx2 avx512f"), unit_of("FPU AVX1.0 AVX2"), unit_of("")
    ('avx512', 'avx2', 'other')
    """
    names = set(flags.lower().split())
    if "avx512f" in names:
        return "avx512"
    return "avx2" if "avx2" in names else "other"


def _linux() -> str:
    """Return the flags of the first core; the kernel lists only what it lets programs use."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    for line in text.splitlines():
        name, _, flags = line.partition(":")
        if name.strip() == "flags":
            return flags
    return ""


def _darwin() -> str:
    command = ["/usr/sbin/sysctl", "-n", "machdep.cpu.features", "machdep.cpu.leaf7_features"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=5, check=False).stdout
    except (OSError, subprocess.SubprocessError):
        return ""


def _windows() -> str:
    kernel32 = getattr(getattr(ctypes, "windll", None), "kernel32", None)
    if kernel32 is None:
        return "other"
    if kernel32.IsProcessorFeaturePresent(_WINDOWS_AVX512):
        return "avx512"
    return "avx2" if kernel32.IsProcessorFeaturePresent(_WINDOWS_AVX2) else "other"
