"""Carry a cut from an ONNX file into a PyTorch module, and the trained weights back, by the names of the parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn


def weights_of(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """Return the weights of a file by name."""
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def cut_state(state: Mapping[str, Tensor], plan: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return a checkpoint without what the plan removes; it may hold weights, averages of them, or momentum."""
    made = dict(state)
    for cut in plan["cuts"]:
        if cut["tensor"] in made:
            whole = made[cut["tensor"]]
            kept = np.setdiff1d(np.arange(whole.shape[cut["axis"]]), cut["removed"])
            made[cut["tensor"]] = whole.index_select(cut["axis"], torch.from_numpy(kept))
    return made


def shrink(net: nn.Module, model: onnx.ModelProto) -> None:
    """Make the layers of a module as wide as those of a file; their weights are to be loaded then."""
    weights = weights_of(model)
    groups = {
        node.input[1]: next((a.i for a in node.attribute if a.name == "group"), 1)
        for node in model.graph.node
        if node.op_type in ("Conv", "ConvTranspose")
    }
    for name, module in net.named_modules():
        for kind, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            made = weights.get(f"{name}.{kind}")
            if made is None or made.shape == tensor.shape:
                continue
            empty = torch.empty(made.shape, dtype=tensor.dtype)
            setattr(module, kind, nn.Parameter(empty) if isinstance(tensor, nn.Parameter) else empty)
        shape = getattr(getattr(module, "weight", None), "shape", ())
        if isinstance(module, nn.Conv2d):
            module.groups = groups[f"{name}.weight"]
            module.out_channels, module.in_channels = shape[0], shape[1] * module.groups
        elif isinstance(module, nn.Linear):
            module.out_features, module.in_features = shape
        elif isinstance(module, nn.BatchNorm2d):
            module.num_features = shape[0]


def load(net: nn.Module, model: onnx.ModelProto) -> None:
    """Put the weights of a file into a module of the same widths."""
    weights = weights_of(model)
    state = {name: torch.from_numpy(weights[name].copy()) for name in net.state_dict() if name in weights}
    missing = set(dict(net.named_parameters())) - set(state)
    if missing:
        raise SystemExit(
            f"{sorted(missing)[0]!r} is no weight of the file; was it exported under other names?"
        )
    net.load_state_dict(state, strict=False)


def store(net: nn.Module, model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the file's graph with the module's weights."""
    made, state = onnx.ModelProto(), net.state_dict()
    made.CopyFrom(model)
    for tensor in made.graph.initializer:
        if tensor.name in state:
            tensor.CopyFrom(numpy_helper.from_array(state[tensor.name].numpy(), tensor.name))
    return made


def masks_of(net: nn.Module) -> dict[str, Tensor]:
    """Return where the weights of layers aren't zero."""
    return {name: weight != 0 for name, weight in net.named_parameters() if weight.ndim > 1}


def keep_zeros(net: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Set to zero again what the masks leave out; call it after each step."""
    with torch.no_grad():
        for name, weight in net.named_parameters():
            if name in masks:
                weight.mul_(masks[name])
