"""Train the net of sample 02 and write ``digits_transformer.onnx`` (a few minutes).

    pip install -e ".[train]"
    python samples/train/train_transformer.py

A small vision transformer: 16 patches of 2x2 pixels, width 64, two blocks of 4 heads of 16, feed-forward width
192, exported with PyTorch's newer (dynamo) exporter.
"""

from __future__ import annotations

import onnx
import torch
from torch import Tensor, nn
from training import SAMPLES, Slice, accuracy, digits, train

OUT = SAMPLES / "02_digits_transformer" / "digits_transformer.onnx"
WIDTH, HEADS, HIDDEN = 64, 4, 192


class Block(nn.Module):
    """Pre-norm attention and feed-forward, both added to what came in."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.project = nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, WIDTH)
        self.drop, self.drop_heads = nn.Dropout(0.1), nn.Dropout2d(0.1)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        y = self.norm1(x)
        parts = (layer(y).reshape(batch, tokens, HEADS, -1) for layer in (self.query, self.key, self.value))
        query, key, value = (part.transpose(1, 2) for part in parts)
        weights = (query @ key.transpose(2, 3) / (WIDTH // HEADS) ** 0.5).softmax(-1)
        heads = self.drop_heads(weights @ value)
        x = x + self.project(heads.transpose(1, 2).reshape(batch, tokens, -1))
        return x + self.down(self.drop(nn.functional.gelu(self.up(self.norm2(x)))))


class DigitsTransformer(nn.Module):
    """8x8 images in, 10 logits out."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(1, WIDTH, 2, 2)
        self.position = nn.Parameter(torch.randn(1, 16, WIDTH) * 0.02)
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.norm, self.fc = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 10)

    def forward(self, image: Tensor) -> Tensor:
        x = self.embed(image).flatten(2).transpose(1, 2) + self.position
        for block in self.blocks:
            x = block(x)
        return self.fc(self.norm(x).mean(1))


def rows(layer: nn.Linear, units: int) -> list[Slice]:
    """Return the weights and biases that make each of `units` equal parts of the output."""
    return [lambda: layer.weight.reshape(units, -1), lambda: layer.bias.reshape(units, -1)]


def columns(layer: nn.Linear, units: int) -> Slice:
    """Return the weights that read each of `units` equal parts of the input."""
    return lambda: layer.weight.transpose(0, 1).reshape(units, -1)


def unit_groups(net: DigitsTransformer) -> list[list[Slice]]:
    """Return the parameters of each head and of each feed-forward neuron, per block."""
    groups = []
    for block in net.blocks:
        assert isinstance(block, Block)
        made = [part for layer in (block.query, block.key, block.value) for part in rows(layer, HEADS)]
        groups.append([*made, columns(block.project, HEADS)])
        groups.append([*rows(block.up, HIDDEN), columns(block.down, HIDDEN)])
    return groups


def drop_stack_traces() -> None:
    """Remove the exporter's notes on nodes: they hold the paths of the machine that trained the net."""
    model = onnx.load(OUT)
    for node in model.graph.node:
        del node.metadata_props[:]
    onnx.save(model, OUT)


def main() -> None:
    """Train, print the held-out accuracy, export."""
    torch.manual_seed(0)
    net = DigitsTransformer()
    train(net, unit_groups(net), strength=5e-5, epochs=150, rate=1.5e-3)
    data = digits()
    print(f"held-out accuracy {accuracy(net, data['test_x'], data['test_y']):.4f}")
    torch.onnx.export(
        net,
        (data["test_x"][:2],),
        str(OUT),
        input_names=["image"],
        output_names=["logits"],
        dynamic_shapes={"image": {0: torch.export.Dim("batch")}},
        dynamo=True,
        external_data=False,
    )
    drop_stack_traces()
    print(f"{OUT.name}: {OUT.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
