"""Wirings that the model libraries lack: U-Nets, recurrent nets, pixel shuffles, 1-d and 3-d convolutions, a
YOLO-like detector."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional

from benchmarks.zoo.entry import Axes, Built, Entry


def own_entries() -> list[Entry]:
    """Return the models of this file by their function's name."""

    def entry(build: Callable[[], Built]) -> Entry:
        return Entry(f"own_{build.__name__}", build, 1.0)

    return [
        entry(build)
        for build in (unet, unet_group_norm, unet_3d, espcn, crnn, gru_tagger, tcn, yolo, shuffle_attention)
    ]


def _block(inputs: int, outputs: int, norm: str = "batch") -> nn.Sequential:
    norms: dict[str, Callable[[int], nn.Module]] = {
        "batch": nn.BatchNorm2d,
        "group": lambda c: nn.GroupNorm(4, c),
    }
    norms["instance"] = lambda c: nn.InstanceNorm2d(c, affine=True)
    layers = [nn.Conv2d(inputs, outputs, 3, padding=1), norms[norm](outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv2d(outputs, outputs, 3, padding=1), norms[norm](outputs), nn.ReLU())


class UNet(nn.Module):
    """Ronneberger et al., 2015, rising by transposed convolutions or by resizes to the skip's size."""

    def __init__(self, norm: str, transposed: bool, widths: tuple[int, ...] = (16, 32, 64, 96)) -> None:
        super().__init__()
        self.down = nn.ModuleList(_block(i, o, norm) for i, o in zip((3, *widths[:-1]), widths, strict=True))
        pairs = list(zip(widths[:0:-1], widths[-2::-1], strict=True))
        self.rise = nn.ModuleList(
            nn.ConvTranspose2d(i, o, 2, 2) if transposed else nn.Conv2d(i, o, 1) for i, o in pairs
        )
        self.up = nn.ModuleList(_block(2 * o, o, norm) for _, o in pairs)
        self.head = nn.Conv2d(widths[0], 5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        skips = []
        for level, block in enumerate(self.down):
            x = block(functional.max_pool2d(x, 2) if level else x)
            skips.append(x)
        for rise, block, skip in zip(self.rise, self.up, skips[-2::-1], strict=True):
            if isinstance(rise, nn.Conv2d):
                x = functional.interpolate(x, size=skip.shape[2:], mode="bilinear", align_corners=False)
            x = block(torch.cat([skip, rise(x)], 1))
        return torch.as_tensor(self.head(x))


def unet() -> Built:
    """U-Net with transposed convolutions and BatchNorm, symbolic height and width."""
    axes: Axes = {"image": {0: "batch", 2: "height", 3: "width"}}
    return Built(UNet("batch", transposed=True), {"image": torch.randn(2, 3, 64, 48)}, axes)


def unet_group_norm() -> Built:
    """U-Net with GroupNorm and resizes to the skip's size."""
    return Built(UNet("group", transposed=False), {"image": torch.randn(1, 3, 64, 64)})


def unet_3d() -> Built:
    """A 3-d encoder and decoder with InstanceNorm, one skip connection."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Sequential(
                nn.Conv3d(1, 16, 3, padding=1), nn.InstanceNorm3d(16, affine=True), nn.LeakyReLU(0.1)
            )
            self.deep = nn.Sequential(
                nn.Conv3d(16, 32, 3, 2, 1), nn.InstanceNorm3d(32, affine=True), nn.PReLU(32)
            )
            self.rise = nn.ConvTranspose3d(32, 16, 2, 2)
            self.head = nn.Conv3d(32, 3, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            first = self.first(x)
            return torch.as_tensor(self.head(torch.cat([first, self.rise(self.deep(first))], 1)))

    return Built(Net(), {"volume": torch.randn(1, 1, 8, 16, 16)})


def espcn() -> Built:
    """Super-resolution with two pixel shuffles (Shi et al., 2016) and a global residual."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(3, 32, 5, padding=2)
            self.middle = nn.Conv2d(32, 64, 3, padding=1)
            self.after = nn.Conv2d(16, 12, 3, padding=1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = functional.pixel_shuffle(torch.tanh(self.middle(torch.tanh(self.first(x)))), 2)
            y = functional.pixel_shuffle(self.after(y), 2)
            return y + functional.interpolate(x, scale_factor=4.0, mode="nearest")

    return Built(Net(), {"image": torch.randn(1, 3, 24, 24)}, {"image": {2: "height", 3: "width"}})


def crnn() -> Built:
    """Text recognition (Shi et al., 2015): convolutions, then a bidirectional LSTM over the columns."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(
                _block(1, 16), nn.MaxPool2d(2), _block(16, 32), nn.MaxPool2d(2), _block(32, 48)
            )
            self.lstm = nn.LSTM(48 * 8, 40, num_layers=2, bidirectional=True, batch_first=True)
            self.head = nn.Linear(80, 37)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            columns = self.body(x).permute(0, 3, 1, 2).flatten(2)
            return functional.log_softmax(self.head(self.lstm(columns)[0]), -1)

    return Built(Net(), {"image": torch.randn(1, 1, 32, 64)})


def gru_tagger() -> Built:
    """An embedding, a GRU and an LSTM over tokens, a linear head."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(500, 48)
            self.gru = nn.GRU(48, 64, batch_first=True)
            self.lstm = nn.LSTM(64, 32, batch_first=True)
            self.head = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 9))

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return torch.as_tensor(self.head(self.lstm(self.gru(self.embed(ids))[0])[0]))

    return Built(Net(), {"ids": torch.randint(0, 500, (1, 11))})


def tcn() -> Built:
    """1-d separable dilated convolutions, masks, skip sums, after Conv-TasNet (Luo and Mesgarani, 2019)."""

    class Block(nn.Module):
        def __init__(self, dilation: int) -> None:
            super().__init__()
            self.wide = nn.Sequential(nn.Conv1d(32, 64, 1), nn.PReLU(), nn.GroupNorm(1, 64))
            self.depth = nn.Conv1d(64, 64, 3, padding=dilation, dilation=dilation, groups=64)
            self.act = nn.Sequential(nn.PReLU(64), nn.BatchNorm1d(64))
            self.out, self.skip = nn.Conv1d(64, 32, 1), nn.Conv1d(64, 24, 1)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            y = self.act(self.depth(self.wide(x)))
            return x + self.out(y), self.skip(y)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encode, self.narrow = nn.Conv1d(1, 48, 16, 8), nn.Conv1d(48, 32, 1)
            self.blocks = nn.ModuleList(Block(2**k) for k in range(4))
            self.mask = nn.Conv1d(24, 2 * 48, 1)
            self.decode = nn.ConvTranspose1d(48, 1, 16, 8)

        def forward(self, audio: torch.Tensor) -> torch.Tensor:
            features = torch.relu(self.encode(audio))
            x, total = self.narrow(features), torch.zeros(1)
            for block in self.blocks:
                x, skip = block(x)
                total = total + skip
            masks = torch.sigmoid(self.mask(total)).chunk(2, 1)
            return torch.cat([self.decode(features * mask) for mask in masks], 1)

    return Built(Net(), {"audio": torch.randn(1, 1, 1600)})


def yolo() -> Built:
    """C2f blocks, pyramid pooling, a two-level neck, a decoupled head distributed boxes, after YOLOv8."""

    class Conv(nn.Sequential):
        def __init__(self, i: int, o: int, kernel: int = 3, stride: int = 1) -> None:
            super().__init__(
                nn.Conv2d(i, o, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(o), nn.SiLU()
            )

    class C2f(nn.Module):
        def __init__(self, i: int, o: int, count: int = 2) -> None:
            super().__init__()
            self.enter, self.leave = Conv(i, o, 1), Conv((2 + count) * o // 2, o, 1)
            self.steps = nn.ModuleList(
                nn.Sequential(Conv(o // 2, o // 2), Conv(o // 2, o // 2)) for _ in range(count)
            )

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            parts = list(self.enter(x).chunk(2, 1))
            for step in self.steps:
                parts.append(parts[-1] + step(parts[-1]))
            return torch.as_tensor(self.leave(torch.cat(parts, 1)))

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Sequential(
                Conv(3, 16, 3, 2), Conv(16, 32, 3, 2), C2f(32, 32), Conv(32, 64, 3, 2), C2f(64, 64)
            )
            self.deep = nn.Sequential(Conv(64, 96, 3, 2), C2f(96, 96))
            self.reduce, self.merge = Conv(96, 48, 1), Conv(4 * 48, 96, 1)
            self.neck = C2f(96 + 64, 64)
            self.boxes = nn.ModuleList(nn.Sequential(Conv(c, 32), nn.Conv2d(32, 64, 1)) for c in (64, 96))
            self.classes = nn.ModuleList(nn.Sequential(Conv(c, 40), nn.Conv2d(40, 12, 1)) for c in (64, 96))
            self.register_buffer("bins", torch.arange(16, dtype=torch.float).view(1, 16, 1, 1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            fine = self.stem(x)
            pools = [self.reduce(self.deep(fine))]
            for _ in range(3):
                pools.append(functional.max_pool2d(pools[-1], 5, 1, 2))
            coarse = self.merge(torch.cat(pools, 1))
            fine = self.neck(torch.cat([functional.interpolate(coarse, scale_factor=2.0), fine], 1))
            levels = [
                torch.cat([b(f), c(f)], 1).flatten(2)
                for b, c, f in zip(self.boxes, self.classes, (fine, coarse), strict=True)
            ]
            box, score = torch.cat(levels, 2).split((64, 12), 1)
            distribution = box.view(1, 4, 16, -1).transpose(2, 1).softmax(1)
            return torch.cat([(distribution * self.bins).sum(1), score.sigmoid()], 1)

    return Built(Net(), {"images": torch.randn(1, 3, 96, 96)})


def shuffle_attention() -> Built:
    """Channel shuffle, spatial and channel attention, einsum attention over positions."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.grouped = nn.Conv2d(3, 48, 3, 2, 1), nn.Conv2d(48, 96, 3, 2, 1, groups=4)
            self.channel = nn.Sequential(nn.Linear(96, 12), nn.ReLU(), nn.Linear(12, 96))
            self.spatial, self.qkv, self.out = (
                nn.Conv2d(2, 1, 7, padding=3),
                nn.Conv2d(96, 3 * 64, 1),
                nn.Conv2d(64, 96, 1),
            )
            self.head = nn.Linear(96, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = torch.relu(self.grouped(torch.relu(self.stem(x))))
            x = x.view(1, 4, 24, *x.shape[2:]).transpose(1, 2).flatten(1, 2)
            x = (
                x
                * torch.sigmoid(self.channel(x.mean((2, 3))) + self.channel(x.amax((2, 3))))[:, :, None, None]
            )
            x = x * torch.sigmoid(
                self.spatial(torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1))
            )
            q, k, v = self.qkv(x).flatten(2).view(1, 3, 4, 16, -1).unbind(1)
            weights = torch.einsum("bhdi,bhdj->bhij", q, k).mul(0.25).softmax(-1)
            mixed = torch.einsum("bhij,bhdj->bhdi", weights, v).reshape(1, 64, *x.shape[2:])
            return torch.as_tensor(self.head((x + self.out(mixed)).mean((2, 3))))

    return Built(Net(), {"image": torch.randn(1, 3, 64, 64)})
