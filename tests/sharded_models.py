"""A net whose layers are of all kinds that moments are taken of."""

import onnx
from small_models import Builder


def kinds() -> onnx.ModelProto:
    """A weight that two nodes use, a depthwise convolution, a layer whose rows are kept, and one with many outputs."""
    b = Builder(3)
    b.weight("shared", 6, 6, 3, 3)
    x = "x"
    for name in ("one", "two"):
        x = b.op("Relu", [b.op("Conv", [x, "shared"], name, pads=[1] * 4)], f"{name}.relu")
    x = b.op("Conv", [x, b.weight("deep", 6, 1, 3, 3)], "depthwise", group=6, pads=[1] * 4)
    x = b.op("Flatten", [b.op("Relu", [b.conv(x, "wide", 6, 73)], "wide.relu")], "flat")
    x = b.op("Relu", [b.linear(x, "narrow", 73 * 64, 24)], "narrow.relu")
    return b.model({"x": ["N", 6, 8, 8]}, b.linear(x, "many", 24, 3000))
