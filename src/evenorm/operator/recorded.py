"""The straight call as autograd records it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from evenorm import kernels
from evenorm.kernels import Finish, cpu
from evenorm.operator.composed import gradients, normalized
from evenorm.operator.settings import Settings
from evenorm.operator.summed import gradients_of_sum

if TYPE_CHECKING:
    from evenorm.operator.straight import Straight

__all__ = ["Gradients", "Operands", "record", "record_sum"]

Gradients = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]
"""Of x, weight, bias and residual."""


class Operands(NamedTuple):
    """What the way back of a call reads beside the gradient: of residual and output one at most."""

    x: Tensor
    weight: Tensor | None
    bias: Tensor | None
    residual: Tensor | None
    output: Tensor | None
    statistics: Tensor


class _Recorded(torch.autograd.Function):
    """A call that was made already: what it made comes in beside its operands, and y goes out."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        residual: Tensor | None,
        way: Straight,
        made: tuple[Tensor, Tensor],
    ) -> Tensor:
        y, statistics = made
        ctx.way = way
        # As on the whole way: the output where the slope can be read from it, nothing where there is no activation.
        other = None if way.activation == "identity" or residual is None else y if way.by_output else residual
        ctx.save_for_backward(x, weight, bias, other, statistics)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        way: Straight = ctx.way
        x, weight, bias, other, statistics = ctx.saved_tensors
        residual, output = (None, other) if way.by_output else (other, None)
        needs = ctx.needs_input_grad
        operands = Operands(x, weight, bias, residual, output, statistics)
        found: Gradients
        if torch.is_grad_enabled() or kernels.must_compose(dy, x, weight) is not None:
            found = _differentiable(way, dy, operands, needs[:4])
        elif needs[0] or needs[3]:
            found = way.backward(dy, operands)
        else:
            found = _of_parameters(way, dy, operands)
        dx, d_weight, d_bias, d_residual = found
        return (
            dx if needs[0] else None,
            d_weight if needs[1] else None,
            d_bias if needs[2] else None,
            (dy if way.activation == "identity" else d_residual) if needs[3] else None,
            None,
            None,
        )


record: Any = super(torch.autograd.Function, _Recorded).apply
"""``_Recorded.apply`` without its care for transforms of torch.func, under which no call goes straight."""


class _RecordedSum(torch.autograd.Function):
    """The same of a residual that went before: y and the sum go out."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        residual: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        way: Straight,
        made: tuple[Tensor, Tensor, Tensor],
    ) -> tuple[Tensor, Tensor]:
        y, total, statistics = made
        ctx.way = way
        if not (ctx.needs_input_grad[0] or ctx.needs_input_grad[1]):
            ctx.mark_non_differentiable(total)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(total, weight, bias, statistics)
        return y, total

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, d_total: Tensor | None) -> Any:
        way: Straight = ctx.way
        total, weight, bias, statistics = ctx.saved_tensors
        needs = ctx.needs_input_grad
        needs_input = needs[0] or needs[1]
        found: Any
        if dy is None:
            # Nothing came back through y.
            found = (d_total, *(None if p is None else torch.zeros_like(p) for p in (weight, bias)))
        elif torch.is_grad_enabled() or kernels.must_compose(dy, d_total, total, weight) is not None:
            with torch.enable_grad():
                wanted = (needs_input, needs[2], needs[3])
                found = gradients_of_sum(dy, total, weight, bias, wanted, way.settings)
                if d_total is not None and found[0] is not None:
                    found[0] = found[0] + d_total
        else:
            operands = Operands(total, weight, bias, None, None, statistics)
            found = way.backward(dy, operands, d_total) if needs_input else _of_parameters(way, dy, operands)
        dx, d_weight, d_bias = found[:3]
        return (
            dx if needs[0] else None,
            dx if needs[1] else None,
            d_weight if needs[2] else None,
            d_bias if needs[3] else None,
            None,
            None,
        )


record_sum: Any = super(torch.autograd.Function, _RecordedSum).apply
"""The same for :class:`_RecordedSum`."""


def _of_parameters(way: Straight, dy: Tensor, operands: Operands) -> Gradients:
    """The gradients of weight and bias alone."""
    x, weight, bias, residual, output, (mean, spread) = operands
    found = kernels.backward(
        *(cpu, dy, x, way.pattern, way.settings.centered, way.settings.eps, mean, way.variance_or_m2(spread)),
        Finish(way.affine, way.epilogue, weight, bias, residual, output),
        given=way.kind == "given",
        needs_input=False,
    )
    d_weight, d_bias = (
        None if p is None else sums.reshape(p.shape).to(p.dtype)
        for sums, p in ((found.weight, weight), (found.bias, bias))
    )
    return None, d_weight, d_bias, None


def _differentiable(way: Straight, dy: Tensor, operands: Operands, wanted: tuple[bool, ...]) -> Gradients:
    """The gradients as a graph of torch's own operations."""
    given: tuple[Tensor | None, Tensor | None] = (None, None)
    if way.kind == "given":
        mean, rstd = operands.statistics
        given = (mean, way.variance_or_m2(rstd))

    def function(x: Tensor, weight: Any, bias: Any, residual: Any, settings: Settings) -> Tensor:
        return normalized(x, weight, bias, *given, residual, None, settings)[0]

    with torch.enable_grad():
        found = gradients(function, dy, operands[:4], operands.output, None, wanted, way.settings)
    dx, d_weight, d_bias, d_residual = found
    return dx, d_weight, d_bias, d_residual
