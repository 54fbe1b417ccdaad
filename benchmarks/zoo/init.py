"""Random but well conditioned weights for the zoo, in which no two vectors are equal by accident.

Freshly built models are full of equal tensors (zero biases, unit scales, BatchNorm statistics 0 and 1).
Exporters share equal initializers, which couples channels that have nothing to do with each other; and a
zero bias hides every mistake in a bias. `randomise` therefore gives each such tensor values of its own and
sets BatchNorm's running statistics near those of its real input, so that deep nets neither explode nor die
out.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

# Layer scales start at 1e-6: a branch multiplied by that could be cut wrongly and nobody would see it.
TINY = 1e-3


def define_torchvision_operators() -> None:
    """Declare `torchvision::nms` and `qnms`: torchvision is not imported without them."""
    if hasattr(torch.ops.torchvision, "nms"):
        return
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    define_torchvision_operators.library = library  # type: ignore[attr-defined]  # the definition lives as long as this object


def randomise(model: nn.Module, inputs: tuple[Any, ...], seed: int = 0) -> nn.Module:
    """Give constant tensors distinct random values, calibrate BatchNorm on `inputs`, return in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    model.eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.is_floating_point():
                _spread(name, parameter, generator)
        _calibrate_batch_norm(model, inputs, generator)
    return model


def _spread(name: str, parameter: torch.Tensor, generator: torch.Generator) -> None:
    """Replace a constant parameter by random values: scales in 0.5..1.5, biases around 0."""
    first = parameter.reshape(-1)[0].item() if parameter.numel() else 0.0
    if not parameter.numel() or not bool((parameter == first).all()):
        return
    vector = parameter.ndim <= 1
    scale = torch.empty(parameter.shape).uniform_(0.5, 1.5, generator=generator)
    if first == 0.0 and vector and name.endswith(("weight", "gain", "gamma")):
        parameter.copy_(scale)  # the scale of a residual branch's last norm, initialised to zero
    elif first == 0.0:
        width = 0.3 if vector else 0.05
        parameter.copy_(torch.empty(parameter.shape).normal_(0.0, width, generator=generator))
    else:
        parameter.copy_(scale * (1.0 if abs(first) < TINY else first))


def _calibrate_batch_norm(model: nn.Module, inputs: tuple[Any, ...], generator: torch.Generator) -> None:
    """Set running statistics from one forward pass, each variance times a factor of its own in 0.5..1.5."""

    def before(module: nn.Module, args: tuple[Any, ...]) -> None:
        mean, var = _statistics(args[0].float())
        factor = torch.empty(var.shape).uniform_(0.5, 1.5, generator=generator)
        shift = torch.empty(var.shape).normal_(0.0, 0.2, generator=generator)
        module.running_var.copy_(var * factor)
        module.running_mean.copy_(mean + shift * var.sqrt())

    norms = [m for m in model.modules() if getattr(m, "running_var", None) is not None]
    hooks = [norm.register_forward_pre_hook(before) for norm in norms]
    if hooks:
        model(*inputs)
    for hook in hooks:
        hook.remove()
    for norm in norms:  # a norm that the pass did not reach (an auxiliary head) still gets values of its own
        if bool((norm.running_var == 1).all()):
            norm.running_var.uniform_(0.5, 1.5, generator=generator)
            norm.running_mean.normal_(0.0, 0.3, generator=generator)


def _statistics(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and variance per channel, the latter blended with the layer's: a channel may be flat."""
    flat = x.transpose(0, 1).flatten(1)  # (channels, batch * positions)
    mean = flat.mean(1)
    overall = x.var() if x.numel() > 1 else torch.tensor(1.0)
    var = flat.var(1) if flat.shape[1] > 1 else torch.zeros_like(mean)
    return mean, 0.7 * var + 0.3 * overall + 1e-4
