"""The verbs in plain torch operations.

Runs everywhere: differentiates to any order and in any mode, traces, exports, takes tensor subclasses. It
computes in float64, and in float32 where a graph is exported for other runtimes or the device has no float64.
"""

from __future__ import annotations

import torch
from torch import Tensor

from evenorm.affine import Affine
from evenorm.kernels.signature import Signature
from evenorm.pattern import Binding, Pattern

__all__ = ["apply", "declines", "forward", "grad_input", "grad_sums", "moments", "name"]

name = "eager"

_WITHOUT_FLOAT64 = ("mps",)


def declines(signature: Signature, pattern: Pattern, affine: Affine) -> str | None:
    """Never: whatever torch can do, this can."""
    return None


def moments(x: Tensor, pattern: Pattern, centered: bool) -> tuple[Tensor, Tensor]:
    """Mean and M2 of each group, in two passes."""
    binding = pattern.bind(x.shape)
    split = x.reshape(binding.shape).to(_accumulator(x))
    mean, deviation = _center(split, binding) if centered else (None, split)
    m2 = deviation.square().sum(binding.reduced)
    return (torch.zeros_like(m2) if mean is None else mean.reshape(m2.shape)), m2


def apply(
    x: Tensor,
    pattern: Pattern,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    affine: Affine,
) -> Tensor:
    """y = (x − mean) · rstd · (offset + weight) + bias."""
    binding = pattern.bind(x.shape)
    split = x.reshape(binding.shape).to(mean.dtype)
    x_hat = (split - mean.reshape(binding.keepdim_shape)) * rstd.reshape(binding.keepdim_shape)
    return _scale(x_hat, x, binding, weight, bias, affine)


def forward(
    x: Tensor,
    pattern: Pattern,
    centered: bool,
    eps: float,
    weight: Tensor | None,
    bias: Tensor | None,
    affine: Affine,
) -> tuple[Tensor, Tensor, Tensor]:
    """Both at once: y, mean, M2. The deviations are computed once, so float32 keeps its accuracy too."""
    binding = pattern.bind(x.shape)
    split = x.reshape(binding.shape).to(_accumulator(x))
    mean, deviation = _center(split, binding) if centered else (None, split)
    m2 = deviation.square().sum(binding.reduced, keepdim=True)
    x_hat = deviation * (m2 / binding.count + eps).rsqrt()
    y = _scale(x_hat, x, binding, weight, bias, affine)
    shape = binding.statistics_shape
    mean = torch.zeros_like(m2) if mean is None else mean
    return y, mean.reshape(shape), m2.reshape(shape)


def statistics(x: Tensor, mean: Tensor, variance: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Mean and rstd from a history, in the accumulator's dtype."""
    dtype = _accumulator(x)
    return mean.to(dtype), (variance.to(dtype) + eps).rsqrt()


def grad_sums(
    dy: Tensor,
    x: Tensor,
    pattern: Pattern,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    affine: Affine,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Σ γ·dy and Σ γ·dy·x̂ of each group; Σ dy·x̂ and Σ dy of each parameter."""
    binding = pattern.bind(x.shape)
    x_hat, split, gamma = _operands(dy, x, binding, mean, rstd, weight, affine)
    others = tuple(i for i, n in enumerate(binding.names) if n not in affine.axes)
    scaled = split * gamma

    def per_parameter(values: Tensor) -> Tensor:
        summed = values.sum(others) if others else values
        order = [n for n in binding.names if n in affine.axes]
        return summed.permute([order.index(n) for n in affine.axes])

    return (
        scaled.sum(binding.reduced),
        (scaled * x_hat).sum(binding.reduced),
        per_parameter(split * x_hat),
        per_parameter(split),
    )


def grad_input(
    dy: Tensor,
    x: Tensor,
    pattern: Pattern,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    affine: Affine,
    c1: Tensor | None,
    c2: Tensor | None,
) -> Tensor:
    """dx = rstd · (γ·dy − c1 − x̂·c2); c1 and c2 are the sums over the count, absent where statistics are given."""
    binding = pattern.bind(x.shape)
    x_hat, split, gamma = _operands(dy, x, binding, mean, rstd, weight, affine)
    dx = split * gamma
    if c1 is not None:
        dx = dx - c1.reshape(binding.keepdim_shape)
    if c2 is not None:
        dx = dx - x_hat * c2.reshape(binding.keepdim_shape)
    return _like(dx * rstd.reshape(binding.keepdim_shape), x)


def _operands(
    dy: Tensor,
    x: Tensor,
    binding: Binding,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    affine: Affine,
) -> tuple[Tensor, Tensor, Tensor | float]:
    """x̂, the incoming gradient and γ, all split and in the accumulator's dtype."""
    deviation = x.reshape(binding.shape).to(mean.dtype) - mean.reshape(binding.keepdim_shape)
    x_hat = deviation * rstd.reshape(binding.keepdim_shape)
    gamma = 1.0 if weight is None else _gamma(weight, x_hat, binding, affine)
    return x_hat, dy.reshape(binding.shape).to(mean.dtype), gamma


def _accumulator(x: Tensor) -> torch.dtype:
    if x.dtype != torch.float64 and (torch.compiler.is_exporting() or x.device.type in _WITHOUT_FLOAT64):
        return torch.float32
    return torch.float64


def _center(split: Tensor, binding: Binding) -> tuple[Tensor, Tensor]:
    """Mean and deviations. In float32 the mean's own rounding is found by a second pass and removed."""
    mean = split.mean(binding.reduced, keepdim=True)
    deviation = split - mean
    if split.dtype != torch.float64:
        rest = deviation.mean(binding.reduced, keepdim=True)
        mean, deviation = mean + rest, deviation - rest
    return mean, deviation


def _scale(
    x_hat: Tensor,
    x: Tensor,
    binding: Binding,
    weight: Tensor | None,
    bias: Tensor | None,
    affine: Affine,
) -> Tensor:
    if affine.cast == "before":
        x_hat = x_hat.to(x.dtype).to(x_hat.dtype)
    if weight is not None:
        x_hat = x_hat * _gamma(weight, x_hat, binding, affine)
    if bias is not None:
        x_hat = x_hat + _spread(bias, binding, affine).to(x_hat.dtype)
    return _like(x_hat, x)


def _gamma(weight: Tensor, like: Tensor, binding: Binding, affine: Affine) -> Tensor:
    spread = _spread(weight, binding, affine).to(like.dtype)
    return spread + affine.offset if affine.offset else spread


def _spread(parameter: Tensor, binding: Binding, affine: Affine) -> Tensor:
    """A parameter in the shape that broadcasts against the split tensor."""
    parameter = parameter.reshape(binding.sizes(affine.axes))
    order = sorted(range(len(affine.axes)), key=lambda k: binding.names.index(affine.axes[k]))
    wide = [size if n in affine.axes else 1 for n, size in zip(binding.names, binding.shape, strict=True)]
    if order != list(range(len(order))):
        parameter = parameter.permute(order)
    return parameter.reshape(wide)


def _like(split: Tensor, x: Tensor) -> Tensor:
    """Back to the input's shape and dtype."""
    return split.reshape(x.shape).to(x.dtype)
