"""Normalization in plain torch operations, which autograd differentiates itself, to any order."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from evenorm.kernels import Finish, eager
from evenorm.operator.settings import Settings

__all__ = ["gradients", "normalized"]


def normalized(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    variance: Tensor | None,
    residual: Tensor | None,
    mask: Tensor | None,
    settings: Settings,
) -> tuple[Tensor, Tensor, Tensor]:
    """y, and mean and M2 of the batch; where statistics were given these two are empty."""
    pattern, affine, epilogue = settings.parsed()
    finish = Finish(affine, epilogue, weight, bias, residual)
    if mean is None or variance is None:
        return eager.forward(x, pattern, settings.centered, settings.eps, finish, mask)
    y = eager.apply(x, pattern, *eager.statistics(x, mean, variance, settings.eps), finish, mask)
    return y, x.new_empty(0), x.new_empty(0)


def gradients(
    function: Callable[..., Tensor],
    dy: Tensor,
    operands: Sequence[Tensor | None],
    output: Tensor | None,
    mask: Tensor | None,
    wanted: Sequence[bool],
    settings: Settings,
) -> list[Tensor | None]:
    """The gradients of x, weight, bias and residual, as a graph that can be differentiated again.

    Args:
        function: y of the four operands and the settings.
        operands: x, weight, bias, residual.
        output: y, where the activation's derivative is read from it and the residual was not kept.
        wanted: which gradients to find.
    """
    passed = output is not None or (settings.activation == "identity" and operands[3] is None)
    if output is not None:
        # The derivative is piecewise constant, so no higher order passes through it.
        dy = dy * settings.parsed()[2].derivative(output.detach())
        settings = settings._replace(activation="identity")
    y = function(*operands, settings)
    found: list[Tensor | None] = [None] * 4
    present = [k for k, t in enumerate(operands) if t is not None and wanted[k]]
    if present:
        inputs = [t for k in present if (t := operands[k]) is not None]
        for k, gradient in zip(present, torch.autograd.grad(y, inputs, dy, create_graph=True), strict=True):
            found[k] = gradient
    if wanted[3] and passed:
        found[3] = dy if mask is None else dy.where(mask, 0)
    return found
