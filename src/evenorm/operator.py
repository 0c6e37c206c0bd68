"""The operator: one autograd function, for eager mode and for compiled graphs, of the same three parts.

Its arguments are tensors and plain values alone, so the pattern goes as text and the plan is made inside: a
plan made in traced Python would not survive dynamic shapes.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from evenorm import kernels
from evenorm.affine import Affine
from evenorm.kernels import eager
from evenorm.pattern import Pattern

__all__ = ["call", "parsed"]


def _parse(pattern: str, axes: str, offset: float, cast: Any) -> tuple[Pattern, Affine]:
    return Pattern.parse(pattern), Affine(axes, offset, cast)


_cached_parse = lru_cache(maxsize=1024)(_parse)


def parsed(pattern: str, axes: str = "", offset: float = 0.0, cast: Any = "after") -> tuple[Pattern, Affine]:
    """The pattern and the affine that an operator's arguments spell."""
    # A trace sees through caches and warns of each.
    return (_parse if torch.compiler.is_compiling() else _cached_parse)(pattern, axes, offset, cast)


def call(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    """One normalization: an operator of a compiled graph, torch's own operations, recorded, or bare."""
    tensors = arguments[:5]
    if torch.compiler.is_compiling() and not kernels.exporting() and not kernels.transforming():
        return torch.ops.evenorm.normalize(*arguments)
    reason = kernels.must_compose(*tensors)
    if reason is not None:
        if arguments[-1] not in (None, eager.name):
            raise kernels.KernelError(f"kernel {arguments[-1]!r} cannot take this call: {reason}")
        return _composed(*arguments)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        return _Normalize.apply(*arguments)
    return _forward(*arguments)


def _composed(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    variance: Tensor | None,
    pattern: str,
    axes: str,
    centered: bool,
    eps: float,
    offset: float,
    cast: str,
    kernel: str | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Plain torch operations, which autograd differentiates itself: y, mean, M2."""
    laid, affine = parsed(pattern, axes, offset, cast)
    if mean is not None and variance is not None:
        given = eager.statistics(x, mean, variance, eps)
        return eager.apply(x, laid, *given, weight, bias, affine), x.new_empty(0), x.new_empty(0)
    return eager.forward(x, laid, centered, eps, weight, bias, affine)


def _forward(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    variance: Tensor | None,
    pattern: str,
    axes: str,
    centered: bool,
    eps: float,
    offset: float,
    cast: str,
    kernel: str | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The chosen kernel: y, mean, M2; where statistics are given the last two are empty."""
    laid, affine = parsed(pattern, axes, offset, cast)
    chosen = kernels.choose(x, laid, affine, kernel)
    if mean is not None and variance is not None:
        y = chosen.apply(x, laid, *eager.statistics(x, mean, variance, eps), weight, bias, affine)
        return y, x.new_empty(0), x.new_empty(0)
    return chosen.forward(x, laid, centered, eps, weight, bias, affine)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, weight, bias, mean, variance, *settings = inputs
    _, batch_mean, m2 = output
    ctx.mark_non_differentiable(batch_mean, m2)
    ctx.given = mean is not None
    ctx.settings = tuple(settings)
    # A history is copied, since the next training step writes into it. Of the bias the backward needs its shape
    # alone; a second derivative needs all.
    statistics = (mean.clone(), variance.clone()) if ctx.given else (batch_mean, m2)
    ctx.save_for_backward(x, weight, bias, *statistics)


def _backward(ctx: Any, dy: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    x, weight, bias, mean, spread = ctx.saved_tensors
    needs = ctx.needs_input_grad
    nothing = (None,) * 9
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        return *_differentiable_backward(ctx, dy), *nothing
    arguments = (dy, x, mean, spread, weight, *ctx.settings, ctx.given, needs[0])
    composed = kernels.must_compose(dy, x, weight) is not None
    gradients = torch.ops.evenorm.normalize_backward if composed else _gradients
    dx, d_weight, d_bias = gradients(*arguments)
    return (
        dx if needs[0] else None,
        d_weight.reshape(weight.shape).to(weight.dtype) if weight is not None and needs[1] else None,
        d_bias.reshape(bias.shape).to(bias.dtype) if bias is not None and needs[2] else None,
        *nothing,
    )


def _differentiable_backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    """The gradients as a graph of torch's own operations, for derivatives of any order."""
    x, weight, bias, mean, variance = ctx.saved_tensors
    given = (mean, variance) if ctx.given else (None, None)
    y, *_ = _composed(x, weight, bias, *given, *ctx.settings)
    wanted = [t for t, needed in zip((x, weight, bias), ctx.needs_input_grad, strict=False) if needed]
    found = iter(torch.autograd.grad(y, wanted, dy, create_graph=True))
    return tuple(next(found) if needed else None for needed in ctx.needs_input_grad[:3])


def _gradients(
    dy: Tensor,
    x: Tensor,
    mean: Tensor,
    spread: Tensor,
    weight: Tensor | None,
    pattern: str,
    axes: str,
    centered: bool,
    eps: float,
    offset: float,
    cast: str,
    kernel: str | None,
    given: bool,
    needs_input: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """dx, Σ dy·x̂ and Σ dy by the chosen kernel; ``spread`` is the variance where statistics are given, else M2."""
    laid, affine = parsed(pattern, axes, offset, cast)
    chosen = kernels.choose(x, laid, affine, kernel)
    dx, d_weight, d_bias = kernels.backward(
        chosen,
        dy,
        x,
        laid,
        centered,
        eps,
        mean,
        spread,
        weight,
        affine,
        given=given,
        needs_input=needs_input,
    )
    return (x.new_empty(0) if dx is None else dx), d_weight, d_bias


class _Normalize(torch.autograd.Function):
    """The recorded call of eager mode; a compiled graph holds the operator below, made of the same three parts."""

    forward = staticmethod(_forward)
    setup_context = staticmethod(_setup_context)
    backward = staticmethod(_backward)


_SETTINGS = "str pattern, str axes, bool centered, float eps, float offset, str cast, str? kernel"
_library = torch.library.Library("evenorm", "DEF")
_library.define(
    f"normalize(Tensor x, Tensor? weight, Tensor? bias, Tensor? mean, Tensor? variance, {_SETTINGS})"
    " -> (Tensor, Tensor, Tensor)"
)
_library.define(
    f"normalize_backward(Tensor dy, Tensor x, Tensor mean, Tensor spread, Tensor? weight, {_SETTINGS},"
    " bool given, bool needs_input) -> (Tensor, Tensor, Tensor)"
)
_library.impl("normalize", _forward, "CompositeExplicitAutograd")
_library.impl("normalize_backward", _gradients, "CompositeExplicitAutograd")


def _fake(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    variance: Tensor | None,
    pattern: str,
    *_: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    shape = (0,) if mean is not None else parsed(pattern)[0].bind(x.shape).statistics_shape
    statistics = x.new_empty(shape, dtype=x.dtype if mean is not None else torch.float64)
    return torch.empty_like(x), statistics, torch.empty_like(statistics)


def _fake_gradients(
    dy: Tensor,
    x: Tensor,
    mean: Tensor,
    spread: Tensor,
    weight: Tensor | None,
    pattern: str,
    axes: str,
    *rest: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    needs_input = rest[-1]
    parameter = x.new_empty(parsed(pattern)[0].bind(x.shape).sizes(axes.split()), dtype=torch.float64)
    return torch.empty_like(x) if needs_input else x.new_empty(0), parameter, torch.empty_like(parameter)


torch.library.register_fake("evenorm::normalize", _fake, lib=_library)
torch.library.register_fake("evenorm::normalize_backward", _fake_gradients, lib=_library)
torch.library.register_autograd("evenorm::normalize", _backward, setup_context=_setup_context, lib=_library)
