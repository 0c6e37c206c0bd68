"""The verbs in plain torch operations.

Runs everywhere: differentiates to any order and in any mode, traces, exports, takes tensor subclasses. It
computes in float64, and in float32 where a graph is exported for other runtimes or the device has no float64.
"""

from __future__ import annotations

import torch
from torch import Tensor

from evenorm.affine import Affine
from evenorm.kernels import mask as masks
from evenorm.kernels.finish import Finish
from evenorm.kernels.signature import Signature
from evenorm.pattern import Binding, Pattern

__all__ = ["apply", "declines", "forward", "grad_input", "grad_sums", "moments", "name", "statistics"]

name = "eager"

_WITHOUT_FLOAT64 = ("mps",)


def declines(signature: Signature, pattern: Pattern, affine: Affine) -> str | None:
    """Never: whatever torch can do, this can."""
    return None


def moments(x: Tensor, pattern: Pattern, centered: bool, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Mean and M2 of each group, in two passes."""
    binding = pattern.bind(x.shape)
    mean, deviation = _deviations(x, binding, centered, mask)
    m2 = deviation.square().sum(binding.reduced)
    return (torch.zeros_like(m2) if mean is None else mean.reshape(m2.shape)), m2


def apply(
    x: Tensor, pattern: Pattern, mean: Tensor, rstd: Tensor, finish: Finish, mask: Tensor | None = None
) -> Tensor:
    """y = activation((x − mean) · rstd · (offset + weight) + bias + residual)."""
    binding = pattern.bind(x.shape)
    return _finished(_normalized(x, binding, mean, rstd, mask), x, binding, finish, mask)


def forward(
    x: Tensor, pattern: Pattern, centered: bool, eps: float, finish: Finish, mask: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Both at once: y, mean, M2. The deviations are computed once, so float32 keeps its accuracy too."""
    binding = pattern.bind(x.shape)
    mean, deviation = _deviations(x, binding, centered, mask)
    m2 = deviation.square().sum(binding.reduced, keepdim=True)
    variance = m2 / _count(binding, mask, m2.dtype)
    y = _finished(deviation * (variance + eps).rsqrt(), x, binding, finish, mask)
    shape = binding.statistics_shape
    mean = torch.zeros_like(m2) if mean is None else mean
    return y, mean.reshape(shape), m2.reshape(shape)


def statistics(x: Tensor, mean: Tensor, variance: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Mean and rstd from a history, in the accumulator's dtype."""
    dtype = _accumulator(x)
    return mean.to(dtype), (variance.to(dtype) + eps).rsqrt()


def grad_sums(
    dy: Tensor, x: Tensor, pattern: Pattern, mean: Tensor, rstd: Tensor, finish: Finish, mask: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Σ γ·dz and Σ γ·dz·x̂ of each group; Σ dz·x̂ and Σ dz of each parameter."""
    binding = pattern.bind(x.shape)
    x_hat = _normalized(x, binding, mean, rstd, mask)
    dz = _before_activation(dy, x_hat, x, binding, finish, mask)
    axes = finish.affine.axes
    others = tuple(i for i, n in enumerate(binding.names) if n not in axes)
    scaled = dz * _gamma(finish, x_hat, binding)

    def per_parameter(values: Tensor) -> Tensor:
        summed = values.sum(others) if others else values
        order = [n for n in binding.names if n in axes]
        return summed.permute([order.index(n) for n in axes])

    return (
        scaled.sum(binding.reduced),
        (scaled * x_hat).sum(binding.reduced),
        per_parameter(dz * x_hat),
        per_parameter(dz),
    )


def grad_input(
    dy: Tensor,
    x: Tensor,
    pattern: Pattern,
    mean: Tensor,
    rstd: Tensor,
    finish: Finish,
    c1: Tensor | None,
    c2: Tensor | None,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """dx = rstd · (γ·dz − c1 − x̂·c2), and dz for the residual.

    c1 and c2 are the sums over the count, absent where statistics are given.
    """
    binding = pattern.bind(x.shape)
    x_hat = _normalized(x, binding, mean, rstd, mask)
    dz = _before_activation(dy, x_hat, x, binding, finish, mask)
    dx = dz * _gamma(finish, x_hat, binding)
    if c1 is not None:
        dx = dx - c1.reshape(binding.keepdim_shape)
    if c2 is not None:
        dx = dx - x_hat * c2.reshape(binding.keepdim_shape)
    dx = _hidden(dx * rstd.reshape(binding.keepdim_shape), binding, mask)
    d_residual = _like(dz, x) if finish.has_residual else None
    return _like(dx, x), d_residual


def _accumulator(x: Tensor) -> torch.dtype:
    if x.dtype != torch.float64 and (torch.compiler.is_exporting() or x.device.type in _WITHOUT_FLOAT64):
        return torch.float32
    return torch.float64


def _hidden(values: Tensor, binding: Binding, mask: Tensor | None) -> Tensor:
    """Zeros where the mask hides. Multiplying would not do: NaN · 0 is NaN."""
    return values if mask is None else torch.where(masks.split(mask, binding), values, 0.0)


def _count(binding: Binding, mask: Tensor | None, dtype: torch.dtype) -> Tensor | int:
    """What sums are divided by to be means: at least 1, where there is nothing or a mask hides all."""
    if mask is None:
        return max(binding.count, 1)
    return masks.counts(mask, binding, dtype).clamp_min(1).reshape(binding.keepdim_shape)


def _deviations(x: Tensor, binding: Binding, centered: bool, mask: Tensor | None) -> tuple[Tensor | None, Tensor]:
    """Mean, and what is left of the input without it; hidden elements are 0 in both."""
    split = _hidden(x.reshape(binding.shape).to(_accumulator(x)), binding, mask)
    if not centered:
        return None, split
    count = _count(binding, mask, split.dtype)
    mean = split.sum(binding.reduced, keepdim=True) / count
    deviation = _hidden(split - mean, binding, mask)
    if split.dtype != torch.float64:
        # In float32 the mean's own rounding is found by a second pass and removed.
        rest = deviation.sum(binding.reduced, keepdim=True) / count
        mean, deviation = mean + rest, _hidden(deviation - rest, binding, mask)
    return mean, deviation


def _normalized(x: Tensor, binding: Binding, mean: Tensor, rstd: Tensor, mask: Tensor | None) -> Tensor:
    split = _hidden(x.reshape(binding.shape).to(mean.dtype), binding, mask)
    # A group with nothing valid and no eps has an infinite rstd.
    x_hat = (split - mean.reshape(binding.keepdim_shape)) * rstd.reshape(binding.keepdim_shape)
    return _hidden(x_hat, binding, mask)


def _finished(x_hat: Tensor, x: Tensor, binding: Binding, finish: Finish, mask: Tensor | None) -> Tensor:
    z = _scaled(x_hat, x, binding, finish, mask)
    return _like(_hidden(finish.epilogue.apply(z), binding, mask), x)


def _scaled(x_hat: Tensor, x: Tensor, binding: Binding, finish: Finish, mask: Tensor | None) -> Tensor:
    """What the activation takes."""
    if finish.affine.cast == "before":
        x_hat = x_hat.to(x.dtype).to(x_hat.dtype)
    if finish.weight is not None:
        x_hat = x_hat * _gamma(finish, x_hat, binding)
    if finish.bias is not None:
        x_hat = x_hat + _spread(finish.bias, binding, finish.affine).to(x_hat.dtype)
    if finish.residual is not None:
        x_hat = x_hat + _hidden(finish.residual.reshape(binding.shape).to(x_hat.dtype), binding, mask)
    return x_hat


def _before_activation(
    dy: Tensor, x_hat: Tensor, x: Tensor, binding: Binding, finish: Finish, mask: Tensor | None
) -> Tensor:
    """The gradient on the activation's input, dz = dy · activation'(z)."""
    dz = _hidden(dy.reshape(binding.shape).to(x_hat.dtype), binding, mask)
    if finish.epilogue.activation == "identity":
        return dz
    if finish.output is not None:
        return dz * finish.epilogue.derivative(finish.output.reshape(binding.shape).to(x_hat.dtype))
    return dz * finish.epilogue.derivative(_scaled(x_hat, x, binding, finish, mask))


def _gamma(finish: Finish, like: Tensor, binding: Binding) -> Tensor | float:
    if finish.weight is None:
        return 1.0
    spread = _spread(finish.weight, binding, finish.affine).to(like.dtype)
    return spread + finish.affine.offset if finish.affine.offset else spread


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
