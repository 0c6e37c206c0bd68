"""The fixed part of a normalizer: a scale and a shift of each channel, checked against what the layer computed.

A layer in evaluation that normalizes with its history is nothing else. Any other keeps its statistics, and the
fixed part is its affine. Nothing is taken from a class's name: the formula must give the recorded output.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from evenorm.epilogue import Epilogue
from evenorm.layers import Layer
from evenorm.surgery.recognize import epilogue_inside, looks_like_norm
from evenorm.surgery.record import Call

__all__ = ["Fixed", "find_fixed", "is_normalizer", "remainder"]


@dataclass(frozen=True)
class Fixed:
    """y = scale · x̂ + shift along an axis; ``whole`` says that x̂ is the layer's very input."""

    scale: Tensor
    shift: Tensor
    axis: int
    whole: bool
    epilogue: Epilogue = field(default_factory=Epilogue)


def is_normalizer(module: nn.Module) -> bool:
    """Whether a module normalizes, be it with buffers alone."""
    buffers = module._buffers
    history = isinstance(buffers.get("running_mean"), Tensor) and isinstance(buffers.get("running_var"), Tensor)
    return isinstance(module, Layer) or history or looks_like_norm(module)


def find_fixed(layer: nn.Module, calls: list[Call]) -> Fixed | str | None:
    """The fixed part, the same in all calls; why there is none; ``None`` where it is the identity."""
    if layer.training:
        return "it is in training, where its statistics come from each batch"
    if not all(call.plain for call in calls):
        return "it is called with more than one tensor"
    found = [_of_history(layer, call) if _history(layer) else _of_affine(layer, call) for call in calls]
    different = next((f for f in found if not isinstance(f, Fixed) or f.axis != found[0].axis), None)  # type: ignore[union-attr]
    return found[0] if different is None else different if not isinstance(different, Fixed) else "its calls differ"


def _history(layer: Any) -> tuple[Tensor, Tensor] | None:
    mean, variance = (layer._buffers.get(name) for name in ("running_mean", "running_var"))
    if mean is None or variance is None or getattr(layer, "track_running_stats", True) is False:
        return None
    return mean, variance


def _of_history(layer: Any, call: Call) -> Fixed | str:
    history = _history(layer)
    eps = getattr(layer, "eps", None)
    assert history is not None
    if not isinstance(eps, (int, float)) or history[0].dim() != 1:
        return "its statistics do not lie on one axis, or it has no eps"
    mean, variance = (t.double() for t in history)
    weight, bias = getattr(layer, "weight", None), getattr(layer, "bias", None)
    scale = (variance + eps).rsqrt() * (1 if weight is None else weight.double())
    shift = (0 if bias is None else bias.double()) - mean * scale
    epilogue = layer.epilogue if isinstance(layer, Layer) else epilogue_inside(layer) or Epilogue()
    for axis in _axes(call.given, len(mean)):
        x, s, t = call.given.double(), _along(scale, axis, call.given), _along(shift, axis, call.given)
        most = float(((x * s).abs() + t.abs()).max())
        if _near(epilogue.apply(x * s + t), call.made, most):
            return Fixed(scale, shift, axis, whole=True, epilogue=epilogue)
    return "it computes more than a scale and a shift by its history"


def _of_affine(layer: Any, call: Call) -> Fixed | str | None:
    weight, bias = layer._parameters.get("weight"), layer._parameters.get("bias")
    if weight is None:
        remembers = isinstance(layer, nn.modules.batchnorm._NormBase)
        return "it keeps no history: its statistics come from each batch" if remembers else None
    if weight.dim() != 1:
        return "its weight lies on more than one axis"
    if isinstance(layer, Layer) and layer.epilogue != Epilogue():
        return "an activation follows its affine"
    shift = torch.zeros_like(weight, dtype=torch.float64) if bias is None else bias.detach().double()
    for offset in (0.0, 1.0):
        scale = weight.detach().double() + offset
        bare = copy.deepcopy(layer)
        with torch.no_grad():
            bare.weight.fill_(1 - offset)
            if bias is not None:
                bare.bias.zero_()
        normalized = bare(call.given).double()
        for axis in _axes(call.given, len(weight)):
            s, t = _along(scale, axis, call.given), _along(shift, axis, call.given)
            most = float(((normalized * s).abs() + t.abs()).max())
            if _near(normalized * s + t, call.made, most):
                plain = bool((scale == 1).all()) and bool((shift == 0).all())
                return None if plain else Fixed(scale, shift, axis, whole=False)
    return "its affine is not a weight and a bias on one axis"


def _axes(x: Tensor, channels: int) -> list[int]:
    return [axis for axis, size in enumerate(x.shape) if size == channels]


def _along(vector: Tensor, axis: int, x: Tensor) -> Tensor:
    return vector.view([-1 if k == axis else 1 for k in range(x.dim())])


def _near(expected: Tensor, found: Tensor, most: float) -> bool:
    distance = float((expected - found.double()).abs().max()) if found.numel() else 0.0
    return distance <= 16 * torch.finfo(found.dtype).eps * most


_ACTIVATIONS = {
    "identity": lambda slope: nn.Identity(),
    "relu": lambda slope: nn.ReLU(),
    "relu6": lambda slope: nn.ReLU6(),
    "leaky_relu": lambda slope: nn.LeakyReLU(slope),
    "silu": lambda slope: nn.SiLU(),
    "hardswish": lambda slope: nn.Hardswish(),
    "gelu": lambda slope: nn.GELU(),
    "gelu_tanh": lambda slope: nn.GELU(approximate="tanh"),
}


def remainder(layer: nn.Module, part: Fixed) -> nn.Module:
    """What is left of a layer whose fixed part is gone: an activation or nothing, or the layer without affine."""
    if part.whole:
        return _ACTIVATIONS[part.epilogue.activation](part.epilogue.slope).eval()
    bare: Any = copy.deepcopy(layer)
    if isinstance(layer, (nn.LayerNorm, nn.GroupNorm)) or type(layer) is nn.RMSNorm:
        bare.weight = None
        if "bias" in bare._parameters:
            bare.bias = None
        return bare
    # A foreign class may not do without its parameters; γ = 1 is weight + offset.
    offset = float((part.scale - bare.weight.detach().double()).round()[0])
    bare.weight = nn.Parameter(torch.full_like(bare.weight, 1 - offset), requires_grad=bare.weight.requires_grad)
    if "bias" in bare._parameters and bare.bias is not None:
        bare.bias = nn.Parameter(torch.zeros_like(bare.bias), requires_grad=bare.bias.requires_grad)
    return bare
