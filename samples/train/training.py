"""What both training scripts share: the data, the penalty that makes width redundant, the loop.

The penalty is group sparsity (group lasso over everything that belongs to one channel, as in Fang et al.,
"DepGraph: Towards Any Structural Pruning", CVPR 2023, section 3.3). It is ordinary regularisation: it
pulls whole channels towards zero, so the nets keep most of their accuracy when channels are cut and
nothing is trained afterwards. A net trained without it would lose more; do not read the samples' accuracy as
a promise for such nets.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

SAMPLES = Path(__file__).resolve().parents[1]

Slice = Callable[[], Tensor]
"""A view of some parameters with the channel first: ``(channels, ...)``."""


def digits() -> dict[str, Tensor]:
    """Return the fixed split, images as float32 ``(n, 1, 8, 8)`` in 0..1."""
    with np.load(SAMPLES / "data" / "digits.npz") as data:
        out = {}
        for part in ("train", "test"):
            out[f"{part}_x"] = torch.from_numpy(data[f"{part}_x"].astype(np.float32) / 16.0).unsqueeze(1)
            out[f"{part}_y"] = torch.from_numpy(data[f"{part}_y"].astype(np.int64))
    return out


def group_lasso(groups: list[list[Slice]]) -> Tensor:
    """Sum over units of ``weight * sqrt(parameters of the unit) * L2 norm of them``, per group.

    The weakest unit of a group weighs 16 times as much as the strongest (equations 3 and 4 of the paper
    above), so that a group parts into units that matter and units that don't.
    """
    total = torch.zeros(())
    for members in groups:
        joint = torch.cat([member().flatten(1) for member in members], 1)
        norm = (joint.square().sum(1) + 1e-12).sqrt()
        fixed = norm.detach()
        weight = 2 ** (4 * (fixed.max() - fixed) / (fixed.max() - fixed.min() + 1e-12))
        total = total + joint.shape[1] ** 0.5 * (weight * norm).sum()
    return total


def shifted(x: Tensor, generator: torch.Generator) -> Tensor:
    """Move each image by at most one pixel in each direction (zeros come in)."""
    padded = nn.functional.pad(x, (1, 1, 1, 1))
    dy, dx = torch.randint(0, 3, (2, len(x)), generator=generator)
    rows = (dy[:, None] + torch.arange(8))[:, :, None]
    cols = (dx[:, None] + torch.arange(8))[:, None, :]
    return padded[torch.arange(len(x))[:, None, None], 0, rows, cols].unsqueeze(1)


@torch.no_grad()
def accuracy(net: nn.Module, x: Tensor, y: Tensor) -> float:
    """Return the share of right answers."""
    net.eval()
    return float((net(x).argmax(1) == y).float().mean())


def train(net: nn.Module, groups: list[list[Slice]], *, strength: float, epochs: int, rate: float) -> None:
    """Train `net` in place with cross-entropy plus ``strength * group_lasso(groups)``."""
    torch.set_flush_denormal(True)  # channels that fade away would otherwise slow every step down
    data = digits()
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(net.parameters(), lr=rate, weight_decay=1e-4)
    steps = -(-len(data["train_x"]) // 64)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=epochs * steps)
    for epoch in range(epochs):
        net.train()
        for batch in torch.randperm(len(data["train_x"]), generator=generator).split(64):
            x, y = shifted(data["train_x"][batch], generator), data["train_y"][batch]
            loss = nn.functional.cross_entropy(net(x), y, label_smoothing=0.05)
            loss = loss + strength * group_lasso(groups)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        if (epoch + 1) % 10 == 0:
            held_out = accuracy(net, data["test_x"], data["test_y"])
            print(f"epoch {epoch + 1:3d}  loss {loss.item():.4f}  held-out accuracy {held_out:.4f}")
    net.eval()
