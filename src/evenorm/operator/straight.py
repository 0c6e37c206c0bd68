"""A call that goes straight to the extension: everything about it is known but its numbers.

What the whole way asks of every call (shapes, the kernel, the plan) is asked once for tensors of one shape,
strides and dtype. What may change between calls (modes, gradients, parameters put in place of others) is asked
each time, and where an answer is another one the call goes the whole way.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, Literal

import torch
from torch import Tensor

from evenorm import kernels
from evenorm.kernels import Finish, cpu
from evenorm.operator.composed import gradients, normalized
from evenorm.operator.settings import Settings
from evenorm.recipe import Recipe
from evenorm.statistics import Cumulative, History, Running
from evenorm.statistics.absorb import refuse

__all__ = ["Straight"]

Kind = Literal["batch", "observed", "given"]
"""This batch's statistics; the same, taken into a history; the history's."""


class Straight:
    """One kind of call of one recipe."""

    def __init__(
        self,
        recipe: Recipe,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        history: History | None,
        training: bool,
    ) -> None:
        """See :meth:`of`."""
        self.kind: Kind = "batch"
        pattern, axes = recipe.pattern.text, recipe.axes
        if history is not None and recipe.statistics.remembers(training):
            self.kind, pattern, axes = "given", recipe.remembered, recipe.remembered_axes
        elif history is not None and training:
            self.kind = "observed"
        affine, epilogue = recipe.affine, recipe.epilogue
        self.settings = Settings(
            *(pattern, axes, recipe.centered, recipe.eps_for(x.dtype), affine.offset, affine.cast),
            *(epilogue.activation, epilogue.slope, recipe.kernel),
        )
        self.pattern, self.affine, self.epilogue = self.settings.parsed()
        self.average = recipe.source.average
        self.parameters = tuple(None if p is None else (p.dtype, p.shape) for p in (weight, bias))
        self.parameter_dtype = next((p.dtype for p in (weight, bias) if p is not None), x.dtype)
        self.history = None if history is None else (history.mean.dtype, history.mean.shape)
        self.native = self._native(x, None)
        self.natives: dict[tuple[int, ...], Any] = {}
        binding = self.pattern.bind(x.shape)
        self.statistics, self.values = prod(binding.statistics_shape), binding.count
        self.count = prod(binding.sizes(self.affine.axes))

    @classmethod
    def of(
        cls,
        recipe: Recipe,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        history: History | None,
        training: bool,
    ) -> Straight | None:
        """The way for calls like this one, which went well; ``None`` where only the whole way is right."""
        parameters = [p for p in (weight, bias) if p is not None]
        observed = history is not None and training and not recipe.statistics.remembers(training)
        if (
            not recipe.source.is_alone
            or kernels.must_compose(x, weight, bias) is not None
            or 0 in x.shape
            or len({p.dtype for p in parameters}) > 1
            or (history is not None and (history.window or history.mean.dtype not in cpu.HISTORIES))
            or (observed and set(recipe.history) != {f.name for f in recipe.pattern.factors if not f.reduced})
            or (observed and not isinstance(recipe.source.average, (Running, Cumulative)))
            or getattr(recipe.source.average, "variance", None) == "population"
        ):
            return None
        made = cls(recipe, x, weight, bias, history, training)
        kernel = kernels.choose(x, made.pattern, made.affine, recipe.kernel)
        return made if kernel is cpu and made.native is not None else None

    def __call__(
        self, x: Tensor, weight: Tensor | None, bias: Tensor | None, history: History | None, caller: object
    ) -> Tensor | None:
        """y; ``None`` where this call must go the whole way, and nothing was written."""
        expected_weight, expected_bias = self.parameters
        if (
            not _is(weight, expected_weight)
            or not _is(bias, expected_bias)
            or kernels.must_compose(x, weight, bias) is not None
        ):
            return None
        if history is not None and not all(
            _is(average, self.history) and not average.requires_grad for average in history[:2]
        ):
            return None
        if torch.is_grad_enabled() and (
            x.requires_grad
            or (weight is not None and weight.requires_grad)
            or (bias is not None and bias.requires_grad)
        ):
            # A second output would cost more than a place to leave it at.
            seen: list[Tensor | None] = []
            y = _Straight.apply(x, weight, bias, self, history, seen)
            (statistics,) = seen
        else:
            y, statistics = self.forward(x, weight, bias, history)
        if self.kind == "observed" and torch._C._current_graph_task_id() == -1:
            assert history is not None
            assert statistics is not None
            self._observe(history, statistics, caller)
        return y

    def forward(
        self, x: Tensor, weight: Tensor | None, bias: Tensor | None, history: History | None, keep: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """y, and mean and M2 of this batch; where statistics are given mean and rstd. Kept where they are wanted."""
        y = torch.empty_like(x)
        parameters = (0 if weight is None else weight.data_ptr(), 0 if bias is None else bias.data_ptr(), 0)
        if self.kind == "batch" and not keep:
            self.native.forward(x.data_ptr(), y.data_ptr(), 0, 0, *parameters)
            return y, None
        statistics = torch.empty((2, self.statistics), dtype=torch.float64)
        places = self._places(statistics)
        if self.kind == "given":
            assert history is not None
            cpu.recall(history.mean, history.variance, self.settings.eps, *places)
            self.native.apply(x.data_ptr(), y.data_ptr(), *places, *parameters)
        else:
            self.native.forward(x.data_ptr(), y.data_ptr(), *places, *parameters)
        return y, statistics

    def backward(
        self, dy: Tensor, x: Tensor, weight: Tensor | None, bias: Tensor | None, statistics: Tensor
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The gradients of x, weight and bias."""
        native = self._backward_native(dy, x)
        if native is None:
            dy = torch.empty_like(x).copy_(dy)
            native = self._backward_native(dy, x)
        dx = torch.empty_like(x)
        sums = torch.empty((2, self.count), dtype=torch.float64)
        given = (dy.data_ptr(), x.data_ptr())
        places, parts = self._places(statistics), self._places(sums)
        parameters = (0 if weight is None else weight.data_ptr(), 0 if bias is None else bias.data_ptr(), 0, 0)
        if self.kind == "given":
            if weight is not None or bias is not None:
                native.grad_sums(*given, *places, *parameters, 0, 0, *parts)
            native.grad_input(*given, dx.data_ptr(), *places, *parameters, 0, 0, 0)
        else:
            native.backward(*given, dx.data_ptr(), *places, *parameters, *parts, 0)
        if self.parameter_dtype is torch.float32:
            d_weight, d_bias = (
                None if p is None else cpu.rounded(part, p) for part, p in zip(parts, (weight, bias), strict=True)
            )
        else:
            d_weight, d_bias = (
                None if p is None else part.to(p.dtype).reshape(p.shape)
                for part, p in zip(sums, (weight, bias), strict=True)
            )
        return dx, d_weight, d_bias

    @staticmethod
    def _places(pair: Tensor) -> tuple[int, int]:
        """The addresses of two rows of float64."""
        first = pair.data_ptr()
        return first, first + 8 * pair.shape[1]

    def variance_or_m2(self, spread: Tensor) -> Tensor:
        """What stands beside the mean, as the whole way has it."""
        return spread.square().reciprocal() - self.settings.eps if self.kind == "given" else spread

    def _backward_native(self, dy: Tensor, x: Tensor) -> Any:
        strides = dy.stride()
        if strides not in self.natives:
            self.natives[strides] = self._native(x, strides)
        return None if dy.is_neg() else self.natives[strides]

    def _native(self, x: Tensor, grad_strides: tuple[int, ...] | None) -> Any:
        settings = (self.settings.centered, self.settings.eps, x.dtype, self.parameter_dtype)
        return cpu.straight(x, self.pattern, self.affine, self.epilogue, *settings, grad_strides)

    def _observe(self, history: History, statistics: Tensor, caller: object) -> None:
        """The history takes the batch in, last of all."""
        average = self.average
        assert isinstance(average, (Running, Cumulative))
        divisor = self.values if average.variance == "biased" else max(self.values - 1, 1)
        share = float(average.share(history.updates))
        if not cpu.absorb(history.mean, history.variance, *self._places(statistics), divisor, share):
            refuse(average, caller)
            if history.skipped is not None:
                history.skipped.add_(1)
        elif history.updates is not None:
            history.updates.add_(1)


def _is(tensor: Tensor | None, expected: tuple[torch.dtype, torch.Size] | None) -> bool:
    """Whether a parameter or an average is what it was when the way was found."""
    if tensor is None or expected is None:
        return tensor is None and expected is None
    return tensor.dtype is expected[0] and tensor.shape == expected[1] and tensor.is_contiguous() and tensor.is_cpu


class _Straight(torch.autograd.Function):
    """The recorded call."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        way: Straight,
        history: History | None,
        seen: list[Tensor | None],
    ) -> Tensor:
        y, statistics = way.forward(x, weight, bias, history, keep=True)
        ctx.way = way
        ctx.save_for_backward(x, weight, bias, statistics)
        seen.append(statistics)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        way: Straight = ctx.way
        x, weight, bias, statistics = ctx.saved_tensors
        needs = ctx.needs_input_grad[:3]
        composed = kernels.must_compose(dy, x, weight) is not None
        found: Sequence[Tensor | None]
        if composed or torch.is_grad_enabled():
            found = _differentiable(way, dy, x, weight, bias, statistics, needs)
        elif needs[0]:
            found = way.backward(dy, x, weight, bias, statistics)
        else:
            found = _of_parameters(way, dy, x, weight, bias, statistics)
        return *(gradient if need else None for gradient, need in zip(found, needs, strict=True)), None, None, None


def _of_parameters(
    way: Straight, dy: Tensor, x: Tensor, weight: Tensor | None, bias: Tensor | None, statistics: Tensor
) -> tuple[Tensor | None, ...]:
    """The gradients of weight and bias alone."""
    settings, (mean, spread) = way.settings, statistics
    found = kernels.backward(
        *(cpu, dy, x, way.pattern, settings.centered, settings.eps, mean, way.variance_or_m2(spread)),
        Finish(way.affine, way.epilogue, weight, bias),
        given=way.kind == "given",
        needs_input=False,
    )
    pairs = ((found.weight, weight), (found.bias, bias))
    return None, *(None if p is None else sums.reshape(p.shape).to(p.dtype) for sums, p in pairs)


def _differentiable(
    way: Straight,
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    statistics: Tensor,
    wanted: tuple[bool, ...],
) -> list[Tensor | None]:
    """The gradients as a graph of torch's own operations."""
    given: tuple[Tensor | None, Tensor | None] = (None, None)
    if way.kind == "given":
        mean, rstd = statistics
        given = (mean, way.variance_or_m2(rstd))

    def function(x: Tensor, weight: Any, bias: Any, residual: Any, settings: Settings) -> Tensor:
        return normalized(x, weight, bias, *given, residual, None, settings)[0]

    with torch.enable_grad():
        found = gradients(function, dy, (x, weight, bias, None), None, None, (*wanted, False), way.settings)
    return found[:3]
