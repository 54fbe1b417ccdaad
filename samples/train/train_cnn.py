"""Train the net of sample 01 and write ``digits_cnn.onnx`` (under a minute).

    pip install -e ".[train]"
    python samples/train/train_cnn.py

A residual block, a depthwise separable block and a grouped convolution, exported with the TorchScript-based
exporter at opset 17 and with BatchNormalization kept as a node, as in many files in the wild.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from training import SAMPLES, Slice, accuracy, digits, train

OUT = SAMPLES / "01_digits_cnn" / "digits_cnn.onnx"


def conv(cin: int, cout: int, size: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Return a convolution and its BatchNorm."""
    return nn.Sequential(
        nn.Conv2d(cin, cout, size, stride, size // 2, groups=groups, bias=False), nn.BatchNorm2d(cout)
    )


class DigitsCnn(nn.Module):
    """8x8 images in, 10 logits out."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(1, 32)
        self.res1, self.res2 = conv(32, 32), conv(32, 32)
        self.down = conv(32, 64, stride=2)
        self.depthwise, self.pointwise = conv(64, 64, groups=64), conv(64, 64, 1)
        self.grouped = conv(64, 64, groups=8)
        self.last = conv(64, 128, 1)
        self.drop = nn.Dropout2d(0.1)
        self.drop_groups = nn.Dropout1d(0.25)
        self.fc = nn.Linear(128, 10)

    def forward(self, image: Tensor) -> Tensor:
        x = self.stem(image).relu()
        x = (x + self.res2(self.drop(self.res1(x).relu()))).relu()
        x = self.down(self.drop(x)).relu()
        x = self.pointwise(self.depthwise(x).relu()).relu()
        x = self.grouped(x).relu()
        if self.training:
            x = self.drop_groups(x.reshape(len(x), 8, -1)).reshape(x.shape)
        x = self.drop(self.last(x).relu())
        return self.fc(x.mean((2, 3)))


def out_of(block: nn.Module) -> list[Slice]:
    """Return what makes a channel of `block`: its filter and its BatchNorm scale."""
    assert isinstance(block, nn.Sequential)
    return [lambda: block[0].weight, lambda: block[1].weight.unsqueeze(1)]


def into(block: nn.Module) -> Slice:
    """Return what reads each input channel of an ungrouped convolution."""
    assert isinstance(block, nn.Sequential)
    return lambda: block[0].weight.transpose(0, 1)


def by_group(part: Slice) -> Slice:
    """Return the same parameters with the 8 groups of the grouped convolution first."""
    return lambda: part().reshape(8, -1)


def channel_groups(net: DigitsCnn) -> list[list[Slice]]:
    """Return, for each set of channels that live and die together, their parameters."""
    return [
        [*out_of(net.stem), *out_of(net.res2), into(net.res1), into(net.down)],
        [*out_of(net.res1), into(net.res2)],
        [*out_of(net.down), *out_of(net.depthwise), into(net.pointwise)],
        # The grouped convolution is cut by whole groups of 8 channels: those are its unit, on both sides.
        [by_group(part) for part in [*out_of(net.pointwise), *out_of(net.grouped), into(net.last)]],
        [*out_of(net.last), lambda: net.fc.weight.transpose(0, 1)],
    ]


def main() -> None:
    """Train, print the held-out accuracy, export."""
    torch.manual_seed(0)
    net = DigitsCnn()
    train(net, channel_groups(net), strength=1.5e-4, epochs=80, rate=4e-3)
    data = digits()
    print(f"held-out accuracy {accuracy(net, data['test_x'], data['test_y']):.4f}")
    torch.onnx.export(
        net,
        (data["test_x"][:2],),
        str(OUT),
        input_names=["image"],
        output_names=["logits"],
        dynamic_axes={"image": {0: "batch"}, "logits": {0: "batch"}},
        opset_version=17,
        dynamo=False,
        training=torch.onnx.TrainingMode.PRESERVE,  # the net is in eval mode; this only keeps BatchNorm apart
        do_constant_folding=False,
    )
    print(f"{OUT.name}: {OUT.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
