"""Statistics of this batch alone, or given: one autograd function, for eager mode and for compiled graphs.

Its arguments are tensors and plain values alone, so the pattern goes as text and the plan is made inside: a
plan made in traced Python would not survive dynamic shapes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from evenorm import kernels
from evenorm.kernels import Finish, eager
from evenorm.operator.composed import gradients, normalized
from evenorm.operator.settings import SCHEMA, Settings

__all__ = ["fused"]


def fused(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    variance: Tensor | None,
    residual: Tensor | None,
    mask: Tensor | None,
    settings: Settings,
) -> tuple[Tensor, Tensor, Tensor]:
    """One normalization: an operator of a compiled graph, torch's own operations, recorded, or bare.

    Returns:
        y, and mean and M2 of the batch; where statistics were given these two are empty.

    Raises:
        KernelError: a kernel was named that cannot run here.
    """
    tensors = (x, weight, bias, mean, variance, residual, mask)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (mean, variance)):
        settings.allow_composed("the history asks for a gradient")
        return normalized(*tensors, settings)
    if torch.compiler.is_compiling() and not kernels.exporting() and not kernels.transforming():
        return torch.ops.evenorm.normalize(*tensors, *settings)
    reason = kernels.must_compose(*tensors)
    if reason is not None:
        settings.allow_composed(reason)
        return normalized(*tensors, settings)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        return _Normalize.apply(*tensors, *settings)
    return _forward(*tensors, *settings)


def _forward(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    variance: Tensor | None,
    residual: Tensor | None,
    mask: Tensor | None,
    *values: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """The chosen kernel."""
    settings = Settings(*values)
    pattern, affine, epilogue = settings.parsed()
    kernel = kernels.choose(x, pattern, affine, settings.kernel, mask)
    finish = Finish(affine, epilogue, weight, bias, residual)
    if mean is None or variance is None:
        return kernel.forward(x, pattern, settings.centered, settings.eps, finish, mask)
    y = kernel.apply(x, pattern, *eager.statistics(x, mean, variance, settings.eps), finish, mask)
    return y, x.new_empty(0), x.new_empty(0)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, weight, bias, mean, variance, residual, mask, *values = inputs
    y, batch_mean, m2 = output
    ctx.mark_non_differentiable(batch_mean, m2)
    ctx.settings, ctx.given = Settings(*values), mean is not None
    # A history is copied, since the next training step writes into it.
    statistics = (mean.clone(), variance.clone()) if ctx.given else (batch_mean, m2)
    # The output is what the next layer keeps anyway; the residual may be kept by nobody else. Without an activation
    # the residual's gradient is the incoming one, and neither is needed.
    ctx.by_output = residual is not None and ctx.settings.parsed()[2].by_output
    other = y if ctx.by_output else residual
    other = None if ctx.settings.activation == "identity" else other
    ctx.save_for_backward(x, weight, bias, *statistics, other, mask)


def _backward(ctx: Any, dy: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    nothing = (None,) * (1 + len(Settings._fields))
    x, weight, bias, mean, spread, other, mask = ctx.saved_tensors
    residual, output = (None, other) if ctx.by_output else (other, None)
    needs = ctx.needs_input_grad
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        # Derivatives of any order, as a graph of torch's own operations.
        given = (mean, spread) if ctx.given else (None, None)

        def function(x: Tensor, weight: Any, bias: Any, residual: Any, settings: Settings) -> Tensor:
            return normalized(x, weight, bias, given[0], given[1], residual, mask, settings)[0]

        wanted = (needs[0], needs[1], needs[2], needs[5])
        dx, d_weight, d_bias, d_residual = gradients(
            function, dy, (x, weight, bias, residual), output, mask, wanted, ctx.settings
        )
        return dx, d_weight, d_bias, None, None, d_residual, *nothing
    composed = kernels.must_compose(dy, x, weight) is not None
    found = torch.ops.evenorm.normalize_backward if composed else _gradients
    dx, d_weight, d_bias, d_residual = found(
        *(dy, x, mean, spread, weight, bias, residual, output, mask, *ctx.settings, ctx.given, needs[0] or needs[5])
    )
    if ctx.settings.activation == "identity" and needs[5]:
        d_residual = dy if mask is None else dy.where(mask, 0)
    return (
        dx if needs[0] else None,
        d_weight.reshape(weight.shape).to(weight.dtype) if needs[1] else None,
        d_bias.reshape(bias.shape).to(bias.dtype) if needs[2] else None,
        None,
        None,
        d_residual if needs[5] else None,
        *nothing,
    )


def _gradients(
    dy: Tensor,
    x: Tensor,
    mean: Tensor,
    spread: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    output: Tensor | None,
    mask: Tensor | None,
    *values: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """dx, Σ dz·x̂, Σ dz, dz by the chosen kernel; ``spread`` is the variance where statistics are given, else M2."""
    *plain, given, needs_input = values
    settings = Settings(*plain)
    pattern, affine, epilogue = settings.parsed()
    found = kernels.backward(
        kernels.choose(x, pattern, affine, settings.kernel, mask),
        dy,
        x,
        pattern,
        settings.centered,
        settings.eps,
        mean,
        spread,
        Finish(affine, epilogue, weight, bias, residual, output),
        given=given,
        needs_input=needs_input,
        mask=mask,
    )
    dx, d_weight, d_bias, d_residual = (x.new_empty(0) if g is None else g for g in found)
    return dx, d_weight, d_bias, d_residual


class _Normalize(torch.autograd.Function):
    """The recorded call of eager mode; a compiled graph holds the operator below, made of the same three parts."""

    forward = staticmethod(_forward)
    setup_context = staticmethod(_setup_context)
    backward = staticmethod(_backward)


def _fake(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    variance: Tensor | None,
    residual: Tensor | None,
    mask: Tensor | None,
    *values: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    if mean is not None:
        return torch.empty_like(x), x.new_empty(0), x.new_empty(0)
    pattern, _, _ = Settings(*values).parsed()
    statistics = x.new_empty(pattern.bind(x.shape).statistics_shape, dtype=torch.float64)
    return torch.empty_like(x), statistics, torch.empty_like(statistics)


def _fake_gradients(
    dy: Tensor,
    x: Tensor,
    mean: Tensor,
    spread: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    output: Tensor | None,
    mask: Tensor | None,
    *values: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    *plain, _, needs_input = values
    pattern, affine, _ = Settings(*plain).parsed()
    parameter = x.new_empty(pattern.bind(x.shape).sizes(affine.axes), dtype=torch.float64)
    has_residual = residual is not None or output is not None
    dx = torch.empty_like(x) if needs_input else x.new_empty(0)
    d_residual = torch.empty_like(x) if needs_input and has_residual else x.new_empty(0)
    return dx, parameter, torch.empty_like(parameter), d_residual


_library = torch.library.Library("evenorm", "DEF")
_library.define(
    "normalize(Tensor x, Tensor? weight, Tensor? bias, Tensor? mean, Tensor? variance, Tensor? residual, "
    "Tensor? mask, "
    f"{SCHEMA}) -> (Tensor, Tensor, Tensor)"
)
_library.define(
    "normalize_backward(Tensor dy, Tensor x, Tensor mean, Tensor spread, Tensor? weight, Tensor? bias, "
    f"Tensor? residual, Tensor? output, Tensor? mask, {SCHEMA}, bool given, bool needs_input) "
    "-> (Tensor, Tensor, Tensor, Tensor)"
)
_library.impl("normalize", _forward, "CompositeExplicitAutograd")
_library.impl("normalize_backward", _gradients, "CompositeExplicitAutograd")
torch.library.register_fake("evenorm::normalize", _fake, lib=_library)
torch.library.register_fake("evenorm::normalize_backward", _fake_gradients, lib=_library)
torch.library.register_autograd("evenorm::normalize", _backward, setup_context=_setup_context, lib=_library)
