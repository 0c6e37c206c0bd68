"""Statistics that more than this batch decides: the verbs one by one, with a step between them."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from evenorm import kernels
from evenorm.kernels import Finish, eager
from evenorm.kernels import mask as masks
from evenorm.moments import Moments
from evenorm.operator import verbs
from evenorm.operator.composed import gradients
from evenorm.operator.settings import Settings
from evenorm.operator.step import Step
from evenorm.statistics.group import BACKWARD, Group, total

__all__ = ["staged"]


class _Stage(NamedTuple):
    """What the second verb takes, and what the gradient needs: ``mean`` and ``rstd`` hold the correction already.

    With x̂ = (x − μ)·rstd, r·x̂ + d = (x − mean′)·rstd′, where rstd′ = r·rstd and mean′ = μ − d / rstd′.
    """

    mean: Tensor
    rstd: Tensor
    values: Tensor
    r: Tensor | None
    d: Tensor | None


def staged(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    mask: Tensor | None,
    step: Step,
    settings: Settings,
) -> tuple[Tensor, Moments]:
    """y, and the moments of all that was merged.

    Raises:
        KernelError: a kernel was named that cannot run here.
        SyncError: the ranks are in different places of the program.
    """
    tensors = (x, weight, bias, residual, mask)
    compiling = torch.compiler.is_compiling() and not kernels.exporting()
    reason = None if compiling else kernels.must_compose(*tensors)
    if reason is not None:
        settings.allow_composed(reason)
        return _composed(x, weight, bias, residual, mask, step, settings)
    with torch.no_grad():
        mean, m2 = verbs.moments(x.detach(), mask, settings)
        whole = step.merged(Moments(_count(x, mean, mask, settings), mean, m2))
        stage = _stage(whole, step, settings)
    group = (step.group, step.tag) if step.group is not None else (None, None)
    y = _Staged.apply(x, weight, bias, residual, mask, *stage, *group, step, *settings)
    return y, whole


def _composed(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    mask: Tensor | None,
    step: Step,
    settings: Settings,
) -> tuple[Tensor, Moments]:
    """Plain torch operations, which autograd differentiates itself."""
    pattern, affine, epilogue = settings.parsed()
    mean, m2 = eager.moments(x, pattern, settings.centered, mask)
    whole = step.differentiable(Moments(_count(x, mean, mask, settings), mean, m2))
    correction = step.correction(Moments(whole.count, whole.mean.detach(), whole.M2.detach()), settings.eps)
    mean, rstd = whole.mean, whole.rstd(settings.eps)
    if correction is not None:
        rstd = rstd * correction.r
        mean = mean - correction.d / rstd
    return eager.apply(x, pattern, mean, rstd, Finish(affine, epilogue, weight, bias, residual), mask), whole


def _count(x: Tensor, mean: Tensor, mask: Tensor | None, settings: Settings) -> Tensor | int:
    """Values per statistic; one number where the mask leaves every group as many."""
    if mask is None:
        return x.numel() // max(mean.numel(), 1)
    binding = settings.parsed()[0].bind(x.shape)
    counts = masks.counts(mask, binding, mean.dtype)
    valid = masks.split(mask, binding)
    alike = all(valid.shape[i] == 1 for i in binding.kept)
    return counts[(slice(0, 1),) * counts.dim()] if alike and counts.numel() else counts


def _stage(whole: Moments, step: Step, settings: Settings) -> _Stage:
    count = whole.count
    if not isinstance(count, Tensor):
        count = torch.full((1,) * whole.mean.dim(), float(count), dtype=whole.mean.dtype, device=whole.mean.device)
    mean, rstd = whole.mean, Moments(count, whole.mean, whole.M2).rstd(settings.eps)
    correction = step.correction(whole, settings.eps)
    if correction is None:
        return _Stage(mean, rstd, count.clamp_min(1), None, None)
    rstd = rstd * correction.r
    return _Stage(mean - correction.d / rstd, rstd, count.clamp_min(1), correction.r, correction.d)


class _Staged(torch.autograd.Function):
    """The second verb, with a gradient that goes through the statistics too.

    From S₁ = Σ γ·dz and S₂ = Σ γ·dz·x̂′ of all ranks, x̂′ = r·x̂ + d::

        dx = rstd′ · (γ·dz − c₁ − x̂′·c₂),   c₂ = (S₂ − d·S₁) / (r²·n),   c₁ = S₁/n − d·c₂
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        residual: Tensor | None,
        mask: Tensor | None,
        mean: Tensor,
        rstd: Tensor,
        count: Tensor,
        r: Tensor | None,
        d: Tensor | None,
        group: Group | None,
        tag: Tensor | None,
        step: Step,
        *values: Any,
    ) -> Tensor:
        settings = Settings(*values)
        y = verbs.apply(x, weight, bias, residual, mask, mean, rstd, settings)
        ctx.settings, ctx.group, ctx.step = settings, group, step
        ctx.by_output = residual is not None and settings.parsed()[2].by_output
        other = None if settings.activation == "identity" else y if ctx.by_output else residual
        ctx.has_residual = residual is not None
        ctx.save_for_backward(x, weight, bias, other, mask, mean, rstd, count, r, d, tag)
        return y

    @staticmethod
    def backward(ctx: Any, *dys: Tensor) -> tuple[Any, ...]:
        (dy,) = dys
        settings, needs = ctx.settings, ctx.needs_input_grad
        nothing = (None,) * (9 + len(Settings._fields))
        x, weight, bias, other, mask, mean, rstd, count, r, d, tag = ctx.saved_tensors
        residual, output = (None, other) if ctx.by_output else (other, None)
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():

            def function(x: Tensor, weight: Any, bias: Any, residual: Any, settings: Settings) -> Tensor:
                return _composed(x, weight, bias, residual, mask, ctx.step, settings)[0]

            operands = (x, weight, bias, residual)
            return *gradients(function, dy, operands, output, mask, needs[:4], settings), *nothing
        tensors = (dy, x, weight, bias, residual, output, mask, mean, rstd)
        s1, s2, d_weight, d_bias = verbs.grad_sums(*tensors, settings)
        dx = d_residual = None
        if needs[0] or needs[3]:
            if ctx.group is not None:
                s1, s2 = total(ctx.group, tag, BACKWARD, torch.stack([s1, s2])).unbind(0)
            c2 = s2 / count if r is None else (s2 - d * s1) / (r.square() * count)
            c1 = s1 / count
            c1 = c1 if d is None else c1 - d * c2
            dx, d_residual = verbs.grad_input(*tensors, c1 if settings.centered else None, c2, settings)
        if settings.activation == "identity" and needs[3]:
            d_residual = dy if mask is None else dy.where(mask, 0)
        return (
            dx if needs[0] else None,
            d_weight.reshape(weight.shape).to(weight.dtype) if needs[1] else None,
            d_bias.reshape(bias.shape).to(bias.dtype) if needs[2] else None,
            d_residual if needs[3] else None,
            *nothing,
        )
