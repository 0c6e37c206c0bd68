"""A residual that is added before the normalization, in its sweep: y of the sum, and the sum, which goes on.

The statistics are those of the sum alone. The sum's own gradient is added where the input's is made: both the input's
and the residual's are the whole of it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from evenorm import kernels
from evenorm.kernels import Finish
from evenorm.operator.composed import gradients, normalized
from evenorm.operator.settings import SCHEMA, Settings

__all__ = ["gradients_of_sum", "summed"]


def summed(
    x: Tensor, residual: Tensor, weight: Tensor | None, bias: Tensor | None, settings: Settings
) -> tuple[Tensor, Tensor]:
    """y and x + residual, of the same shape and dtype.

    Raises:
        KernelError: a kernel was named that cannot run here.
    """
    tensors = (x, residual, weight, bias)
    if torch.compiler.is_compiling() and not kernels.exporting() and not kernels.transforming():
        return torch.ops.evenorm.add_normalize(*tensors, *settings)[:2]
    reason = kernels.must_compose(*tensors)
    if reason is not None:
        settings.allow_composed(reason)
        total = x + residual
        return normalized(total, weight, bias, None, None, None, None, settings)[0], total
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        return _AddNormalize.apply(*tensors, *settings)[:2]
    return _forward(*tensors, *settings)[:2]


def gradients_of_sum(
    dy: Tensor, total: Tensor, weight: Tensor | None, bias: Tensor | None, needs: tuple[bool, ...], settings: Settings
) -> list[Tensor | None]:
    """The gradients by y of the sum, weight and bias, as a graph of torch's own operations."""

    def function(total: Tensor, weight: Any, bias: Any, _: Any, settings: Settings) -> Tensor:
        return normalized(total, weight, bias, None, None, None, None, settings)[0]

    return gradients(function, dy, (total, weight, bias, None), None, None, (*needs, False), settings)[:3]


def _forward(
    x: Tensor, residual: Tensor, weight: Tensor | None, bias: Tensor | None, *values: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The chosen kernel: y, the sum, its mean and M2."""
    settings = Settings(*values)
    pattern, affine, epilogue = settings.parsed()
    kernel = kernels.choose(x, pattern, affine, settings.kernel)
    finish = Finish(affine, epilogue, weight, bias)
    return kernels.forward_of_sum(kernel, x, residual, pattern, settings.centered, settings.eps, finish)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    _, _, weight, bias, *values = inputs
    _, total, mean, m2 = output
    needs = ctx.needs_input_grad
    # As an addition's, where neither of its operands asks.
    ctx.mark_non_differentiable(mean, m2, *(() if needs[0] or needs[1] else (total,)))
    # Of y or of a sum that goes nowhere: zeros would be as large as x.
    ctx.set_materialize_grads(False)
    ctx.settings = Settings(*values)
    ctx.save_for_backward(total, weight, bias, mean, m2)


def _backward(ctx: Any, dy: Tensor | None, d_total: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    total, weight, bias, mean, m2 = ctx.saved_tensors
    needs, settings = ctx.needs_input_grad, ctx.settings
    needs_input = needs[0] or needs[1]
    if dy is None:
        dx, d_weight, d_bias = d_total, *(None if p is None else torch.zeros_like(p) for p in (weight, bias))
    elif torch.is_grad_enabled() and not torch.compiler.is_compiling():
        wanted = (needs_input, needs[2], needs[3])
        dx, d_weight, d_bias = gradients_of_sum(dy, total, weight, bias, wanted, settings)
        dx = dx if dx is None or d_total is None else dx + d_total
    else:
        composed = kernels.must_compose(dy, d_total, total, weight) is not None
        found = torch.ops.evenorm.add_normalize_backward if composed else _gradients
        dx, d_weight, d_bias = found(dy, d_total, total, mean, m2, weight, bias, *settings, needs_input)
        d_weight = d_weight.reshape(weight.shape).to(weight.dtype) if needs[2] else None
        d_bias = d_bias.reshape(bias.shape).to(bias.dtype) if needs[3] else None
    return (dx if needs[0] else None, dx if needs[1] else None, d_weight, d_bias, *(None,) * len(Settings._fields))


def _gradients(
    dy: Tensor,
    d_total: Tensor | None,
    total: Tensor,
    mean: Tensor,
    m2: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    *values: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """dx, which is the residual's gradient too, Σ dz·x̂, Σ dz by the chosen kernel."""
    *plain, needs_input = values
    settings = Settings(*plain)
    pattern, affine, epilogue = settings.parsed()
    found = kernels.backward(
        kernels.choose(total, pattern, affine, settings.kernel),
        *(dy, total, pattern, settings.centered, settings.eps, mean, m2),
        Finish(affine, epilogue, weight, bias),
        given=False,
        needs_input=needs_input,
        carried=d_total,
    )
    return total.new_empty(0) if found.x is None else found.x, found.weight, found.bias


class _AddNormalize(torch.autograd.Function):
    """The recorded call of eager mode; a compiled graph holds the operator below, made of the same three parts."""

    forward = staticmethod(_forward)
    setup_context = staticmethod(_setup_context)
    backward = staticmethod(_backward)


def _fake(
    x: Tensor, residual: Tensor, weight: Tensor | None, bias: Tensor | None, *values: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    pattern, _, _ = Settings(*values).parsed()
    mean = x.new_empty(pattern.bind(x.shape).statistics_shape, dtype=torch.float64)
    return torch.empty_like(x), torch.empty_like(x), mean, torch.empty_like(mean)


def _fake_gradients(dy: Tensor, d_total: Tensor | None, total: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    *values, needs_input = rest[4:]
    pattern, affine, _ = Settings(*values).parsed()
    parameter = total.new_empty(pattern.bind(total.shape).sizes(affine.axes), dtype=torch.float64)
    return torch.empty_like(total) if needs_input else total.new_empty(0), parameter, torch.empty_like(parameter)


_library = torch.library.Library("evenorm", "FRAGMENT")
_library.define(
    f"add_normalize(Tensor x, Tensor residual, Tensor? weight, Tensor? bias, {SCHEMA}) "
    "-> (Tensor, Tensor, Tensor, Tensor)"
)
_library.define(
    "add_normalize_backward(Tensor dy, Tensor? d_total, Tensor total, Tensor mean, Tensor m2, Tensor? weight, "
    f"Tensor? bias, {SCHEMA}, bool needs_input) -> (Tensor, Tensor, Tensor)"
)
_library.impl("add_normalize", _forward, "CompositeExplicitAutograd")
_library.impl("add_normalize_backward", _gradients, "CompositeExplicitAutograd")
torch.library.register_fake("evenorm::add_normalize", _fake, lib=_library)
torch.library.register_fake("evenorm::add_normalize_backward", _fake_gradients, lib=_library)
torch.library.register_autograd("evenorm::add_normalize", _backward, setup_context=_setup_context, lib=_library)
