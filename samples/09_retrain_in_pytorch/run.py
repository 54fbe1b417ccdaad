"""Cut a net, train it again in PyTorch, make zeros, train on with the masks, and come back each time."""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "train"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import numpy as np
import onnx
import onnxruntime as ort
import torch
from carry import cut_state, keep_zeros, load, masks_of, shrink, store
from common import CNN, accuracy, folder, held_out, onnxprune
from torch import nn
from train_cnn import DigitsCnn
from training import digits, shifted


def train(net: nn.Module, epochs: int, rate: float, masks: dict[str, torch.Tensor]) -> None:
    data, generator = digits(), torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(net.parameters(), lr=rate)
    steps = epochs * -(-len(data["train_x"]) // 64)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    net.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(data["train_x"]), generator=generator).split(64):
            x, y = shifted(data["train_x"][batch], generator), data["train_y"][batch]
            loss = nn.functional.cross_entropy(net(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            keep_zeros(net, masks)
    net.eval()


def main() -> None:
    torch.manual_seed(0)
    with folder() as out:
        plan, small = out / "plan.json", out / "small.onnx"
        onnxprune("prune", CNN, small, "--ratio", "0.75", "--align", "8", "--plan", plan, show=False)
        original, model = onnx.load(CNN), onnx.load(small)

        net = DigitsCnn()
        load(net, original)
        state = cut_state(net.state_dict(), json.loads(plan.read_text(encoding="utf-8")))
        shrink(net, model)
        net.load_state_dict(state)
        net.eval()
        x = held_out()[0]
        (given,) = ort.InferenceSession(str(small)).run(None, {"image": x})
        with torch.no_grad():
            apart = np.abs(net(torch.from_numpy(x)).numpy() - given).max() / np.abs(given).max()
        print(f"module and file, both cut by the plan, differ by {apart:.1e}")
        print(f"accuracy {accuracy(CNN):.2%}, cut {accuracy(small):.2%}")

        train(net, 15, 2e-3, {})
        onnx.save(store(net, model), out / "trained.onnx")
        print(f"trained in PyTorch, back in the file: {accuracy(out / 'trained.onnx'):.2%}")

        zeros = out / "zeros.onnx"
        onnxprune(
            "sparsify",
            out / "trained.onnx",
            zeros,
            "--pattern",
            "unstructured",
            "--sparsity",
            "0.5",
            show=False,
        )
        load(net, onnx.load(zeros))
        masks = masks_of(net)
        train(net, 10, 1e-3, masks)
        final = store(net, onnx.load(zeros))
        onnx.save(final, out / "final.onnx")
        kept = sum(int(mask.sum()) for mask in masks.values()) / sum(mask.numel() for mask in masks.values())
        print(
            f"half zeros: {accuracy(zeros):.2%}, trained with {kept:.0%} of the weights: {accuracy(final):.2%}"
        )


if __name__ == "__main__":
    main()
